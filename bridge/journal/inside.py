"""Looking into the journal while it runs: in pages, on a connection of their own, so that nobody who works waits for it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bridge.journal.file import JournalError
from bridge.journal.model import Closed, DeadLetterQuery, DeadLetters, Extent, Extract, Quarantined, Verified
from bridge.journal.reader import JournalReader
from bridge.journal.writer import Store


class Inside:
    """The part of the journal for those who only look. Any thread may; none of it takes the write lock.

    Args:
        store: Where troubles are noted.
        closing: Set once the journal is being closed.

    Raises:
        Closed: By every method: the journal was closed.
        JournalError: By every method, too: it can't be read.
    """

    def __init__(self, store: Store, closing: threading.Event) -> None:
        self._reader = JournalReader(store.path)
        self._peek = threading.Lock()
        self._store = store
        self._closing = closing

    def dead_letters(self, query: DeadLetterQuery, after: int = 0, limit: int = 1000) -> DeadLetters:
        """One page of the dead letters that a query asks for, as `JournalReader` tells them."""
        with self._peeking() as reader:
            return reader.dead_letters(query, after, limit)

    def quarantine(self, after: int = 0, limit: int = 250) -> list[Quarantined]:
        """The malformed messages that are kept, as `JournalReader` tells them."""
        with self._peeking() as reader:
            return reader.quarantine(after, limit)

    def extent(self) -> Extent:
        """Where what is stored begins and ends."""
        with self._peeking() as reader:
            return reader.extent()

    def events(self, after: int, limit: int, max_bytes: int) -> Extract:
        """One page of the stored events after a place, as `JournalReader` tells them."""
        with self._peeking() as reader:
            return reader.events(after, limit, max_bytes)

    def verify(self, after: int, rows: int) -> Verified:
        """Check so many rows after a place, as `JournalReader` does."""
        with self._peeking() as reader:
            return reader.verify(after, rows)

    def check(self) -> str | None:
        """SQLite's own check of the whole file: what is wrong with it. May take seconds, in which nobody waits."""
        try:
            found = None if self._closing.is_set() else self._reader.check()
        except JournalError:
            if not self._closing.is_set():
                raise
        else:
            if not self._closing.is_set():
                return found
        raise Closed

    @contextmanager
    def _peeking(self) -> Iterator[JournalReader]:
        """Use the reader, of those who only look; without the write lock."""
        with self._peek, self._store.report_errors("look"):
            if self._closing.is_set():
                raise Closed
            yield self._reader
