"""The arguments of the commands that look inside: what they take, what `--help` teaches, and what is called then."""

import argparse
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias, get_args

from bridge.admin.client import Client, OperationError
from bridge.cli import backlog, dead_letters, journal
from bridge.cli.dead_letters import Refused, Selection
from bridge.cli.journal import Wanted
from bridge.cli.output import confirmation
from bridge.cli.target import Target
from bridge.field_types import duration, parse_time
from bridge.journal import DeadLetterQuery, DeathReason

COMMANDS: Final = ("dead-letters", "backlog", "journal", "quarantine")

_MORE: Final = 16
"""Digits of a number of a dead letter at most."""

_WHERE: Final = """

Where it looks: at the journal of the configuration. If a bridge runs on it, that one is asked, over its HTTP port;
otherwise the file is opened. Run it as the user that the bridge runs as."""

_REPLAY: Final = """\
Queue dead letters for their sinks once more: they wait in the sink's retry queue and go out in the order of the journal. What
fails again becomes a dead letter again. To replay twice sends nothing twice: what is queued is no dead letter any more. With
--wait, the command ends when each is delivered or a dead letter again; its exit status is 0 only if all were delivered.

The retry queue is filled to half of the sink's retry.max_pending at most; beside a running bridge, replay waits until there
is room for the rest."""

_DROP: Final = """\
Delete dead letters for ever. Asks at a terminal; a script has to say --yes."""

_EXPORT: Final = """\
Write the stored events as lines of JSON, oldest first, as the sinks get them. Stored is what some sink has not got yet; the
rest is deleted within seconds, while a bridge runs. Of a damaged file, whatever can be read."""

_VERIFY: Final = """\
Look for damage: SQLite checks its file, and every stored batch is compared with its checksum. Exit status 1 if something is
lost."""

_BACKLOG: Final = """\
What waits at each sink: events that it has not got yet (pending, and of those retrying), its dead letters, the age of the
oldest pending event, how many it is given per second, and when nothing will be pending any more if it goes on like that."""

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - argparse has no public name for it


def add_commands(subparsers: Subparsers, commands: Mapping[str, tuple[str, str]]) -> dict[str, argparse.ArgumentParser]:
    """Add commands, each with its purpose and an example, to the command line; return their parsers."""
    return {
        name: subparsers.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, (text, example) in commands.items()
    }


def add(subparsers: Subparsers) -> None:
    """Add the commands that look inside to the command line."""
    parsers = add_commands(
        subparsers,
        {
            "dead-letters": ("look at, replay and drop what sinks could not deliver", _EXAMPLES_LETTERS),
            "backlog": ("show what waits at each sink, and for how long", "event-bridge backlog"),
            "journal": ("verify, export and prune the journal", _EXAMPLES_JOURNAL),
            "quarantine": ("look at messages that are no events", "event-bridge quarantine list"),
        },
    )
    _add_dead_letters(parsers["dead-letters"])
    _add_backlog(parsers["backlog"])
    _add_journal(parsers["journal"])
    _add_quarantine(parsers["quarantine"])


_EXAMPLES_LETTERS: Final = """\
event-bridge dead-letters list --sink alerts --since 2h
  event-bridge dead-letters show 17
  event-bridge dead-letters replay --sink alerts --dry-run
  event-bridge dead-letters drop --reason too_old --yes"""

_EXAMPLES_JOURNAL: Final = """\
event-bridge journal verify
  event-bridge journal export --since 1h --type container | head
  event-bridge journal export --journal journal.db.damaged-20261123T100000 --output saved.jsonl"""


def run(args: argparse.Namespace) -> int:
    """Do what was asked; return the exit status."""
    return int(args.do(args))


