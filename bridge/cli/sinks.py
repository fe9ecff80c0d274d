"""The commands that move a sink: rewind, skip and retry-now."""

import sys
from collections.abc import Callable, Sequence
from datetime import datetime

from bridge.admin.client import Client, OperationError
from bridge.cli.dead_letters import DONE, NOT_DONE, Refused
from bridge.cli.output import count
from bridge.cli.target import Target


def rewind(target: Target, sink: str, to: int | datetime, *, dry_run: bool) -> int:
    """Deliver stored events again, from a sequence number or a time of reception on; return the exit status.

    Raises:
        OperationError: It can't be done.
    """
    with target.open_writer() as writer:
        done = writer.rewind(sink, to, dry_run=dry_run)
    if not done.events:
        print(f"{sink}: nothing to deliver again: no event from there on is stored that it has passed", file=sys.stderr)
        return NOT_DONE
    events = f"{count(done.events, 'event')}, from place {done.first} on"
    print(f"{sink}: would get {events}, again" if dry_run else f"{sink}: gets {events}, again")
    return DONE


def retry_now(target: Target, streams: Sequence[str], sinks: Sequence[str]) -> int:
    """Let streams and sinks of the running bridge try again now, all if none is named; return the exit status.

    Raises:
        OperationError: No bridge runs, or it can't be asked.
    """
    with target.open_reader() as reader:
        if not isinstance(reader, Client):
            raise OperationError("no bridge runs on this journal")
        woken = reader.retry_now(streams, sinks)
    print(f"tried again now: {', '.join(woken)}" if woken else "nothing waits for its next attempt")
    return DONE


def skip(target: Target, sink: str, *, yes: bool, ask: Callable[[str], bool] | None) -> int:
    """Make a dead letter of the event that a sink is at; return the exit status. `ask` is None without a terminal.

    Raises:
        OperationError: It can't be done.
        Refused: There is no confirmation and no terminal.
    """
    if not yes and ask is None:
        raise Refused("skip: sets an event aside; say --yes to have it done without being asked")
    if not yes and ask and not ask(f"Set the next event of {sink} aside as a dead letter? [y/N] "):
        print("nothing was changed", file=sys.stderr)
        return NOT_DONE
    with target.open_writer() as writer:
        place = writer.skip(sink)
    if place is None:
        print(f"{sink}: no event waits", file=sys.stderr)
        return NOT_DONE
    print(f"{sink}: the event at place {place} is a dead letter now; `event-bridge dead-letters list --sink {sink}` shows it")
    return DONE
