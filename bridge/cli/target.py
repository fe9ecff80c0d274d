"""The journal that a command reads or changes: that of a running bridge, over HTTP, or the file that a stopped one left."""

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from bridge import logs
from bridge.admin.client import Client, OperationError
from bridge.admin.settings import HttpSettings
from bridge.field_types import is_loopback
from bridge.journal import Journal, JournalError, JournalReader, JournalSettings, holder
from config.load import find, load, load_section

Reader = JournalReader | Client
Writer = Journal | Client


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
        with report_errors(), closing(JournalReader(self.path)) as reader:
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
        settings = load(self.config)
        with report_errors():
            with closing(JournalReader(self.path)) as reader:
                damage = reader.check()
            # Opening a damaged file for writing would set it aside. That is the bridge's business, not a command's.
            if damage:
                raise OperationError(
                    f"{self.path}: damaged: {damage}; nothing was changed, but `journal export` saves what it can"
                )
            logs.configure(settings.log.format, settings.log.level)
            with closing(Journal(settings.journal)) as journal:
                for name, sink in settings.sinks.items():
                    journal.add_sink(name, sink.start, sink.retry.max_pending)
                yield journal

    @cached_property
    def path(self) -> Path:
        """The journal. The rest of the configuration may be wrong: it is not the running bridge's any more then."""
        return self.journal or load_section("journal", JournalSettings, self.config).path

    @cached_property
    def _client(self) -> Client | None:
        """The bridge to ask; None if none runs on the journal."""
        if self.url is not None:
            token = load_section("http", HttpSettings, self.config).token
            parts = urlsplit(self.url)
            if token and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
                print(f"event-bridge: http.token goes to {parts.hostname} in clear text; use https://", file=sys.stderr)
            return Client(self.url, token.get_secret_value() if token else None)
        try:
            running = holder(self.path)
        except JournalError as error:
            where = "" if find(self.config, os.environ) else "; no configuration was found, --config names one"
            raise OperationError(f"{error}{where}") from None
        if running and not running.url:
            raise OperationError(
                f"the bridge runs (process {running.process}), but its HTTP port is off (http.listen), so that it can't be"
                f" asked; to read only, --journal {self.path} looks at the file"
            )
        return Client(running.url, running.secret, verify=False) if running else None


@contextmanager
def report_errors() -> Iterator[None]:
    """Raise a `JournalError` as an `OperationError`."""
    try:
        yield
    except JournalError as error:
        raise OperationError(str(error)) from None