def _add_dead_letters(parser: argparse.ArgumentParser) -> None:
    add = _subcommands(parser)
    listing = add("list", "print them, oldest first", "event-bridge dead-letters list --sink alerts --since 2h")
    listing.set_defaults(do=lambda a: dead_letters.show_list(_target(a), _selection(a), as_json=a.json))
    one = add("show", "print everything about one", "event-bridge dead-letters show 17")
    one.add_argument("key", type=_key, metavar="UUID|ID", help="the event's uuid, or the number that list shows")
    one.set_defaults(do=lambda a: dead_letters.show_one(_target(a), a.key, as_json=a.json))
    again = add("replay", "send them to their sinks once more", "event-bridge dead-letters replay --sink alerts", _REPLAY)
    again.set_defaults(do=_replay)
    gone = add("drop", "delete them for ever", "event-bridge dead-letters drop --reason too_old --yes", _DROP)
    gone.set_defaults(do=_drop)
    for each in (listing, again, gone):
        _add_filters(each)
    for each in (again, gone):
        each.add_argument("ids", nargs="*", type=_id, metavar="ID", help="only these, by the numbers that list shows")
        each.add_argument("--all", action="store_true", help="all of them; needed if nothing says which")
        each.add_argument("--dry-run", action="store_true", help="only show which")
    again.add_argument(
        "--patience", type=_seconds, default=60.0, metavar="TIME", help="give a sink up that took none for so long (60s)"
    )
    again.add_argument("--wait", action="store_true", help="follow them until each is delivered or a dead letter again")
    gone.add_argument("--yes", action="store_true", help="do not ask")
    for each in (listing, one):
        each.add_argument("--json", action="store_true", help="a line of JSON for each, with the event")
        _add_target(each, with_journal=True)
    for each in (again, gone):
        _add_target(each, with_journal=False)


def _add_backlog(parser: argparse.ArgumentParser) -> None:
    parser.description = _BACKLOG + _WHERE
    parser.add_argument("--json", action="store_true", help="a line of JSON for each sink")
    parser.add_argument(
        "--interval", type=_seconds, default=2.0, metavar="TIME", help="between the two looks that tell the rates (2s)"
    )
    _add_target(parser, with_journal=True)
    parser.set_defaults(do=lambda a: backlog.backlog(_target(a), interval=a.interval, as_json=a.json))


def _add_journal(parser: argparse.ArgumentParser) -> None:
    add = _subcommands(parser)
    verify = add("verify", "look for damage", "event-bridge journal verify", _VERIFY)
    verify.set_defaults(do=lambda a: journal.verify(_target(a)))
    export = add("export", "write stored events as lines of JSON", "event-bridge journal export --output events.jsonl", _EXPORT)
    export.add_argument("--output", type=Path, metavar="FILE", help="where to (standard output)")
    export.add_argument("--after", type=_id, default=0, metavar="PLACE", help="only events after this place in the journal")
    export.add_argument("--since", type=_moment, metavar="TIME", help="only events received then or later; as for dead letters")
    export.add_argument("--type", action="append", default=[], metavar="TYPE", help="only of this type; repeatable, or a,b")
    export.set_defaults(do=lambda a: journal.export(_target(a), _wanted(a), a.output))
    prune = add("prune", "delete now what nobody needs, as a running bridge does every second", "event-bridge journal prune")
    prune.set_defaults(do=lambda a: journal.prune(_target(a)))
    for each in (verify, export):
        _add_target(each, with_journal=True)
    _add_target(prune, with_journal=False)


def _add_quarantine(parser: argparse.ArgumentParser) -> None:
    add = _subcommands(parser)
    listing = add("list", "print their beginnings", "event-bridge quarantine list")
    listing.add_argument("--json", action="store_true", help="as export does")
    listing.set_defaults(do=lambda a: journal.quarantine(_target(a), as_json=a.json))
    export = add("export", "write all that is kept of them as lines of JSON", "event-bridge quarantine export > messages.jsonl")
    export.set_defaults(do=lambda a: journal.quarantine(_target(a), as_json=True))
    for each in (listing, export):
        _add_target(each, with_journal=True)


