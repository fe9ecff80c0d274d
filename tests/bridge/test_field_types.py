"""Durations, sizes, names, addresses and URLs as people write them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from bridge.field_types import (
    Bytes,
    EngineUrl,
    Listen,
    Name,
    OptionalFile,
    Seconds,
    StreamUrl,
    UrlPath,
    is_loopback,
    parse_time,
)

SECONDS: TypeAdapter[float] = TypeAdapter(Seconds)
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
BYTES: TypeAdapter[int] = TypeAdapter(Bytes)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0.0),
        (2.5, 2.5),
        ("0.25", 0.25),
        ("500ms", 0.5),
        ("10s", 10.0),
        ("10 s", 10.0),
        (" 5m ", 300.0),
        ("24h", 86400.0),
        ("1.5h", 5400.0),
        ("3d", 259200.0),
        ("1h30m", 5400.0),
        ("1d12h", 129600.0),
        ("1m500ms", 60.5),
    ],
)
def test_a_duration_is_a_number_or_a_text_with_a_unit(written: object, seconds: float) -> None:
    assert SECONDS.validate_python(written) == seconds


@pytest.mark.parametrize(
    "written", ["", "s", "soon", "-5s", "1h30", "1h 30m x", "5 weeks", "5M", "1e3", "inf", "\u0663s", True, False]
)
def test_what_is_no_duration_is_refused_with_the_way_to_write_one(written: object) -> None:
    with pytest.raises(ValidationError, match=r"not a duration: write seconds .* \(500ms, 24h, 1h30m\)"):
        SECONDS.validate_python(written)


@pytest.mark.parametrize("written", [float("inf"), float("nan"), "9" * 400])
def test_a_duration_without_an_end_is_refused(written: object) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        SECONDS.validate_python(written)


@pytest.mark.parametrize("written", [None, [5], {"s": 5}])
def test_another_kind_of_value_is_refused(written: object) -> None:
    with pytest.raises(ValidationError):
        SECONDS.validate_python(written)


@given(st.floats(0, 1e9))
def test_a_number_of_seconds_stays_as_it_is(seconds: float) -> None:
    assert SECONDS.validate_python(seconds) == seconds


def test_the_schema_of_a_duration_allows_both_forms() -> None:
    number, text = SECONDS.json_schema()["anyOf"]

    assert number == {"type": "number", "minimum": 0}
    assert text["type"] == "string"


@pytest.mark.parametrize(
    ("written", "count"), [(512, 512), ("513", 513), ("64KiB", 65536), ("1GiB", 1 << 30), ("1MB", 1_000_000), ("1.5 kB", 1500)]
)
def test_a_size_is_a_number_or_a_text_with_a_unit(written: object, count: int) -> None:
    assert BYTES.validate_python(written) == count


@pytest.mark.parametrize("written", ["", "much", -1, "-2", 1.5, None])
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(ValidationError):
        BYTES.validate_python(written)


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        (Name, "acme-2_b"),
        (Listen, "127.0.0.1:9477"),
        (Listen, "[::1]:0"),
        (StreamUrl, "wss://ws.cloud.docker.com"),
        (StreamUrl, "ws://127.0.0.1:8750"),
        (EngineUrl, "unix:///var/run/docker.sock"),
        (EngineUrl, "tcp://10.0.0.5:2376"),
        (UrlPath, "/api/audit/v1/events/"),
    ],
)
def test_what_is_meant_is_taken_as_it_is(kind: Any, good: str) -> None:
    assert TypeAdapter(kind).validate_python(good) == good


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (Name, "Acme"),
        (Name, "a__b"),
        (Name, "2acme"),
        (Listen, "9477"),
        (Listen, "127.0.0.1:70000"),
        (StreamUrl, "https://ws.cloud.docker.com"),
        (StreamUrl, "wss://bob:secret@ws.cloud.docker.com"),
        (EngineUrl, "/var/run/docker.sock"),
        (EngineUrl, "http://10.0.0.5"),
        (UrlPath, "events"),
    ],
)
def test_what_can_not_be_meant_is_refused_without_repeating_a_secret(kind: Any, bad: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(kind).validate_python(bad)

    assert "secret" not in refused.value.errors(include_input=False)[0]["msg"]


@pytest.mark.parametrize(("written", "file"), [("certs/ca.pem", Path("certs/ca.pem")), ("", None), (None, None)])
def test_a_file_may_be_left_out_also_by_an_unset_variable(written: str | None, file: Path | None) -> None:
    assert TypeAdapter(OptionalFile).validate_python(written) == file


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


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "::ffff:127.0.0.1", "localhost", "LocalHost"])
def test_loopback_has_many_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.5", "2001:db8::1", "::ffff:10.0.0.5", "fe80::1%eth0", "localhost.evil.example", ""])
def test_everything_else_is_no_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("written", "size"), [("2Gi", 2 << 30), ("64Ki", 64 << 10), ("1.5Mi", 3 << 19), ("2GiB", 2 << 30), (7, 7)]
)
def test_a_size_is_written_as_by_kubernetes_too(written: object, size: int) -> None:
    assert BYTES.validate_python(written) == size


def test_a_port_alone_is_that_of_all_addresses() -> None:
    assert TypeAdapter(Listen).validate_python(":9477") == "0.0.0.0:9477"
