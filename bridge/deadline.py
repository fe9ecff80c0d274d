"""Time limits for what has none for the whole of it: connecting to a name, and a call such as a look-up."""

import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

T = TypeVar("T")

_HEAD_START_SECONDS: Final = 0.25
"""Time that an address has for itself before the next one is tried beside it (RFC 8305, section 5)."""


def connect(host: str, port: int, until: float, options: Iterable[tuple[int, int, int]] = ()) -> socket.socket:
    """Connect to the address of a name that answers first, without blocking; a silent one takes no time from the others.

    Args:
        host: Name or IP address.
        port: TCP port.
        until: Monotonic time at which it is given up; what is left until then is the timeout of the socket.
        options: Arguments of `setsockopt`.

    Raises:
        TimeoutError: Time is up.
        OSError: No address can be reached; this is the error of the last one.
    """
    addresses = call_within(until - time.monotonic(), partial(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM))
    failure: OSError = socket.gaierror(socket.EAI_NONAME, "the name has no address")
    ready, attempts = select.poll(), dict[int, socket.socket]()
    try:
        while addresses or attempts:
            if addresses:
                try:
                    sock = _begin_to_connect(addresses.pop(0), options)
                except OSError as error:
                    failure = error
                    continue
                attempts[sock.fileno()] = sock
                ready.register(sock, select.POLLOUT)
            if (left := until - time.monotonic()) <= 0:
                raise TimeoutError("timed out")
            seconds = min(left, _HEAD_START_SECONDS) if addresses else left
            for number, _ in ready.poll(math.ceil(seconds * 1000)):
                ready.unregister(number)
                sock = attempts.pop(number)
                if (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) == 0:
                    sock.settimeout(left)
                    return sock
                failure = OSError(code, os.strerror(code))
                sock.close()
    finally:
        for sock in attempts.values():
            sock.close()
    raise failure


def _begin_to_connect(resolved: tuple[Any, ...], options: Iterable[tuple[int, int, int]]) -> socket.socket:
    family, kind, protocol, _, address = resolved
    sock = socket.socket(family, kind, protocol)
    try:
        sock.settimeout(0)
        for option in options:
            sock.setsockopt(*option)
        with suppress(BlockingIOError):
            sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def call_within(
    seconds: float,
    call: Callable[[], T],
    *,
    cut: Callable[[], None] = lambda: None,
    discard: Callable[[T], None] = lambda _: None,
) -> T:
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
