"""`event-bridge` as it is, but that it kills itself at a boundary of a commit: `python -m tests.faults.failpoint run …`.

FAILPOINT says at which: `append:before:3` is before the third commit that stores events, `append:after:3` after it. The kinds
are those of `KINDS`. Nothing of the program is changed but the class of its database connections.
"""

import os
import signal
import sqlite3
import sys
from collections import Counter
from functools import partial
from typing import Any, Final

from bridge.cli import main as cli

KINDS: Final = {
    "INSERT INTO batches": "append",
    "INSERT OR REPLACE INTO sinks": "settle",
    "DELETE FROM batches": "prune",
    "PRAGMA wal_checkpoint(PASSIVE)": "checkpoint",
    "PRAGMA wal_checkpoint(TRUNCATE)": "close",
}
"""Beginnings of the first statement of a transaction, or of a statement of its own, and the work done. Besides: `schema`."""


class Doomed(sqlite3.Connection):
    """A connection that counts commits by their kinds, and kills the process at one of them."""

    def __init__(self, *arguments: Any, at: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._kind, self._when, number = at.split(":")
        self._number = int(number)
        self._counts: Counter[str] = Counter()
        self._now: str | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Run a statement; die before or after it, if it is the one."""
        if sql == "BEGIN IMMEDIATE":
            self._now = None
        kind = next((kind for beginning, kind in KINDS.items() if sql.startswith(beginning)), None)
        if kind in {"checkpoint", "close"}:
            return self._around(kind, lambda: super(Doomed, self).execute(sql, parameters))
        self._now = self._now or kind
        if sql == "COMMIT" and self._now:
            return self._around(self._now, lambda: super(Doomed, self).execute(sql, parameters))
        return super().execute(sql, parameters)

    def executescript(self, sql: str, /) -> sqlite3.Cursor:
        """Make the tables, if it is that: a whole transaction in one script."""
        if not sql.endswith("COMMIT;"):
            return super().executescript(sql)
        super().executescript(sql.removesuffix("COMMIT;"))
        return self._around("schema", lambda: super(Doomed, self).execute("COMMIT"))

    def _around(self, kind: str, action: Any) -> sqlite3.Cursor:
        self._counts[kind] += 1
        due = kind == self._kind and self._counts[kind] == self._number
        if due and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        cursor: sqlite3.Cursor = action()
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return cursor


def main() -> int:
    """Run the command."""
    sqlite3.connect = partial(sqlite3.connect, factory=partial(Doomed, at=os.environ["FAILPOINT"]))  # type: ignore[assignment]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
