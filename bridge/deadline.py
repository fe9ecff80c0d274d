"""A time limit for a call that has none for the whole of it, as connecting to a host has none."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def call_within(seconds: float, call: Callable[[], T], *, cut: Callable[[], None], discard: Callable[[T], None]) -> T:
    """Run `call` in a thread of its own and return its result, however long a resolver hangs or a peer drips.

    Args:
        seconds: Time limit.
        call: Runs to its end even when it is late, so its own steps need a timeout, too.
        cut: Called when time is up, to wake the call. Must not close what the call still uses.
        discard: Called with a result that comes too late, in the call's thread.

    Raises:
        TimeoutError: Time is up; or the call raised it, as it may raise anything.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where the outcome is waited for
            outcome.set_exception(error)

    def drop(late: Future[T]) -> None:
        if late.exception() is None:
            discard(late.result())

    threading.Thread(target=run, name="connect", daemon=True).start()
    try:
        failure = outcome.exception(seconds)
    except TimeoutError:
        outcome.add_done_callback(drop)
        cut()
        raise
    if failure is not None:
        raise failure
    return outcome.result()
