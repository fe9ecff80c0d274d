"""Replaying many: with room, without, with several sinks, with an end. Time is made up."""

import io
from collections.abc import Sequence
from typing import cast

import pytest

from bridge.admin.client import Client, OperationError
from bridge.cli.output import Progress
from bridge.cli.replay import INTERRUPTED, Replay, follow
from bridge.journal import (
    DEAD_LETTERS_PER_PAGE,
    DeadLetterPage,
    DeadLetterQuery,
    Journal,
    Replayed,
    RetryPage,
    SinkBacklog,
    StoredDeadLetter,
    UnknownSinkError,
)


class Sinks:
    """Sinks of which each delivers so many a second from a retry queue with so much room.

    Attributes:
        sent: What was replayed, in order.
    """

    def __init__(self, room: int = 500, *, running: bool = True, **rates: float) -> None:
        self.running = running
        self.now = 0.0
        self.sent: list[tuple[str, int]] = []
        self.queued = dict.fromkeys(rates, 0.0)
        self.fails_at: float | None = None
        self.interrupt_at: float | None = None
        self._rates = rates
        self._room = room

    def replay(self, sink: str, ids: Sequence[int]) -> Replayed:
        if self.fails_at is not None and self.now >= self.fails_at:
            raise OperationError("connection refused")
        if sink not in self._rates:
            raise UnknownSinkError(f"no sink {sink} is configured")
        assert 0 < len(ids) <= DEAD_LETTERS_PER_PAGE
        taken = list(ids[: max(0, self._room - round(self.queued[sink]))])
        self.sent += [(sink, id_) for id_ in taken]
        self.queued[sink] += len(taken)
        return Replayed(len(taken), len(taken), round(self.queued[sink]), self._room)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.interrupt_at is not None and self.now >= self.interrupt_at:
            raise KeyboardInterrupt
        for sink, rate in self._rates.items():
            self.queued[sink] = max(0.0, self.queued[sink] - rate * seconds)


def run(sinks: Sinks, patience: float = 10.0, **chosen: int) -> tuple[int, str]:
    """Replay so many of each sink; return the exit status and what progress said."""
    stream = io.StringIO()
    progress = Progress("replay", sum(chosen.values()), stream=stream, live=False, monotonic=lambda: sinks.now)
    ids = {sink: range(1, count + 1) for sink, count in chosen.items()}
    replay = Replay(
        cast("Journal", sinks),
        ids,
        patience=patience,
        progress=progress,
        pause=sinks.sleep,
        monotonic=lambda: sinks.now,
    )
    return replay.run(), stream.getvalue()


def test_what_there_is_room_for_goes_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    sinks = Sinks(alerts=0.0)

    assert run(sinks, alerts=500) == (0, "")
    assert sinks.sent == [("alerts", number) for number in range(1, 501)]
    assert sinks.now == 0.0
    assert capsys.readouterr() == ("alerts: 500 dead letters queued\n", "")


def test_the_rest_waits_until_there_is_room_and_everything_goes_once_in_order() -> None:
    sinks = Sinks(room=100, alerts=50.0)

    status, said = run(sinks, alerts=2000)

    assert status == 0
    assert sinks.sent == [("alerts", number) for number in range(1, 2001)]
    assert sinks.now == pytest.approx(38, abs=2)
    assert "waiting for a retry" not in said
    assert "of 2,000" in said


def test_a_sink_that_takes_nothing_is_told_of_and_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    sinks = Sinks(room=500, alerts=0.0)

    status, said = run(sinks, alerts=1200)

    assert status == 1
    assert 10.0 <= sinks.now <= 11.0
    assert said.splitlines()[0] == (
        "alerts has 500 events waiting for a retry and takes no more until they are delivered;"
        " Ctrl-C leaves the rest as dead letters"
    )
    assert said.count("Ctrl-C") == 1
    assert capsys.readouterr().err == (
        "alerts: 500 dead letters queued, 700 left: alerts has 500 events waiting for a retry, and none was delivered for"
        " 10 s; see what is wrong with it, then replay the rest\n"
    )


def test_as_long_as_its_queue_becomes_shorter_a_sink_is_not_given_up() -> None:
    sinks = Sinks(room=100, alerts=1.0)
    sinks.queued["alerts"] = 150.0

    assert run(sinks, alerts=3)[0] == 0
    assert sinks.now > 50.0


