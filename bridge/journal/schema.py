"""The tables of the journal's file, and how those of an older format become those of this one."""

import sqlite3
from typing import Final

import msgspec

from bridge.event import fields_of
from bridge.journal.queues import checksum

SCHEMA_VERSION: Final = 2

_SCHEMA: Final = """
CREATE TABLE meta (next_seq INTEGER NOT NULL);
INSERT INTO meta VALUES (1);
CREATE TABLE batches (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, received REAL NOT NULL, crc INTEGER NOT NULL,
    body BLOB NOT NULL);
CREATE TABLE seen (first INTEGER PRIMARY KEY, received REAL NOT NULL, uuids BLOB NOT NULL);
CREATE TABLE streams (name TEXT PRIMARY KEY, received INTEGER NOT NULL, accepted INTEGER NOT NULL,
    duplicate INTEGER NOT NULL, position TEXT) WITHOUT ROWID;
CREATE TABLE malformed (stream TEXT, reason TEXT, count INTEGER NOT NULL, PRIMARY KEY (stream, reason)) WITHOUT ROWID;
CREATE TABLE quarantine (id INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT NOT NULL, received REAL NOT NULL,
    reason TEXT NOT NULL, frame BLOB NOT NULL);
CREATE TABLE sinks (name TEXT PRIMARY KEY, start INTEGER NOT NULL, cursor INTEGER NOT NULL, delivered INTEGER NOT NULL,
    filtered INTEGER NOT NULL, dead INTEGER NOT NULL, dropped INTEGER NOT NULL, replayed INTEGER NOT NULL DEFAULT 0,
    discarded INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE retries (sink TEXT, seq INTEGER, received REAL NOT NULL, json BLOB NOT NULL, lane TEXT NOT NULL,
    attempts INTEGER NOT NULL, due REAL NOT NULL, since REAL NOT NULL, reason TEXT NOT NULL, error TEXT NOT NULL,
    crc INTEGER NOT NULL DEFAULT -1, PRIMARY KEY (sink, seq));
CREATE INDEX retries_by_lane ON retries (sink, lane, seq, due);
CREATE TABLE dead_letters (id INTEGER PRIMARY KEY AUTOINCREMENT, sink TEXT NOT NULL, seq INTEGER NOT NULL,
    received REAL NOT NULL, json BLOB NOT NULL, attempts INTEGER NOT NULL, first_failed REAL NOT NULL, died REAL NOT NULL,
    reason TEXT NOT NULL, error TEXT NOT NULL, lane TEXT NOT NULL DEFAULT '', crc INTEGER NOT NULL DEFAULT -1);
CREATE INDEX dead_letters_by_sink ON dead_letters (sink, id);
"""

# What format 2 says of a row of format 1. A dead letter gets the lane that keeps the most order.
_LETTER_LANE: Final = "coalesce(lane_of(CAST(json AS BLOB)), '')"
# As bytes: a text that a flipped bit made unreadable must not keep the rest from being read.
_CRC: Final = (
    "row_crc(CAST(sink AS BLOB), seq, received, CAST(json AS BLOB), CAST({lane} AS BLOB), attempts, {times},"
    " CAST(reason AS BLOB), CAST(error AS BLOB))"
)
_RETRY_CRC: Final = _CRC.format(lane="lane", times="due, since")
_LETTER_CRC: Final = _CRC.format(lane=_LETTER_LANE, times="first_failed, died")

_FROM_1: Final = f"""
ALTER TABLE sinks ADD COLUMN replayed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sinks ADD COLUMN discarded INTEGER NOT NULL DEFAULT 0;
ALTER TABLE retries ADD COLUMN crc INTEGER NOT NULL DEFAULT -1;
UPDATE retries SET crc = {_RETRY_CRC};
ALTER TABLE dead_letters ADD COLUMN lane TEXT NOT NULL DEFAULT '';
ALTER TABLE dead_letters ADD COLUMN crc INTEGER NOT NULL DEFAULT -1;
UPDATE dead_letters SET lane = {_LETTER_LANE}, crc = {_LETTER_CRC};
"""  # noqa: S608 - our own columns

_VIEWS_OF_1: Final = f"""
PRAGMA temp_store=MEMORY;
CREATE TEMP VIEW sinks AS SELECT *, 0 AS replayed, 0 AS discarded FROM main.sinks;
CREATE TEMP VIEW retries AS SELECT *, {_RETRY_CRC} AS crc FROM main.retries;
CREATE TEMP VIEW dead_letters AS SELECT *, {_LETTER_LANE} AS lane, {_LETTER_CRC} AS crc FROM main.dead_letters;
"""  # noqa: S608 - our own columns


def version(db: sqlite3.Connection) -> int:
    """The format of the file; 0 if there is nothing in it yet."""
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    return found


def migrate(db: sqlite3.Connection) -> None:
    """Make the tables, or bring those of an older format to this one, in one transaction."""
    found = version(db)
    if found < 1:
        db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
    elif found < SCHEMA_VERSION:
        _add_functions(db)
        try:
            db.executescript(f"BEGIN IMMEDIATE; {_FROM_1} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        except sqlite3.Error:
            if db.in_transaction:
                db.rollback()
            raise


def show_as_current(db: sqlite3.Connection) -> None:
    """Let a connection see a file of an older format as if it were of this one, and leave the file as it is."""
    if version(db) < SCHEMA_VERSION:
        _add_functions(db)
        db.executescript(_VIEWS_OF_1)


def _add_functions(db: sqlite3.Connection) -> None:
    db.create_function("lane_of", 1, _lane_of, deterministic=True)
    db.create_function("row_crc", 10, _checksum_of, deterministic=True)


def _lane_of(json: bytes) -> str | None:
    """What keeps an event's order: its resource if it has one, else nothing but itself; None if it is no event."""
    try:
        fields = fields_of(json)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return fields.resource_uri or fields.uuid


def _checksum_of(*row: object) -> int:
    """A row's checksum, or one that never fits if its JSON is no event: format 1 had none, so nobody noticed damage."""
    json = row[3]
    return checksum(*row) if isinstance(json, bytes) and _lane_of(json) is not None else -1
