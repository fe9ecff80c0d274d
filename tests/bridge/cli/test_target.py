"""Target the commands look: a running bridge by HTTP, the file of a stopped one, what the command line says."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bridge.admin.client import OperationError
from bridge.admin.health import Health
from bridge.admin.routes import Access, operation_routes
from bridge.admin.server import Server
from bridge.admin.settings import HealthSettings
from bridge.cli.target import Target
from bridge.journal import DeadLetterQuery, Journal, JournalSettings
from bridge.pipeline.supervisor import Running
from tests.support.journal_samples import append, bury, event, opened

SECRET = "of this start"
EVENTS = [event(number) for number in range(1, 4)]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own directory with a journal, and a configuration of it that no environment disturbs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRIDGE_SECRETS_DIR", "")
    configure("off")
    with opened(Path("journal.db"), "alerts") as journal:
        append(journal, EVENTS)
        bury(journal, "alerts", 1, EVENTS)
    return tmp_path


def configure(listen: str, token: str = "") -> None:
    http = f"{{listen: '{listen}'{f', token: {token}' if token else ''}}}"
    sinks = "{alerts: {type: webhook, url: 'http://127.0.0.1:1'}}"
    Path("bridge.yaml").write_text(f"streams: {{acme: {{}}}}\nsinks: {sinks}\njournal: {{path: journal.db}}\nhttp: {http}\n")


@pytest.fixture
def bridge() -> Iterator[Server]:
    """Somebody who has the journal, and answers for it with a token."""
    with closing(Journal(JournalSettings(path=Path("journal.db")))) as journal:
        server = Server(
            "127.0.0.1",
            0,
            health=Health(journal, Running, settings=HealthSettings(), version="0"),
            registry=CollectorRegistry(),
            last_tick=lambda: 0.0,
            operations=operation_routes(journal),
            access=Access(SECRET, lambda: "geheim und lang genug", lambda _: None),
        )
        with closing(server):
            journal.announce(server.url, SECRET)
            yield server


def count(where: Target) -> int:
    with where.open_reader() as inspection:
        return len(inspection.dead_letters(DeadLetterQuery(), 0, 100).dead_letters)


def test_the_file_is_opened_when_nobody_has_it() -> None:
    with Target().open_reader() as inspection:
        assert not inspection.running
        assert inspection.extent().next == 4


def test_a_file_is_only_read_and_nothing_is_made_beside_it(directory: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}

    assert count(Target()) == 3
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == before


@pytest.mark.parametrize("configured", ["127.0.0.1:0", "0.0.0.0:9477", "off"])
def test_a_running_bridge_is_found_by_its_journal_and_asked_with_its_secret(bridge: Server, configured: str) -> None:
    assert bridge.port
    configure(configured)

    with Target().open_reader() as inspection:
        assert inspection.running
        assert inspection.extent().next == 4
    with Target().open_writer() as operations:
        assert operations.running
        assert operations.discard([1]) == 1


def test_a_running_bridge_is_asked_although_the_rest_of_the_configuration_is_broken(bridge: Server) -> None:
    assert bridge.port
    Path("bridge.yaml").write_text("sinks: {alerts: {type: nonsense}}\njournal: {path: journal.db}\n")

    assert count(Target()) == 3


def test_the_secret_of_a_bridge_is_for_its_user_only(bridge: Server) -> None:
    assert bridge.port
    assert SECRET in Path("journal.db.lock").read_text()
    assert Path("journal.db.lock").stat().st_mode & 0o777 == 0o600


def test_a_running_bridge_without_its_port_can_not_be_asked() -> None:
    with closing(Journal(JournalSettings(path=Path("journal.db")))):
        for look in (Target.open_reader, Target.open_writer):
            with (
                pytest.raises(OperationError, match=r"the bridge runs \(process \d+\), but its HTTP port is off"),
                look(Target()),
            ):
                pass
        assert count(Target(journal=Path("journal.db"))) == 3


def test_a_bridge_at_a_url_is_asked_with_the_token_of_the_configuration(
    bridge: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure("off", "geheim und lang genug")

    assert count(Target(url=bridge.url)) == 3
    monkeypatch.setenv("BRIDGE_HTTP__TOKEN", "some other token")
    with pytest.raises(OperationError, match="the token is not the one"):
        count(Target(url=bridge.url))


def test_a_token_that_crosses_the_network_in_clear_text_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    configure("off", "geheim und lang genug")

    with pytest.raises(OperationError):
        count(Target(url="http://bridge.invalid:9477"))
    assert "http.token goes to bridge.invalid in clear text; use https://" in capsys.readouterr().err


def test_a_bridge_elsewhere_needs_a_token_and_no_configuration(bridge: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("bridge.yaml").unlink()
    Path("token").write_text("geheim und lang genug\n")
    with pytest.raises(OperationError, match="needs the token"):
        count(Target(url=bridge.url))

    monkeypatch.setenv("BRIDGE_HTTP__TOKEN_FILE", "token")

    assert count(Target(url=bridge.url)) == 3
    with Target(url=bridge.url).open_writer() as operations:
        assert operations.discard([1]) == 1


def test_a_file_that_is_named_is_read_without_any_configuration(directory: Path) -> None:
    Path("bridge.yaml").unlink()

    assert count(Target(journal=directory / "journal.db")) == 3
    with pytest.raises(OperationError, match="no such file"):
        count(Target(journal=directory / "nothing.db"))


def test_without_a_configuration_there_is_nowhere_to_look() -> None:
    Path("bridge.yaml").unlink()

    with pytest.raises(OperationError, match=r"there is no journal.*no configuration was found, --config names one"):
        count(Target())


def test_a_journal_that_is_not_there_yet_is_not_made(directory: Path) -> None:
    for path in directory.glob("journal*"):
        path.unlink()

    for look in (Target.open_reader, Target.open_writer):
        with pytest.raises(OperationError, match="there is no journal"), look(Target()):
            pass
    assert list(directory.glob("journal*")) == []


def test_whoever_changes_the_file_has_it_alone() -> None:
    with Target().open_writer() as operations:
        assert not operations.running
        done = operations.replay("alerts", [1, 2])
        assert (done.replayed, done.room) == (2, 500)
        with pytest.raises(OperationError, match=r"process \d+"), Target().open_writer():
            pass
    with Target().open_writer() as operations:
        assert operations.discard([3]) == 1


def test_a_damaged_file_is_read_but_not_changed_and_not_set_aside(directory: Path) -> None:
    content = bytearray(Path("journal.db").read_bytes())
    content[3 * 4096 : 3 * 4096 + 100] = b"\xff" * 100
    Path("journal.db").write_bytes(content)

    with pytest.raises(OperationError, match=r"journal\.db: .*damaged"), Target().open_writer():
        pass
    assert Path("journal.db").read_bytes() == content
    assert [path.name for path in directory.glob("*damaged*")] == []


def test_a_path_that_can_not_be_looked_at_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_JOURNAL__PATH", "x" * 300)

    with pytest.raises(OperationError, match="File name too long"), Target().open_reader():
        pass
