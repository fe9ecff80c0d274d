"""The command line; what the commands do as processes is in tests/e2e/test_command.py."""

import json
from pathlib import Path

import pytest

from bridge.cli import main, run
from bridge.cli.listen import Filters
from bridge.simulator.server import SimulatorSettings


def test_help_of_every_command_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in main.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main.main([command, "--help"])

        assert ended.value.code == 0
        assert f"example:\n  event-bridge {command}" in capsys.readouterr().out


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"]


def test_options_of_the_simulator_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[SimulatorSettings] = []
    monkeypatch.setattr(run, "simulate", given.append)
    options = "--listen [::1]:1 --username bob --api-key k --namespace a --namespace b --rate 5 --count 9 --seed 3"
    faults = (
        "--duplicates .1 --malformed .2 --fragmented .3 --disconnect-every 2 --silence-after 4 --refuse 503 --retry-after 7"
    )

    assert main.main(["simulate", *options.split(), *faults.split(), "--error-after", "8", "--credentials-expire", "9"]) == 0

    assert given == [
        SimulatorSettings(
            host="::1",
            port=1,
            username="bob",
            api_key="k",
            namespaces=("a", "b"),
            rate=5,
            count=9,
            seed=3,
            duplicates=0.1,
            malformed=0.2,
            fragmented=0.3,
            disconnect_every=2,
            silence_after=4,
            refuse=503,
            retry_after=7,
            error_after=8,
            credentials_expire=9,
        )
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "8750"], "--listen: must be HOST:PORT"),
        (["--duplicates", "2"], "--duplicates: must be between 0 and 1"),
        (["--replay", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_a_senseless_option_of_the_simulator_is_said_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main.main(["simulate", "--listen", "127.0.0.1:0", *arguments]) == main.BAD_CONFIGURATION

    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_values_may_be_repeated_or_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(main, "listen", lambda *args: given.extend(args))

    main.main(["listen", "--type", "container,service", "--type", "node", "--parent", "/x/", "--namespace", "acme"])

    assert given == [None, None, "acme", Filters(["container", "service", "node"], [], ["/x/"])]
