"""What pytest tells in the end: on what the tests ran, and which did not run and why; nothing is skipped in silence."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

import pytest

BROKERS: Final = {"Kafka": "tests.support.kafka_broker", "MQTT": "tests.support.mosquitto"}
"""Kinds of brokers, and the modules that start them."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write our part of the summary."""
    for kind, line in ran_on():
        terminalreporter.write_line(f"{kind} tests run on: {line}")
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.write_sep("=", f"{len(skipped)} tests did not run", yellow=True)
    for line in reasons(skipped):
        terminalreporter.write_line(line)


def ran_on() -> Iterator[tuple[str, str]]:
    """Kinds of brokers, and which one the tests of this run have, if some of them want one."""
    for kind, name in BROKERS.items():
        if module := sys.modules.get(name):
            yield kind, module.provenance()


def reasons(skipped: Iterable[pytest.TestReport | pytest.CollectReport]) -> list[str]:
    """Each reason once, with how many tests did not run because of it, and where they are; the most frequent first."""
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
