"""The order of the tests, and a summary: which brokers they ran on, and which did not run and why."""

import functools
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, Final

import pytest

BROKERS: Final = {"Kafka": "tests.support.servers.kafka_broker", "MQTT": "tests.support.servers.mosquitto"}
"""Kinds of brokers, and the modules that start them."""

SLOW_FIRST: Final = ("e2e", "faults", "kafka", "contract", "mqtt")
"""Folders whose files take longest. They run first, so that no worker is left alone with one of them at the end."""

_OF_WORKERS: Final = pytest.StashKey[dict[str, str]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow folders first, and mark what uses a broker."""
    items.sort(key=_rank)
    for item in items:
        if isinstance(item, pytest.Function) and _uses_broker(item.module):
            item.add_marker("broker")


def _rank(item: pytest.Item) -> int:
    return next((rank for rank, folder in enumerate(SLOW_FIRST) if folder in item.path.parts), len(SLOW_FIRST))


@functools.cache
def _uses_broker(module: ModuleType) -> bool:
    """True if a test module imports one of the modules that start brokers, or something of it."""
    return any(
        getattr(value, "__module__", getattr(value, "__name__", None)) in BROKERS.values() for value in vars(module).values()
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send from a worker to the controller, which imports no tests, which brokers the tests ran on."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["brokers"] = dict(ran_on())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Remember what a worker sent."""
    node.config.stash.setdefault(_OF_WORKERS, {}).update(getattr(node, "workeroutput", {}).get("brokers", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write our part of the summary."""
    for kind, line in (dict(ran_on()) | config.stash.get(_OF_WORKERS, {})).items():
        terminalreporter.write_line(f"{kind} tests run on: {line}")
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.write_sep("=", f"{len(skipped)} tests did not run", yellow=True)
    for line in reasons(skipped):
        terminalreporter.write_line(line)


def ran_on() -> Iterator[tuple[str, str]]:
    """Yield each kind of broker that tests of this process want, and which one they have."""
    for kind, name in BROKERS.items():
        if module := sys.modules.get(name):
            yield kind, module.provenance()


def reasons(skipped: Iterable[pytest.TestReport | pytest.CollectReport]) -> list[str]:
    """Return each reason once, with how many tests did not run because of it, and their files; the most frequent first."""
    where: dict[str, Counter[str]] = defaultdict(Counter)
    for report in skipped:
        path = report.nodeid.partition("::")[0]
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        where[reason.removeprefix("Skipped: ")][path] += 1
    lines = []
    for reason, paths in sorted(where.items(), key=lambda item: (-item[1].total(), item[0])):
        places = ", ".join(f"{path} ({count})" for path, count in sorted(paths.items()))
        lines.append(f"{paths.total():5} {reason}: {places}")
    return lines
