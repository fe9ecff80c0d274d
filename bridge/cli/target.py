"""Where the commands look that look inside: a running bridge, or the file that a stopped one left."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from bridge import app
from bridge.admin.client import Client
from bridge.admin.operations import Inspection, OperationError, Operations
from bridge.admin.operations_journal import JournalInspection, JournalOperations
from bridge.admin.server import url_of
from bridge.admin.settings import HttpSettings
from bridge.journal import Journal, JournalError, JournalReader, holder
from config.load import load, load_http
from config.settings import Settings

J = TypeVar("J", Journal, JournalReader)


class Where(NamedTuple):
    """Where to look, as the command line says it; with nothing said, the configuration's journal and whoever runs on it.

    Attributes:
        config: The configuration.
        url: The HTTP port of a bridge.
        journal: A journal's file, to be read and nothing else.
    """

    config: Path | None = None
    url: str | None = None
    journal: Path | None = None


@contextmanager
def looking(where: Where) -> Iterator[Inspection]:
    """Look: by HTTP if a bridge runs, into the file otherwise.

    Raises:
        ConfigError: The configuration can't be used.
        OperationError: There is nothing to look at, or nobody to ask.
    """
    if where.journal is not None:
        with _reading(where.journal) as found:
            yield found
        return
    if where.url is not None:
        yield _client(where.url, load_http(where.config))
        return
    settings = load(where.config)
    if process := _holder(settings.journal.path):
        yield _client_of(settings, process)
        return
    with _reading(settings.journal.path) as found:
        yield found


@contextmanager
def changing(where: Where) -> Iterator[Operations]:
    """Look and change things: by HTTP if a bridge runs, in the file otherwise, of which no bridge can make use meanwhile.

    Raises:
        ConfigError: The configuration can't be used.
        OperationError: There is nothing to change, or nobody to ask, or the file is damaged.
    """
    if where.url is not None:
        yield _client(where.url, load_http(where.config))
        return
    settings = load(where.config)
    if process := _holder(settings.journal.path):
        yield _client_of(settings, process)
        return
    with _reading(settings.journal.path) as found:
        # Whoever opens a damaged file to write sets it aside. That is for the bridge to do, not for a command.
        if damage := found.damage():
            raise OperationError(
                f"{settings.journal.path}: damaged: {damage}; nothing was changed, but `journal export` saves what it can"
            )
    with _opened(lambda _: Journal(settings.journal), settings.journal.path) as journal:
        yield JournalOperations(journal, lambda: app.limits_of(settings.sinks), running=False)


@contextmanager
def _reading(path: Path) -> Iterator[Inspection]:
    with _opened(JournalReader, path) as reader:
        yield JournalInspection(reader, running=False)


@contextmanager
def _opened(open_it: Callable[[Path], J], path: Path) -> Iterator[J]:
    """Open a journal, and close it at the end."""
    try:
        journal = open_it(path)
    except JournalError as error:
        raise OperationError(str(error)) from None
    with closing(journal):
        yield journal


def _holder(path: Path) -> str | None:
    try:
        if not path.exists():
            raise OperationError(f"{path}: there is no journal (yet); a bridge makes it when it runs")
        return holder(path)
    except JournalError as error:
        raise OperationError(str(error)) from None
    except OSError as error:
        raise OperationError(f"{path}: {error.strerror}") from None


def _client_of(settings: Settings, process: str) -> Client:
    address = settings.http.address
    if address is None:
        raise OperationError(
            f"the bridge runs (process {process}), but its HTTP port is off (http.listen), so that it can't be asked;"
            f" to read only, --journal {settings.journal.path} looks at the file"
        )
    if not address[1]:
        raise OperationError(
            f"the bridge runs (process {process}) on a port of its own choice (http.listen has port 0); give --url"
        )
    return _client(url_of(*address), settings.http)


def _client(url: str, http: HttpSettings) -> Client:
    return Client(url, http.token.get_secret_value() if http.token else None)
