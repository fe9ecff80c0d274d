"""What the values of the operations decide by themselves: when a parse_time is."""

from datetime import UTC, datetime, timedelta

import pytest

from bridge.admin.operations import parse_time

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-23T10:00:00Z", datetime(2026, 11, 23, 10, tzinfo=UTC)),
        ("2026-11-23T10:00:00+02:00", datetime(2026, 11, 23, 8, tzinfo=UTC)),
        ("2026-11-23T10:00:00", datetime(2026, 11, 23, 10, tzinfo=UTC)),
        ("2026-11-23", datetime(2026, 11, 23, tzinfo=UTC)),
        ("90s", NOW - timedelta(seconds=90)),
        ("15m", NOW - timedelta(minutes=15)),
        (" 2h ", NOW - timedelta(hours=2)),
        ("1.5d", NOW - timedelta(hours=36)),
    ],
)
def test_a_moment_is_a_time_or_an_age(text: str, expected: datetime) -> None:
    assert parse_time(text, NOW) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2h ago", "-2h", "12", "2026-13-01", "9999999999d", "s", "0001-01-01T00:00+23:00"]
)
def test_anything_else_is_told_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be a time, like 2026-11-23T10:00:00Z, or an age"):
        parse_time(text, NOW)
