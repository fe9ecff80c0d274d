"""The command `event-bridge`: arguments in, an exit status out.

Exit status: 0 all went well; 1 something could not be reached or done, or damage was found; 2 the arguments make no sense;
78 the configuration does not; 130 Ctrl-C.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

from bridge import app, logs
from bridge.admin.client import OperationError
from bridge.cli import arguments as inspect_arguments
from bridge.cli import check as checking
from bridge.cli import run as commands
from bridge.cli.argument_types import values
from bridge.cli.check import ConnectFailed
from bridge.cli.dead_letters import Refused
from bridge.cli.health import health
from bridge.cli.listen import Filters, listen
from bridge.cli.run import INTERRUPTED, OptionError
from bridge.journal import JournalError
from bridge.simulator import arguments as simulator_arguments
from bridge.simulator.settings import SimulatorSettings
from config.effective import effective
from config.load import ConfigError, find
from config.schema import json_schema

UNREACHABLE: Final = 1
BAD_ARGUMENTS: Final = 2
BAD_CONFIGURATION: Final = 78
"""EX_CONFIG of sysexits.h: to try again without a change is no use."""

COMMANDS: Final = ("run", "check", "health", "listen", "demo", "simulate", "schema", "completion", *inspect_arguments.COMMANDS)

_DESCRIPTION: Final = """\
Listens to Docker Cloud event streams and Docker Engines, commits every event to a durable journal, and delivers it to
Kafka, MQTT, webhooks and standard output, at least once and in order per resource."""

_EPILOG: Final = """\
first steps:
  event-bridge demo                       see it work: a simulated stream, the bridge, events on standard output
  event-bridge check --config bridge.yaml --connect
  event-bridge run --config bridge.yaml

The configuration is --config, or $BRIDGE_CONFIG, ./bridge.yaml, /etc/event-bridge/bridge.yaml, and BRIDGE_* variables over it:
BRIDGE_SINKS__ALERTS__URL sets sinks.alerts.url. The variables of the original clients (DOCKERCLOUD_USER,
DOCKERCLOUD_APIKEY, ...) are enough for a first run.

while it runs, and after it died:
  event-bridge backlog                    what waits at each sink, and for how long
  event-bridge dead-letters list          what could not be delivered, and why; `replay` sends it again

exit status: 0 all well, 1 something could not be reached or done, or is damaged, 2 wrong arguments, 78 wrong configuration"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (the process's own if None); return its exit status."""
    args = parser().parse_args(arguments)
    if "config" in args and not getattr(args, "journal", None) and sys.stderr.isatty():
        print(f"configuration: {find(args.config, os.environ) or 'variables only'}", file=sys.stderr)
    try:
        return _run(args)
    except ConfigError as error:
        for problem in error.problems:
            print(f"event-bridge: {problem}", file=sys.stderr)
    except (JournalError, OptionError) as error:
        print(f"event-bridge: {error}", file=sys.stderr)
    except (ConnectFailed, OperationError, app.PortError) as error:
        print(f"event-bridge: {error}", file=sys.stderr)
        return UNREACHABLE
    except Refused as error:
        print(f"event-bridge: {error}", file=sys.stderr)
        return BAD_ARGUMENTS
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # A reader like `head` has finished.
        _let_go_of_output()
        return 0
    return BAD_CONFIGURATION


def _run(args: argparse.Namespace) -> int:
    if "do" in args:
        return _look_inside(args)
    logs.configure(getattr(args, "log_format", None) or "auto", "info")
    all_ended = True
    match args.command:
        case "run":
            all_ended = commands.run(args.config, args.log_format)
        case "demo":
            all_ended = commands.demo(args.engine, args.duration, args.rate, args.seed)
        case "listen":
            filters = Filters(*map(values, (args.type, args.object, args.parent)))
            listen(args.config, args.url, args.namespace, filters)
        case "simulate":
            commands.simulate(_simulator_settings(args))
        case "check" | "validate":
            _check(args)
        case "health":
            return health(args.config, ready=args.ready)
        case "schema":
            print(json.dumps(json_schema(), indent=2))
    if not all_ended:
        # A thread hangs in a call to the outside. Its unfinished work is in the journal, so there is no need to wait.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _complete(args: argparse.Namespace) -> int:
    import shtab  # noqa: PLC0415 - it takes every other command 20 ms

    todo = [root := parser()]
    for each in todo:
        for action in each._actions:  # noqa: SLF001 - argparse has no public way to its parts
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            todo += action.choices.values() if isinstance(action.choices, dict) else ()
    print(shtab.complete(root, args.shell))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.print:
        print(effective(args.config), end="")
    else:
        checking.check(args.config, connect=args.connect or args.send, send=args.send)


