"""Feeds all parsers with mutated inputs for so many seconds; what harms one is printed and written to a file.

usage: python -m tests.fuzz SECONDS [SEED]
"""

import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

from tests.fuzz.mutation import mutations
from tests.fuzz.parsers import PARSERS

LONGEST_SECONDS = 2


def main(seconds: float, seed: int) -> int:
    """Fuzz; return the exit status."""

    def too_slow(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"took more than {LONGEST_SECONDS} s")

    signal.signal(signal.SIGALRM, too_slow)
    until, inputs, harmful = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until and harmful < 10:
        for name, (run, seeds, _) in PARSERS.items():
            for data in mutations(seeds, 200, seed):
                inputs += 1
                signal.alarm(LONGEST_SECONDS)
                try:
                    run(data)
                except Exception:  # noqa: BLE001 - that is what it looks for
                    harmful += 1
                    path = Path(f"fuzz-{name.replace(' ', '-')}-{harmful}.bin")
                    path.write_bytes(data)
                    sys.stdout.write(f"{name}: {path}\n{traceback.format_exc()}\n")
                finally:
                    signal.alarm(0)
        seed += 1
    sys.stdout.write(f"{inputs:,} inputs for {len(PARSERS)} parsers, the last seed was {seed - 1}: {harmful} did harm\n")
    return 1 if harmful else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