def _subcommands(parser: argparse.ArgumentParser) -> Callable[..., argparse.ArgumentParser]:
    parsers = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")

    def add(name: str, text: str, example: str, description: str = "") -> argparse.ArgumentParser:
        return parsers.add_parser(
            name,
            help=text,
            description=(description or text[0].upper() + text[1:] + ".") + _WHERE,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    return add


def _add_target(parser: argparse.ArgumentParser, *, with_journal: bool) -> None:
    group = parser.add_argument_group("where to look")
    group.add_argument("--config", type=Path, metavar="FILE", help="the configuration (see event-bridge --help)")
    other = group.add_mutually_exclusive_group()
    other.add_argument(
        "--url", type=_url, metavar="URL", help="ask this bridge, like http://10.0.0.5:9477; its token from the configuration"
    )
    if with_journal:
        other.add_argument("--journal", type=Path, metavar="FILE", help="read this file; needs no configuration")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which", "all that is said must apply")
    group.add_argument("--sink", metavar="NAME", help="of this sink")
    group.add_argument("--reason", choices=get_args(DeathReason), help="given up for this reason")
    group.add_argument(
        "--since", type=_moment, metavar="TIME", help="given up then or later: 2026-11-23T10:00:00Z, or an age: 2h, 3d"
    )
    group.add_argument("--uuid", type=_uuid, metavar="UUID", help="of this event")
    group.add_argument("--type", metavar="TYPE", help="of events of this type")
    group.add_argument("--limit", type=_id, metavar="N", help="so many at most, oldest first")


def _target(args: argparse.Namespace) -> Target:
    return Target(args.config, args.url, getattr(args, "journal", None))


def _selection(args: argparse.Namespace) -> Selection:
    return Selection(DeadLetterQuery(args.sink, args.reason, args.since, args.uuid, args.type), None, args.limit)


def _chosen(args: argparse.Namespace) -> Selection:
    """Which are to be changed: it takes a word for all of them.

    Raises:
        Refused: Nothing says which.
    """
    selection, name = _selection(args), f"dead-letters {args.subcommand}"
    if args.ids:
        if args.all or selection != Selection(DeadLetterQuery()):
            raise Refused(f"{name}: say which either by numbers or by other options")
        return Selection(DeadLetterQuery(), args.ids)
    if args.all == (selection.query != DeadLetterQuery()):
        raise Refused(
            f"{name}: --all and other options contradict each other"
            if args.all
            else f"{name}: say which: by options like --sink, by numbers, or --all (see --help)"
        )
    return selection


def _replay(args: argparse.Namespace) -> int:
    return dead_letters.replay(_target(args), _chosen(args), dry_run=args.dry_run, patience=args.patience, wait=args.wait)


def _drop(args: argparse.Namespace) -> int:
    return dead_letters.drop(_target(args), _chosen(args), dry_run=args.dry_run, yes=args.yes, ask=confirmation())


def _wanted(args: argparse.Namespace) -> Wanted:
    types = frozenset(value for option in args.type for value in option.split(",") if value)
    return Wanted(args.after, args.since, types)


def _moment(text: str) -> datetime:
    try:
        return parse_time(text, datetime.now(UTC))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    try:
        seconds = duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not seconds:
        raise argparse.ArgumentTypeError("must be more than 0")
    return seconds


def _url(text: str) -> str:
    try:
        Client(text, None)
    except OperationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError("must be a uuid") from None


def _id(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _MORE):
        raise argparse.ArgumentTypeError("must be a whole number")
    return int(text)


def _key(text: str) -> str:
    """A uuid or a number; a uuid of 32 digits is not taken for a number."""
    try:
        return _uuid(text)
    except argparse.ArgumentTypeError:
        pass
    try:
        return str(_id(text))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError("must be a uuid, or the number that list shows") from None