def _look_inside(args: argparse.Namespace) -> int:
    try:
        status = inspect_arguments.run(args)
        # A closed pipe must be noticed here, not when the interpreter ends.
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _let_go_of_output()
        raise OperationError(f"can't be written: {error.strerror}") from None
    return status


def _let_go_of_output() -> None:
    """Discard unwritten output, about which Python would complain when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """The command line: what it takes, and what `--help` says."""
    root = argparse.ArgumentParser(
        "event-bridge", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root.add_argument("--version", action="version", version=f"event-bridge {app.VERSION}")
    subparsers = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    commands = inspect_arguments.add_commands(
        subparsers,
        {
            "run": ("run the bridge until SIGTERM or Ctrl-C", "event-bridge run --config bridge.yaml"),
            "check": ("validate the configuration", "event-bridge check --config bridge.yaml --connect"),
            "health": ("say whether the bridge works, for probes", "event-bridge health || exit 1"),
            "listen": (
                "print live events of one namespace, one line of JSON each, until Ctrl-C",
                "event-bridge listen --namespace acme --type container,service",
            ),
            "demo": ("see it work: simulator (or a Docker Engine), bridge and stdout sink in one go", "event-bridge demo"),
            "simulate": ("be a Stream API server that makes events up", "event-bridge simulate --rate 100"),
        },
    )
    inspect_arguments.add(subparsers)
    schema = ("print the JSON schema of the configuration", "event-bridge schema > bridge.schema.json")
    completion = (
        "print what a shell needs to complete the commands",
        "event-bridge completion bash > event-bridge.bash",
    )
    others = inspect_arguments.add_commands(subparsers, {"schema": schema, "completion": completion})
    others["completion"].add_argument("shell", choices=("bash", "zsh", "tcsh"))
    others["completion"].set_defaults(do=_complete)
    run, check, live, demo = (commands[name] for name in ("run", "check", "listen", "demo"))
    check.add_argument("--connect", action="store_true", help="open what `run` opens, too: journal, port, streams, sinks")
    check.add_argument("--print", action="store_true", help="only print every value, and where it is from; no secrets")
    check.add_argument("--send", action="store_true", help="deliver a test event to every sink, too (implies --connect)")
    commands["health"].add_argument("--ready", action="store_true", help="whether it can do its job, too (/readyz)")
    for config_user in (run, check, live, commands["health"]):
        config_user.add_argument("--config", type=Path, metavar="FILE", help=inspect_arguments.CONFIG)
    run.add_argument("--log-format", choices=get_args(logs.Format), help="human on a terminal, JSON elsewhere (auto)")
    add = live.add_argument
    add("--url", metavar="URL", help="the service, if not the one of the configuration (wss://ws.cloud.docker.com)")
    add("--namespace", metavar="NAME", help="whose events; the account's own if not given")
    add("--type", action="append", default=[], metavar="TYPE", help="only events of this type; repeatable, or a,b")
    add("--object", action="append", default=[], metavar="URI", help="only events of this resource; repeatable")
    add("--parent", action="append", default=[], metavar="URI", help="only events below this one; repeatable")
    demo.add_argument("--duration", type=float, metavar="S", help="stop after so many seconds; Ctrl-C otherwise")
    demo.add_argument("--engine", metavar="URL", help="follow this Docker Engine instead, like unix:///var/run/docker.sock")
    demo.add_argument("--rate", type=float, default=2.0, metavar="N", help="simulated events per second (2)")
    demo.add_argument("--seed", type=int, default=1, metavar="N", help="same seed, same story (1)")
    simulator_arguments.add(commands["simulate"])
    return root


def _simulator_settings(args: argparse.Namespace) -> SimulatorSettings:
    try:
        return simulator_arguments.settings_of(args)
    except ValueError as error:
        raise OptionError(str(error)) from None
