"""The journal that a command reads or changes: that of a running bridge, over HTTP, or the file that a stopped one left."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bridge import app
from bridge.admin.client import Client
from bridge.admin.operations import OperationError, Operations
from bridge.admin.server import url_of
from bridge.admin.settings import HttpSettings
from bridge.journal import Journal, JournalError, JournalReader, holder
from config.load import load, load_http
from config.settings import Settings

Reader = JournalReader | Client
Writer = Operations | Client


@dataclass
class Target:
    """The target as the command line names it; by default the configuration's journal, and the bridge that runs on it.

    The configuration is loaded, and a running bridge looked for, when that is first needed, and then remembered.

    Attributes:
        config: The configuration.
        url: The HTTP port of a bridge.
        journal: A journal's file, to be read only.
    """

    config: Path | None = None
    url: str | None = None
    journal: Path | None = None

    @contextmanager
    def open_reader(self) -> Iterator[Reader]:
        """Open for reading: over HTTP if a bridge runs, else the file.

        Raises:
            ConfigError: The configuration can't be used.
            OperationError: There is no journal, it can't be read, or the bridge can't be asked.
        """
        if self.journal is None and self._client:
            yield self._client
            return
        with _report_errors(), closing(JournalReader(self.journal or self._settings.journal.path)) as reader:
            yield reader

    @contextmanager
    def open_writer(self) -> Iterator[Writer]:
        """Open for changes: over HTTP if a bridge runs, else the file, which stays locked so that no bridge can start on it.

        Raises:
            ConfigError: The configuration can't be used.
            OperationError: There is no journal, it is damaged or can't be written, or the bridge can't be asked.
        """
        if self._client:
            yield self._client
            return
        settings = self._settings
        with _report_errors():
            with closing(JournalReader(settings.journal.path)) as reader:
                damage = reader.check()
            # Opening a damaged file for writing would set it aside. That is the bridge's business, not a command's.
            if damage:
                raise OperationError(
                    f"{settings.journal.path}: damaged: {damage}; nothing was changed, but `journal export` saves what it can"
                )
            with closing(Journal(settings.journal)) as journal:
                yield Operations(journal, lambda: app.limits_of(settings.sinks), running=False)

    @cached_property
    def _settings(self) -> Settings:
        return load(self.config)

    @cached_property
    def _client(self) -> Client | None:
        """The bridge to ask; None if none runs on the journal."""
        if self.url is not None:
            return _client(self.url, load_http(self.config))
        process = _holder(self._settings.journal.path)
        return _client_of(self._settings, process) if process else None


@contextmanager
def _report_errors() -> Iterator[None]:
    try:
        yield
    except JournalError as error:
        raise OperationError(str(error)) from None


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
