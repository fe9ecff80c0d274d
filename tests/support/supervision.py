"""A supervisor in a thread, and streams and forwarders that are made up."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from bridge.journal import Journal, JournalError, JournalSettings
from bridge.pipeline.availability import SinkStatus
from bridge.pipeline.forwarder import Forwarder
from bridge.pipeline.stream import Stream, StreamStatus
from bridge.pipeline.supervisor import Requests, Supervisor

DEADLINE = 20.0


class Diary:
    """What happened, in order, over all threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.entries: list[str] = []

    def note(self, entry: str) -> None:
        with self._changed:
            self.entries.append(entry)
            self._changed.notify_all()

    def wait_for(self, entry: str, times: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.entries.count(entry) >= times, DEADLINE), (entry, self.entries)


class FakeStream:
    """A stream whose session lasts until `stop`, after the steps that were planned."""

    def __init__(
        self, diary: Diary, *steps: Callable[[], float], name: str = "acme", label: str = "", connected: bool = True
    ) -> None:
        self.name = name
        self.label = label or name
        self.status = StreamStatus(connected=connected, since=0.0)
        self._diary = diary
        self._steps = deque(steps)
        self._stopping = threading.Event()

    def step(self) -> float:
        self._diary.note(f"{self.label} step")
        if self._steps:
            return self._steps.popleft()()
        assert self._stopping.wait(DEADLINE)
        self._diary.note(f"{self.label} ended")
        self.status = StreamStatus(connected=False, since=0.0)
        return 0.0

    def start_reading(self) -> None:
        self._diary.note(f"{self.label} takes over")

    def stop(self) -> None:
        self._diary.note(f"{self.label} stop")
        self._stopping.set()


class FakeForwarder:
    """A forwarder that has something to deliver for as long as steps are planned, and is idle then."""

    def __init__(self, diary: Diary, *steps: Callable[[], float], name: str = "audit", label: str = "") -> None:
        self.name = name
        self.label = label or name
        self.busy = False
        self.status = SinkStatus(up=True, since=0.0)
        self._diary = diary
        self._steps = deque(steps)

    def step(self) -> float:
        self._diary.note(f"{self.label} step")
        self.busy = bool(self._steps)
        return self._steps.popleft()() if self._steps else 0.01

    def record_progress(self) -> bool:
        return False

    def inherit_from(self, other: "FakeForwarder") -> None:
        self._diary.note(f"{self.label} takes over from {other.label}")

    def close(self) -> None:
        self._diary.note(f"{self.label} close")


class Watched(Journal):
    """A journal that notes what the supervisor does with it."""

    def __init__(self, path: Path, diary: Diary) -> None:
        self._diary = diary
        self.bugs: deque[Exception] = deque()
        self.unforgettable = 0
        self.spoiled = False
        super().__init__(JournalSettings(path=path, durability="normal"))

    @property
    def damaged(self) -> bool:
        return self.spoiled

    def prune(self) -> bool:
        self._diary.note("prune")
        if self.bugs:
            raise self.bugs.popleft()
        return super().prune()

    def forget_sinks_except(self, names: set[str]) -> None:
        self._diary.note("forget")
        if self.unforgettable:
            self.unforgettable -= 1
            raise JournalError("disk I/O error")
        super().forget_sinks_except(names)

    def close(self) -> None:
        self._diary.note("journal close")
        super().close()


class Count:
    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        self.value += 1


class Bench:
    """A supervisor that runs in a thread of its own."""

    def __init__(
        self,
        journal: Journal,
        streams: Sequence[FakeStream | Stream] = (),
        forwarders: Sequence[FakeForwarder | Forwarder] = (),
        grace: float = DEADLINE,
    ) -> None:
        self.restarts = Count()
        self.all_ended: bool | None = None
        self.requests = Requests()
        self.supervisor = Supervisor(
            journal,
            cast("Sequence[Stream]", streams),
            cast("Sequence[Forwarder]", forwarders),
            restarts=self.restarts,
            grace=grace,
            requests=self.requests,
        )
        self.reloads = 0
        self._changes: deque[Callable[[Any], object]] = deque()
        self._changed = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.all_ended = self.supervisor.run(reload=self._reload)

    def _reload(self) -> None:
        self.reloads += 1
        while self._changes:
            self._changes.popleft()(self.supervisor)
            self._changed.release()

    def running(self) -> Any:
        """What runs, to be compared with what is made up."""
        return self.supervisor.running()

    def change(self, change: Callable[[Any], object]) -> None:
        """Let the main thread do something with the supervisor, as a reload does; return when it has."""
        self._changes.append(change)
        self.requests.put("reload")
        assert self._changed.acquire(timeout=DEADLINE)

    def start(self) -> "Bench":
        self._thread.start()
        return self

    def join(self) -> bool:
        """Wait until `run` has returned; tell what it said."""
        self._thread.join(2 * DEADLINE)
        assert not self._thread.is_alive()
        assert self.all_ended is not None
        return self.all_ended

    def stop(self) -> bool:
        self.supervisor.stop()
        return self.join()


def note(diary: Diary, entry: str, seconds: float = 0.0) -> Callable[[], float]:
    """A step that notes something."""

    def step() -> float:
        diary.note(entry)
        return seconds

    return step


def fail(error: BaseException) -> Callable[[], float]:
    """A step with a bug."""

    def step() -> float:
        raise error

    return step
