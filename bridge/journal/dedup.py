"""The uuids that are remembered, and the thread that reads them from the file when a journal is opened.

A million of them take a second or two, in which sinks already deliver: only who commits events has to wait for it.
"""

import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Final

import structlog

from bridge.event import Event
from bridge.journal import file, tables
from bridge.journal.model import JournalOptions
from bridge.journal.writer import Store

log = structlog.get_logger(__name__)

_TRY_AGAIN: Final = 0.25
"""Seconds between attempts while they can't be read."""

_ON_DISK: Final = 40
"""Bytes that a remembered uuid takes in the file at most, when every batch has one event."""

_SHARE: Final = 4
"""Which part of the journal uuids may take: a quarter. Without a limit, nothing could free a journal that is full of them."""

_CLOCK_SHARE: Final = 1 / 24
"""By which part of the dedup window the clock may have been set between two starts: by an hour, if that is a day."""


class Window:
    """Remembers uuids for at least `seconds`, but no more than `max_events` of them (and those of one commit).

    Two generations make expiry free: new uuids go into the current one; when it is full or old it becomes the previous one,
    and what was the previous one is forgotten as a whole. Evicting one by one costs a hundred times as much.

    Args:
        seconds: How long uuids are remembered.
        max_events: How many of them.
        now: The monotonic time.
        first: The place of the first event that will be remembered.

    Attributes:
        floor: The place in the journal before which nothing is remembered, so that its uuids need not be kept on disk.
    """

    def __init__(self, seconds: float, max_events: int, now: float, first: int = 0) -> None:
        self.floor = first
        self._seconds = seconds
        self._half = max(1, max_events // 2)
        self._current: dict[bytes, None] = {}
        self._previous: dict[bytes, None] = {}
        self._began = now
        self._began_at = first

    def __len__(self) -> int:
        return len(self._current) + len(self._previous)

    def unseen(self, events: Iterable[Event], taken: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Of these events, those that are neither remembered nor among `taken`: uuid to JSON, in order."""
        current, previous = self._current, self._previous
        if taken:
            return {
                event.key: event.json
                for event in events
                if event.key not in current and event.key not in previous and event.key not in taken
            }
        return {event.key: event.json for event in events if event.key not in current and event.key not in previous}

    def remember(self, keys: Iterable[bytes], first: int, now: float) -> None:
        """Remember uuids of events that were stored from place `first` on, at monotonic time `now`."""
        if len(self._current) >= self._half or now - self._began > self._seconds:
            self._previous, self._current = self._current, {}
            self.floor, self._began_at, self._began = self._began_at, first, now
        self._current.update(dict.fromkeys(keys))


class Remembered:
    """Reads the dedup window of a file that was just opened.

    Args:
        store: Where they are read, and where trouble with it is noted.
        options: The journal's.
        following: The place of the next event.
        closing: Set once the journal is being closed, which ends the reading.
        clock: The time of day in seconds since the epoch.
        monotonic: Seconds of a clock that nobody sets.

    Attributes:
        window: The dedup window. Empty until `wait` has returned, and from then on for whoever holds the journal's write lock;
            its `floor` is right at any time.
    """

    def __init__(
        self,
        store: Store,
        options: JournalOptions,
        following: int,
        closing: threading.Event,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._seconds = options.window
        self._max_events = max(1, min(options.window_events, store.largest() // (_SHARE * _ON_DISK)))
        if self._max_events < options.window_events:
            wanted, fewer = options.window_events, self._max_events
            log.warning("fewer uuids are remembered than wanted: the journal is too small", wanted=wanted, remembered=fewer)
        self._following = following
        self._closing = closing
        self._since = clock() - options.window * (1 + _CLOCK_SHARE)
        self._monotonic = monotonic
        self.window = Window(options.window, self._max_events, monotonic())
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="dedup-window")
        self._thread.start()

    @property
    def complete(self) -> bool:
        """Whether all of them are remembered."""
        return self._done.is_set()

    def wait(self) -> None:
        """Wait until all of them are remembered, or the journal is being closed."""
        self._done.wait()

    def end(self) -> None:
        """Wait until nothing is read any more; the journal is being closed."""
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set() and not self._succeeds():
            self._closing.wait(_TRY_AGAIN)
        self._done.set()

    def _succeeds(self) -> bool:
        """Read them; tell whether that was possible. Without them duplicates would pass, so nothing goes on without."""
        try:
            with self._store.watching_the_disk("uuids"):
                self.window = self._read()
                return True
        except Exception as error:
            if not self._store.has_trouble("uuids"):
                log.exception("the journal has a bug: its uuids can't be read, and nothing is accepted")
            self._store.set_trouble("uuids", f"{self._store.path}: {type(error).__name__} while uuids are read, see the log")
        return False

    def _read(self) -> Window:
        with closing(file.connect(self._store.path, read_only=True)) as db:
            oldest = tables.oldest_seen(db, self._since, self._max_events)
            first = self._following if oldest is None else oldest
            window = Window(self._seconds, self._max_events, self._monotonic(), first)
            damaged = 0
            for page in tables.seen_keys(db, first, self._following):
                if self._closing.is_set():
                    return window
                window.remember(page.keys, page.first, self._monotonic())
                damaged += page.damaged
        if damaged:
            log.error("remembered uuids are damaged; their events would be taken for new ones", batches=damaged)
        return window
