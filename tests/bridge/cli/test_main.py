"""The command line; what the commands do as processes is in tests/e2e/test_command.py."""

import json
import subprocess
import sys
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


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_complete_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["completion", shell]) == 0

    script = capsys.readouterr().out
    for word in (*main.COMMANDS, "validate", "replay", "backup", "--patience", "--no-such-option"):
        assert (word.lstrip("-") in script) is (word != "--no-such-option"), word


def test_bash_completes_commands_options_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "bridge.yaml").touch()

    def completed(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in ("event-bridge", *words))
        code = f"source completion; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_event_bridge; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert completed("dead") == {"dead-letters"}
    assert completed("journal", "ver") == {"verify"}
    assert completed("dead-letters", "replay", "--pat") == {"--patience"}
    assert completed("run", "--config", "br") == {"bridge.yaml"}


def test_the_man_page_has_every_command_and_option(tmp_path: Path) -> None:
    makefile = (Path(__file__).parents[3] / "Makefile").read_text()
    line = next(line for line in makefile.splitlines() if "argparse-manpage" in line).strip()
    page = tmp_path / "page"
    command = line.replace("$(BIN)", str(Path(sys.executable).parent)).replace("build/event-bridge.1", str(page))

    subprocess.run(command, shell=True, check=True)

    text = page.read_text().replace("\\-", "-").replace("\\fR", "").replace("\\fB", "")
    for name in main.COMMANDS:
        assert f".SS event-bridge {name}" in text
    assert ".SS event-bridge dead-letters replay" in text
    assert "--patience" in text


def test_validate_is_another_name_of_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bridge.yaml").write_text("streams: {acme: {}}")

    assert main.main(["validate"]) == 0
    assert capsys.readouterr().out.startswith("configuration ok: ")
