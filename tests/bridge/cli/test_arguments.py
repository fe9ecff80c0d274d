"""The arguments of the commands that look inside: what is called with what, and what is refused."""

import argparse
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bridge import logs
from bridge.cli import arguments as inspect_arguments
from bridge.cli import backlog, dead_letters, main
from bridge.cli import journal as inspect_journal
from bridge.cli.dead_letters import Selection
from bridge.cli.journal import Wanted
from bridge.cli.target import Target
from bridge.journal import DeadLetterQuery

UUID = "093ba3bb-08dd-48f0-8f12-4d3b85ef85b3"
Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]

REPLAY = {"dry_run": False, "patience": 60.0, "wait": False}


@pytest.fixture(autouse=True)
def _logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs stay as they are for the tests that come after these: loggers remember how they were configured."""
    monkeypatch.setattr(logs, "configure", lambda *_: None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the commands are called with."""
    made: Calls = []

    def note(*args: Any, **kwargs: Any) -> int:
        made.append((args, kwargs))
        return 7

    for module, names in (
        (dead_letters, ("show_list", "show_one", "replay", "drop")),
        (inspect_journal, ("verify", "export", "prune", "quarantine")),
        (backlog, ("backlog",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, note)
    return made


def run(line: str) -> int:
    return main.main(line.split())


def test_the_exit_status_is_the_commands_own(calls: Calls) -> None:
    assert run("backlog") == 7
    assert calls == [((Target(),), {"interval": 2.0, "as_json": False})]


@pytest.mark.parametrize(
    ("line", "arguments", "options"),
    [
        ("dead-letters list", (Target(), Selection(DeadLetterQuery())), {"as_json": False}),
        (
            f"dead-letters list --sink alerts --reason too_old --uuid {UUID.upper()} --type node --limit 5 --json",
            (Target(), Selection(DeadLetterQuery("alerts", "too_old", None, UUID, "node"), None, 5)),
            {"as_json": True},
        ),
        (
            "dead-letters list --since 2026-11-23T10:00:00Z --config x.yaml --journal j.db",
            (
                Target(Path("x.yaml"), None, Path("j.db")),
                Selection(DeadLetterQuery(since=datetime(2026, 11, 23, 10, tzinfo=UTC))),
            ),
            {"as_json": False},
        ),
        ("dead-letters show 17", (Target(), "17"), {"as_json": False}),
        (f"dead-letters show {UUID.upper()} --json", (Target(), UUID), {"as_json": True}),
        (f"dead-letters show {'1' * 32}", (Target(), "11111111-1111-1111-1111-111111111111"), {"as_json": False}),
        (
            "dead-letters replay --all",
            (Target(), Selection(DeadLetterQuery())),
            REPLAY,
        ),
        (
            "dead-letters replay --sink a --dry-run --patience 5m --url http://h:1",
            (Target(None, "http://h:1"), Selection(DeadLetterQuery("a"))),
            {"dry_run": True, "patience": 300.0, "wait": False},
        ),
        (
            "dead-letters replay 3 4",
            (Target(), Selection(DeadLetterQuery(), [3, 4])),
            REPLAY,
        ),
        (
            "dead-letters replay --all --limit 3",
            (Target(), Selection(DeadLetterQuery(), None, 3)),
            REPLAY,
        ),
        (
            "dead-letters drop --type node --yes",
            (Target(), Selection(DeadLetterQuery(type="node"))),
            {"dry_run": False, "yes": True, "ask": None},
        ),
        ("backlog --interval 500ms --json", (Target(),), {"interval": 0.5, "as_json": True}),
        ("journal verify --journal j.db", (Target(journal=Path("j.db")),), {}),
        ("journal prune --config x", (Target(Path("x")),), {}),
        (
            "journal export --after 5 --since 2026-11-23 --type node,service --type stack --output out",
            (Target(), Wanted(5, datetime(2026, 11, 23, tzinfo=UTC), frozenset({"node", "service", "stack"})), Path("out")),
            {},
        ),
        ("quarantine list", (Target(),), {"as_json": False}),
        ("quarantine list --json", (Target(),), {"as_json": True}),
        ("quarantine export", (Target(),), {"as_json": True}),
    ],
)
def test_arguments_arrive(calls: Calls, line: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    run(line)

    assert calls == [(arguments, options)]


def test_an_age_is_counted_from_now(calls: Calls) -> None:
    run("dead-letters list --since 2h")

    since = calls[0][0][1].query.since
    assert abs(datetime.now(UTC) - timedelta(hours=2) - since) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dead-letters replay", "say which: by options like --sink, by numbers, or --all"),
        ("dead-letters drop --yes", "say which: by options like --sink, by numbers, or --all"),
        ("dead-letters replay --limit 3", "say which"),
        ("dead-letters replay --all --sink a", "--all and other options contradict each other"),
        ("dead-letters drop 3 --all", "either by numbers or by other options"),
        ("dead-letters drop 3 --sink a", "either by numbers or by other options"),
    ],
)
def test_what_changes_things_has_to_be_told_which(
    calls: Calls, line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == main.BAD_ARGUMENTS
    assert said in capsys.readouterr().err
    assert calls == []


def test_a_drop_without_anybody_to_ask_is_a_wrong_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("dead-letters drop --all") == main.BAD_ARGUMENTS
    assert "--yes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dead-letters", "required: SUBCOMMAND"),
        ("dead-letters list --since yesterday", "argument --since: must be a time"),
        ("dead-letters list --reason bad", "argument --reason: invalid choice"),
        ("dead-letters list --uuid 1", "argument --uuid: must be a uuid"),
        ("dead-letters list --limit -1", "argument --limit: must be a whole number"),
        ("dead-letters list --limit ²", "argument --limit: must be a whole number"),
        ("dead-letters show x", "must be a uuid, or the number that list shows"),
        ("dead-letters show 99999999999999999", "must be a uuid, or the number that list shows"),
        ("dead-letters list --url x", "argument --url: must look like http://127.0.0.1:9477"),
        ("dead-letters list --url http://h --journal j", "not allowed with argument"),
        ("dead-letters replay --all --journal=j", "unrecognized arguments: --journal"),
        ("dead-letters replay --all --patience long", "argument --patience: not a duration"),
        ("journal prune --journal j", "unrecognized arguments: --journal"),
        ("journal export --after x", "argument --after: must be a whole number"),
        ("backlog --interval 0", "argument --interval: must be more than 0"),
    ],
)
def test_a_senseless_argument_is_told(calls: Calls, line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(line)

    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert calls == []


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


def test_help_of_every_subcommand_shows_an_example_that_is_understood(
    capsys: pytest.CaptureFixture[str], command: Callable[[str], None]
) -> None:
    every = subcommands(main.parser())
    shown = 0
    for name in inspect_arguments.COMMANDS:
        for sub in subcommands(every[name]):
            with pytest.raises(SystemExit):
                run(f"{name} {sub} --help")
            text = capsys.readouterr().out
            assert "Where it looks: " in text
            example = text.rpartition("example:\n")[2].strip()
            assert example.startswith(f"event-bridge {name} {sub}")
            command(example)
            shown += 1
    assert shown == 10


@pytest.fixture
def command() -> Callable[[str], None]:
    """Understands a line as a shell would give it to us."""

    def understand(line: str) -> None:
        main.parser().parse_args(line.partition(" | ")[0].partition(" > ")[0].split()[1:])

    return understand


def test_examples_of_the_commands_are_understood(capsys: pytest.CaptureFixture[str], command: Callable[[str], None]) -> None:
    for name in inspect_arguments.COMMANDS:
        with pytest.raises(SystemExit):
            run(f"{name} --help")
        for line in capsys.readouterr().out.rpartition("example:\n")[2].strip().splitlines():
            command(line.strip())
