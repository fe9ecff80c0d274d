"""The options of `event-bridge simulate`."""

import argparse
import os
from dataclasses import fields
from pathlib import Path

from bridge.simulator.settings import SimulatorSettings


def add(parser: argparse.ArgumentParser) -> None:
    """Add them to the command's parser."""
    add = parser.add_argument
    add("--listen", default="127.0.0.1:8750", metavar="HOST:PORT", help="where to listen (127.0.0.1:8750)")
    add("--username", default="", help="the account; its namespace is the path without one")
    add(
        "--api-key", help="ask for this API key, or BRIDGE_SIMULATOR_API_KEY from the environment; none are asked for otherwise"
    )
    add("--namespace", action="append", default=[], help="serve this namespace; repeatable; every one if not given")
    add("--rate", type=float, default=10.0, metavar="N", help="events per second over all namespaces; 0: full speed (10)")
    add("--count", type=int, metavar="N", help="stop making events after so many")
    add("--seed", type=int, metavar="N", help="same seed, same story; another one each time if not given")
    add("--replay", type=Path, metavar="FILE.jsonl", help="send these events once, instead of a made-up story")
    faults = parser.add_argument_group("faults", "all off, unless asked for")
    fault = faults.add_argument
    fault("--duplicates", type=float, default=0.0, metavar="SHARE", help="this share of events comes a second time (0.1)")
    fault(
        "--malformed", type=float, default=0.0, metavar="SHARE", help="after this share of events comes something that is none"
    )
    fault("--fragmented", type=float, default=0.0, metavar="SHARE", help="this share of events comes in several frames")
    fault("--disconnect-every", type=float, metavar="S", help="end connections at this age")
    fault("--silence-after", type=float, metavar="S", help="fall silent at this age, not even answering pings; 0: at once")
    fault("--refuse", type=int, metavar="STATUS", help="refuse every handshake with this HTTP status")
    fault("--retry-after", type=int, metavar="S", help="the Retry-After of such a refusal")
    fault("--error-after", type=float, metavar="S", help="send the UNAUTHORIZED error frame at this age")
    fault("--credentials-expire", type=float, metavar="S", help="refuse the credentials from this time on")


def settings_of(args: argparse.Namespace) -> SimulatorSettings:
    """Return what they say.

    Raises:
        ValueError: One makes no sense; the text names it.
    """
    host, _, port = args.listen.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--listen: must be HOST:PORT, like 127.0.0.1:8750, not {args.listen!r}")
    options = {field.name: getattr(args, field.name) for field in fields(SimulatorSettings) if field.name in args}
    options["api_key"] = args.api_key or os.environ.get("BRIDGE_SIMULATOR_API_KEY")
    try:
        return SimulatorSettings(**options, host=host.strip("[]"), port=int(port), namespaces=tuple(args.namespace))
    except ValueError as error:
        raise ValueError(f"--{str(error).replace('_', '-', 1)}") from None