def test_a_sink_that_stands_still_keeps_no_other_waiting(capsys: pytest.CaptureFixture[str]) -> None:
    sinks = Sinks(room=100, stuck=0.0, fast=1000.0)

    status, _ = run(sinks, stuck=200, fast=1000)

    assert status == 1
    assert sum(sink == "fast" for sink, _ in sinks.sent) == 1000
    assert capsys.readouterr().out == "fast: 1,000 dead letters queued\n"


def test_a_sink_that_is_not_configured_is_told_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    sinks = Sinks(alerts=1.0)

    assert run(sinks, gone=3, alerts=2)[0] == 1
    assert sinks.now == 0.0
    output = capsys.readouterr()
    assert output.out == "alerts: 2 dead letters queued\n"
    assert output.err == "gone: 0 dead letters queued, 3 left: no sink gone is configured\n"


def test_on_a_file_nothing_drains_so_that_the_rest_is_left_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    sinks = Sinks(room=500, running=False, alerts=0.0)

    assert run(sinks, alerts=501)[0] == 1
    assert sinks.now == 0.0
    assert capsys.readouterr().err == (
        "alerts: 500 dead letters queued, 1 left: alerts has 500 events waiting for a retry and takes no more now;"
        " replay the rest while the bridge runs\n"
    )


def test_when_the_bridge_goes_away_one_is_told_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    sinks = Sinks(room=10, alerts=10.0)
    sinks.fails_at = 5.0

    status, said = run(sinks, alerts=1000)

    assert (status, said) == (1, "event-bridge: connection refused\n")
    assert capsys.readouterr().out.startswith(f"alerts: {len(sinks.sent)} dead letters queued, {1000 - len(sinks.sent)} left")


def test_ctrl_c_leaves_the_rest_and_says_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    sinks = Sinks(room=10, alerts=0.0)
    sinks.interrupt_at = 2.0

    assert run(sinks, alerts=15)[0] == INTERRUPTED
    assert capsys.readouterr().out == "alerts: 10 dead letters queued, 5 left\n"


class Outcomes:
    """A bridge with three queued events, of which each look at the retry queue sees fewer."""

    def __init__(self, *retries: list[int], dead: int | None = None) -> None:
        self.now = 0.0
        self._retries = list(retries)
        self._dead = dead

    def retries(self, sink: str, after: int, limit: int) -> RetryPage:
        """In pages of two."""
        left = [seq for seq in self._retries[0] if seq > after]
        if len(self._retries) > 1 and len(left) <= 2:
            del self._retries[0]
        return RetryPage(left[:2], left[1] if len(left) > 2 else None)

    def dead_letters(self, query: DeadLetterQuery, after: int, limit: int) -> DeadLetterPage:
        assert query == DeadLetterQuery(sink="alerts")
        letters = [StoredDeadLetter(90, "alerts", seq=self._dead), StoredDeadLetter(91, "alerts", seq=77)] if self._dead else []
        return DeadLetterPage([letter for letter in letters if letter.id > after], None)

    def backlog(self) -> dict[str, SinkBacklog]:
        return {"alerts": SinkBacklog(3, 0, 3, 3, 0, up=False, error="connection \x1brefused")}

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("bridge", "status", "told"),
    [
        (Outcomes([11, 12, 13], [12], []), 0, "alerts: 3 delivered\n"),
        (Outcomes([1, 11, 12, 13, 99], [1, 99], dead=12), 1, "alerts: 2 delivered, 1 dead letter again\n"),
        (Outcomes([11, 12, 13], [12, 13]), 1, "alerts: 1 delivered, 2 waiting\n"),
    ],
)
def test_what_is_queued_is_followed_to_its_end(
    bridge: Outcomes, status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    progress = Progress("deliver", 3, stream=stream, live=False, monotonic=lambda: bridge.now)
    letters = {"alerts": {21: 11, 22: 12, 23: 13}}
    client = cast("Client", bridge)

    found = follow(client, letters, patience=30, progress=progress, pause=bridge.sleep, monotonic=lambda: bridge.now)

    output = capsys.readouterr()
    assert (found, output.out) == (status, told)
    assert ("none was delivered for 30 s" in stream.getvalue()) == ("waiting" in told)
    assert (" 33% 1 of 3; alerts: 1 delivered, 2 waiting" in stream.getvalue()) or "waiting" not in told
    assert output.err == ("alerts is down and delivers when it is back: connection ·refused\n" if "waiting" in told else "")
