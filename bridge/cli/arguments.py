"""The arguments of the commands that look inside: what they take, what `--help` teaches, and what is called then."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias, get_args

from bridge.cli import backlog, dead_letters, journal, sinks
from bridge.cli.argument_types import key, moment, number, place_or_moment, seconds, url, uuid_text, values
from bridge.cli.dead_letters import Refused, Selection
from bridge.cli.journal import Wanted
from bridge.cli.output import confirmation
from bridge.cli.target import Target
from bridge.journal import DeadLetterQuery, DeathReason

COMMANDS: Final = ("dead-letters", "backlog", "journal", "quarantine", "rewind", "skip", "retry-now")

CONFIG: Final = "the configuration (see event-bridge --help)"

_ALIASES: Final = {"check": ("validate",)}

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

_REWIND: Final = """\
Deliver events to a sink again that it has had, in order, from a time of reception or a place in the journal on. There is as
much as journal.retention keeps, or as another sink has not got yet. New events follow them."""

_SKIP: Final = """\
Set the event after a sink's cursor aside as a dead letter. For an event at which a receiver breaks whenever it is sent, so that
the sink gets no further. Asks at a terminal; a script has to say --yes."""

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - argparse has no public name for it


def add_commands(subparsers: Subparsers, commands: Mapping[str, tuple[str, str]]) -> dict[str, argparse.ArgumentParser]:
    """Add commands, each with its purpose and an example, to the command line; return their parsers."""
    return {
        name: subparsers.add_parser(
            name,
            aliases=_ALIASES.get(name, ()),
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
            "journal": ("back up, verify, export and prune the journal", _EXAMPLES_JOURNAL),
            "rewind": ("deliver stored events to a sink again", "event-bridge rewind --sink audit --to 2h --dry-run"),
            "retry-now": ("let streams and sinks try again now", "event-bridge retry-now --stream acme"),
            "skip": ("set the event aside that a sink can't get past", "event-bridge skip --sink alerts"),
            "quarantine": ("look at messages that are no events", "event-bridge quarantine list"),
        },
    )
    _add_dead_letters(parsers["dead-letters"])
    _add_backlog(parsers["backlog"])
    _add_journal(parsers["journal"])
    _add_quarantine(parsers["quarantine"])
    _add_moves(parsers["rewind"], parsers["skip"])
    again = parsers["retry-now"]
    again.add_argument("--stream", action="append", default=[], metavar="NAME", help="only this stream; repeatable")
    again.add_argument("--sink", action="append", default=[], metavar="NAME", help="only this sink; repeatable")
    _add_target(again, with_journal=False)
    again.set_defaults(do=lambda a: sinks.retry_now(_target(a), a.stream, a.sink))


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
    one.add_argument("key", type=key, metavar="UUID|ID", help="the event's uuid, or the number that list shows")
    one.set_defaults(do=lambda a: dead_letters.show_one(_target(a), a.key, as_json=a.json))
    again = add("replay", "send them to their sinks once more", "event-bridge dead-letters replay --sink alerts", _REPLAY)
    again.set_defaults(do=_replay)
    gone = add("drop", "delete them for ever", "event-bridge dead-letters drop --reason too_old --yes", _DROP)
    gone.set_defaults(do=_drop)
    for each in (listing, again, gone):
        _add_filters(each)
    for each in (again, gone):
        each.add_argument("ids", nargs="*", type=number, metavar="ID", help="only these, by the numbers that list shows")
        each.add_argument("--all", action="store_true", help="all of them; needed if nothing says which")
        each.add_argument("--dry-run", action="store_true", help="only show which")
    again.add_argument(
        "--patience", type=seconds, default=60.0, metavar="TIME", help="give a sink up that took none for so long (60s)"
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
        "--interval", type=seconds, default=2.0, metavar="TIME", help="between the two looks that tell the rates (2s)"
    )
    _add_target(parser, with_journal=True)
    parser.set_defaults(do=lambda a: backlog.backlog(_target(a), interval=a.interval, as_json=a.json))


def _add_journal(parser: argparse.ArgumentParser) -> None:
    add = _subcommands(parser)
    verify = add("verify", "look for damage", "event-bridge journal verify", _VERIFY)
    verify.set_defaults(do=lambda a: journal.verify(_target(a)))
    export = add("export", "write stored events as lines of JSON", "event-bridge journal export --output events.jsonl", _EXPORT)
    export.add_argument("--output", type=Path, metavar="FILE", help="where to (standard output)")
    export.add_argument("--after", type=number, default=0, metavar="PLACE", help="only events after this place in the journal")
    export.add_argument("--since", type=moment, metavar="TIME", help="only events received then or later; as for dead letters")
    export.add_argument("--type", action="append", default=[], metavar="TYPE", help="only of this type; repeatable, or a,b")
    export.set_defaults(do=lambda a: journal.export(_target(a), _wanted(a), a.output))
    prune = add("prune", "delete now what nobody needs, as a running bridge does every second", "event-bridge journal prune")
    prune.set_defaults(do=lambda a: journal.prune(_target(a)))
    copy = add("backup", "copy it, also beside a running bridge, and verify the copy", "event-bridge journal backup backup.db")
    copy.add_argument("file", type=Path, metavar="FILE", help="the copy; must not exist")
    copy.set_defaults(url=None, do=lambda a: journal.backup(_target(a), a.file))
    copy.add_argument("--config", type=Path, metavar="FILE", help=CONFIG)
    copy.add_argument("--journal", type=Path, metavar="FILE", help="copy this file; needs no configuration")
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


def _add_moves(rewind: argparse.ArgumentParser, skip: argparse.ArgumentParser) -> None:
    rewind.description, skip.description = _REWIND + _WHERE, _SKIP + _WHERE
    for each in (rewind, skip):
        each.add_argument("--sink", required=True, metavar="NAME", help="the sink")
        _add_target(each, with_journal=False)
    rewind.add_argument(
        "--to",
        required=True,
        type=place_or_moment,
        metavar="TIME|PLACE",
        help="from there: 2026-11-23T10:00:00Z, 2h, or a place",
    )
    rewind.add_argument("--dry-run", action="store_true", help="only say how many events that are")
    skip.add_argument("--yes", action="store_true", help="do not ask")
    rewind.set_defaults(do=lambda a: sinks.rewind(_target(a), a.sink, a.to, dry_run=a.dry_run))
    skip.set_defaults(do=lambda a: sinks.skip(_target(a), a.sink, yes=a.yes, ask=confirmation()))


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
    group.add_argument("--config", type=Path, metavar="FILE", help=CONFIG)
    other = group.add_mutually_exclusive_group()
    other.add_argument(
        "--url", type=url, metavar="URL", help="ask this bridge, like http://10.0.0.5:9477; its token from the configuration"
    )
    if with_journal:
        other.add_argument("--journal", type=Path, metavar="FILE", help="read this file; needs no configuration")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which", "all that is said must apply")
    group.add_argument("--sink", metavar="NAME", help="of this sink")
    group.add_argument("--reason", choices=get_args(DeathReason), help="given up for this reason")
    group.add_argument(
        "--since", type=moment, metavar="TIME", help="given up then or later: 2026-11-23T10:00:00Z, or an age: 2h, 3d"
    )
    group.add_argument("--uuid", type=uuid_text, metavar="UUID", help="of this event")
    group.add_argument("--type", metavar="TYPE", help="of events of this type")
    group.add_argument("--limit", type=number, metavar="N", help="so many at most, oldest first")


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
    return Wanted(args.after, args.since, frozenset(values(args.type)))
