"""Every rule of `normalize`, on real captures where there are any, and its promises for whatever else may come.

`fixtures/captures.jsonl` holds messages byte for byte as they were published: a container's creation (April 2015), an action on
a container and one on a service (December 2015), all three heard by users of the service's predecessor, and the example
of the documentation (2016).
"""

import json
import re
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.event import (
    CONTROL_TYPES,
    Control,
    Event,
    Malformed,
    Reception,
    age_seconds,
    canonical_datetime,
    fields_of,
    namespace_of,
    normalize,
)

LIMIT = 1_000_000
RECEIVED_AT = "2026-11-23T17:00:00.123456Z"
NOW = datetime(2026, 11, 23, 17, 0, 0, 123456, tzinfo=UTC)
LATER = datetime(2026, 11, 23, 18, 30, tzinfo=UTC)

CAPTURES = (Path(__file__).parent.parent / "fixtures" / "captures.jsonl").read_bytes().splitlines()
CREATED, ACTION, ACTION_ON_SERVICE, DOCUMENTED = CAPTURES

NINE = {"type", "action", "state", "resource_uri", "parents", "uuid", "datetime", "namespace", "received_at"}
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?Z")


# --- helpers -----------------------------------------------------------------------------------------------------------


def take(frame: bytes, namespace: str = "acme", now: datetime = NOW) -> Event:
    """Normalize what must be an event."""
    result = normalize(frame, Reception.at(namespace, now), LIMIT)
    assert isinstance(result, Event), result
    return result


def body(event: Event) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(event.json)
    return decoded


def refuse(frame: bytes, namespace: str = "acme", limit: int = LIMIT) -> str:
    """Normalize what must be malformed; return why it is."""
    result = normalize(frame, Reception.at(namespace, NOW), limit)
    assert isinstance(result, Malformed), result
    assert result.frame == frame
    return result.reason


def message(*without: str, **changes: Any) -> bytes:
    """The documented example with changes."""
    fields = json.loads(DOCUMENTED) | changes
    return json.dumps({name: value for name, value in fields.items() if name not in without}).encode()


def with_suffix(frame: bytes, more: bytes) -> bytes:
    """A message with more text before its closing brace."""
    return frame.removesuffix(b"}") + more + b"}"


def assert_canonical(event: Event) -> None:
    """What is promised of every event, whatever it was made of."""
    assert b"\n" not in event.json
    assert b"\r" not in event.json
    decoded = body(event)
    assert decoded.keys() >= NINE
    assert all(isinstance(decoded[name], str) for name in NINE - {"parents"})
    assert all(isinstance(parent, str) for parent in decoded["parents"])
    assert UUID.fullmatch(decoded["uuid"])
    assert uuid.UUID(decoded["uuid"]).bytes == event.key
    assert TIME.fullmatch(decoded["datetime"])
    assert datetime.fromisoformat(decoded["datetime"]).tzinfo == UTC
    assert decoded["received_at"] == RECEIVED_AT
    assert decoded["type"] == decoded["type"].lower()
    assert decoded["action"] == decoded["action"].lower()
    fields = fields_of(event.json)
    assert {name: getattr(fields, name) for name in NINE} == {name: decoded[name] for name in NINE}


# --- real messages -----------------------------------------------------------------------------------------------------


def test_the_documented_example_keeps_its_bytes_and_gets_our_two_fields() -> None:
    event = take(DOCUMENTED)

    assert event.json == with_suffix(DOCUMENTED, b',"namespace":"acme","received_at":"2026-11-23T17:00:00.123456Z"')
    assert event.dated


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("namespace", ["acme", ""])
def test_every_capture_becomes_a_complete_event(capture: bytes, namespace: str) -> None:
    event = take(capture, namespace)

    assert_canonical(event)
    sent = json.loads(capture)
    for field in ("type", "action", "state", "resource_uri", "parents"):
        assert body(event)[field] == sent[field]


def test_the_capture_of_april_2015_gets_a_uuid_and_the_time_of_its_reception() -> None:
    event = take(CREATED)

    # Pinned: another version of this program must give the same event the same name.
    assert body(event)["uuid"] == "521b700d-ae45-5139-ab43-8086a9d6f2e2"
    assert body(event)["datetime"] == RECEIVED_AT
    assert not event.dated


@pytest.mark.parametrize(("capture", "time"), [(ACTION, "2015-12-07T04:01:01Z"), (ACTION_ON_SERVICE, "2015-12-11T03:58:43Z")])
def test_the_captures_of_december_2015_call_their_time_date(capture: bytes, time: str) -> None:
    event = take(capture)

    assert body(event)["datetime"] == time
    assert "date" not in body(event)
    assert event.dated


def test_the_wide_parents_of_a_real_action_keep_their_order() -> None:
    kinds = [parent.split("/")[3] for parent in body(take(ACTION))["parents"]]

    assert kinds == ["container", "service", "node", "nodecluster"]


# --- uuid --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        "093BA3BB-08DD-48F0-8F12-4D3B85EF85B3",
        "093ba3bb08dd48f08f124d3b85ef85b3",
        "{093ba3bb-08dd-48f0-8f12-4d3b85ef85b3}",
        "urn:uuid:093ba3bb-08dd-48f0-8f12-4d3b85ef85b3",
    ],
)
def test_a_uuid_comes_out_in_its_canonical_form(written: str) -> None:
    event = take(message(uuid=written))

    assert body(event)["uuid"] == "093ba3bb-08dd-48f0-8f12-4d3b85ef85b3"
    assert event.key == take(DOCUMENTED).key == bytes.fromhex("093ba3bb08dd48f08f124d3b85ef85b3")


@pytest.mark.parametrize("written", ["", "abc", "093ba3bb-08dd-48f0-8f12-4d3b85ef85b", "093ba3bb-08dd-48f0-8f12-4d3b85ef85bg"])
def test_a_uuid_that_is_none_makes_a_message_malformed(written: str) -> None:
    assert refuse(message(uuid=written)) == "bad_field"


def test_an_event_without_a_uuid_gets_the_same_one_wherever_and_whenever_it_is_heard() -> None:
    shuffled = json.dumps(dict(reversed(json.loads(CREATED).items())), indent=2).encode()
    null = with_suffix(CREATED, b',"uuid":null')

    heard = [take(CREATED), take(CREATED, "other"), take(CREATED, "", LATER), take(shuffled), take(null)]

    assert len({event.key for event in heard}) == 1


def test_events_without_a_uuid_that_differ_get_different_ones() -> None:
    other = CREATED.replace(b"Starting", b"Running")

    assert take(CREATED).key != take(other).key


def test_a_bridge_behind_a_bridge_names_an_event_like_the_first_one() -> None:
    first = take(CREATED)

    assert take(first.json, "other", LATER).key == first.key


# --- datetime ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2016-02-01T16:47:28Z", "2016-02-01T16:47:28Z"),
        ("2016-02-01t16:47:28z", "2016-02-01T16:47:28Z"),
        ("2015-12-11T03:58:43+00:00", "2015-12-11T03:58:43Z"),
        ("2016-02-01T16:47:28+05:30", "2016-02-01T11:17:28Z"),
        ("2016-02-01T16:47:28-0800", "2016-02-02T00:47:28Z"),
        ("2016-02-01T16:47:28+01", "2016-02-01T15:47:28Z"),
        ("2016-02-01T16:47:28", "2016-02-01T16:47:28Z"),
        ("2016-02-01 16:47:28", "2016-02-01T16:47:28Z"),
        ("2016-02-01T16:47", "2016-02-01T16:47:00Z"),
        ("2016-02-01", "2016-02-01T00:00:00Z"),
        ("2016-02-01T16:47:28.", "2016-02-01T16:47:28Z"),
        ("20160201T164728Z", "2016-02-01T16:47:28Z"),
        # Sub-second digits stay, however many there are.
        ("2016-02-01T16:47:28.5Z", "2016-02-01T16:47:28.5Z"),
        ("2016-02-01T16:47:28.120+01:00", "2016-02-01T15:47:28.120Z"),
        ("2016-02-01T16:47:28,123456789Z", "2016-02-01T16:47:28.123456789Z"),
        # RFC 2822, as the REST API wrote it; the day is not always padded.
        ("Thu, 16 Oct 2014 12:04:08 +0000", "2014-10-16T12:04:08Z"),
        ("Tue, 8 Dec 2015 03:18:18 +0100", "2015-12-08T02:18:18Z"),
        ("Mon, 29 Feb 2016 10:36:25 GMT", "2016-02-29T10:36:25Z"),
        ("Mon, 29 Feb 2016 10:36:25 -0000", "2016-02-29T10:36:25Z"),
        # A year keeps its four digits, also next to a fraction.
        ("0999-02-01T16:47:28.5Z", "0999-02-01T16:47:28.5Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
    ],
)
def test_a_time_comes_out_as_rfc_3339_in_utc(written: str, expected: str) -> None:
    event = take(message(datetime=written))

    assert body(event)["datetime"] == expected
    assert event.dated


UNREADABLE = [
    "",
    "yesterday",
    "1454345248",
    "2016-02-30T16:47:28Z",
    "2016-02-01T16:47:28.\u0663Z",  # A digit, but not one of RFC 3339.
    "9999-12-31T23:59:59-05:00",  # In UTC this is the year 10000.
    "0001-01-01T00:00:00+05:00",
    "2016-02-01T16:47:28." + "1" * 100 + "Z",
]


@pytest.mark.parametrize("written", UNREADABLE)
def test_an_unreadable_time_is_that_of_the_reception(written: str) -> None:
    event = take(message(datetime=written))

    assert body(event)["datetime"] == RECEIVED_AT
    assert not event.dated


@pytest.mark.parametrize("frame", [message("datetime"), message(datetime=None)])
def test_a_missing_time_is_that_of_the_reception(frame: bytes) -> None:
    assert body(take(frame))["datetime"] == RECEIVED_AT
    assert not take(frame).dated


def test_the_older_field_is_read_if_the_newer_one_can_not_be() -> None:
    event = take(message(datetime="yesterday", date="2015-12-11T03:58:43+00:00"))

    assert body(event)["datetime"] == "2015-12-11T03:58:43Z"
    assert "date" not in body(event)


def test_the_older_field_stays_if_it_was_not_used() -> None:
    assert body(take(message(date="2015-12-11")))["date"] == "2015-12-11"
    assert body(take(message("datetime", date="yesterday")))["date"] == "yesterday"


@given(
    st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 12, 31)),  # noqa: DTZ001 - the zone comes below
    st.integers(-23 * 60, 23 * 60),
)
def test_a_time_with_any_offset_stays_the_same_instant(moment: datetime, minutes: int) -> None:
    moment = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))

    written = canonical_datetime(moment.isoformat())

    assert written is not None
    assert datetime.fromisoformat(written) == moment


@given(st.text() | st.from_regex(r"[0-9]{1,4}-[0-9]{1,2}-[0-9]{1,2}.?[0-9:.,]{0,12}([+-][0-9:]{0,6}|Z)?", fullmatch=True))
def test_whatever_is_read_as_a_time_is_written_so_that_anybody_can_read_it(text: str) -> None:
    written = canonical_datetime(text)

    if written is not None:
        assert TIME.fullmatch(written)
        assert datetime.fromisoformat(written).tzinfo == UTC
        assert canonical_datetime(written) == written


# --- type, action, state, parents, unknown fields ----------------------------------------------------------------------


def test_type_and_action_are_lower_case() -> None:
    event = body(take(message(type="Container", action="UPDATE")))

    assert (event["type"], event["action"]) == ("container", "update")


@pytest.mark.parametrize(("kind", "action"), [("volume", "explode"), ("", "create"), ("container", ""), ("7", "7")])
def test_unknown_types_and_actions_pass(kind: str, action: str) -> None:
    event = body(take(message(type=kind, action=action)))

    assert (event["type"], event["action"]) == (kind, action)


@pytest.mark.parametrize(
    "state",
    [
        *("Not Running", "Not running", "Starting", "Running", "Partly running", "Scaling", "Redeploying", "Stopping"),
        *("Stopped", "Terminating", "Terminated", "Init", "Deploying", "Deployed", "Partly deployed", "Empty cluster"),
        *("Unreachable", "Upgrading", "Pending", "In progress", "Canceling", "Canceled", "Success", "Failed"),
        *("Start failed", "Stopped with errors", "Creating", "Started", "", "  ", "\u00dcbel"),
    ],
)
def test_a_state_is_kept_as_it_was_sent(state: str) -> None:
    assert body(take(message(state=state)))["state"] == state
    assert body(take(message("uuid", state=state)))["state"] == state


@pytest.mark.parametrize("frame", [message("parents"), message(parents=None), message(parents=[])])
def test_missing_parents_are_none(frame: bytes) -> None:
    assert body(take(frame))["parents"] == []


def test_what_else_is_missing_is_empty() -> None:
    event = body(take(b'{"type":"container"}'))

    assert (event["action"], event["state"], event["resource_uri"]) == ("", "", "")


UNKNOWN = b',"exit_code":137,"big":123456789012345678901234567890,"rate":1.10,"huge":1e400,"deep":{"a":[null,true,"\xc3\xa9"]}'


@pytest.mark.parametrize("frame", [DOCUMENTED, ACTION, CREATED])
def test_unknown_fields_are_preserved_to_the_digit(frame: bytes) -> None:
    event = take(with_suffix(frame, UNKNOWN))

    assert UNKNOWN in event.json


# --- namespace and reception -------------------------------------------------------------------------------------------


def test_the_stream_s_namespace_comes_before_that_of_the_resource() -> None:
    assert body(take(DOCUMENTED, "acme"))["namespace"] == "acme"


def test_without_one_the_resource_tells_the_namespace() -> None:
    assert body(take(DOCUMENTED, ""))["namespace"] == "user_namespace"


@pytest.mark.parametrize(
    ("resource_uri", "namespace"),
    [
        ("/api/app/v1/acme/container/0b0e3538-88df-4f07-9aed-3a3cc4175076/", "acme"),
        ("/api/infra/v1/acme/node/24e8a5f1-6a7c-4b8f-8a3a-1f3a2a4a5c6d", "acme"),
        # As Docker's own user interface saw it in February 2016, and the predecessor in 2015.
        ("/api/app/v1/service/573e735c-8f0c-4dc2-9836-1d14ed602cb2/", ""),
        ("/api/audit/v1/action/1381b3f4-258f-49ef-9aaf-659b488f151c/", ""),
        ("/api/v1/container/fa159860-9048-4d1e-8655-6285fa9e3fa2/", ""),
        ("/svc/a/", ""),
        ("", ""),
    ],
)
def test_a_resource_uri_may_hold_a_namespace(resource_uri: str, namespace: str) -> None:
    assert namespace_of(resource_uri) == namespace


OURS = [b',"namespace":{"a":1}', b',"n\\u0061mespace":"other"', b',"received_at":7', b',"namespace":"x","received_at":"y"']


@pytest.mark.parametrize("ours", OURS)
def test_what_the_wire_says_of_our_fields_does_not_count(ours: bytes) -> None:
    event = take(with_suffix(DOCUMENTED, ours))

    assert event.json.count(b"namespace") == DOCUMENTED.count(b"namespace") + 1
    assert event.json.count(b"received_at") == 1
    assert (body(event)["namespace"], body(event)["received_at"]) == ("acme", RECEIVED_AT)


@pytest.mark.parametrize("ours", OURS)
def test_our_fields_do_not_change_the_name_of_an_event_without_a_uuid(ours: bytes) -> None:
    assert take(with_suffix(CREATED, ours)).key == take(CREATED).key


def test_a_reception_is_written_in_utc_with_microseconds() -> None:
    moment = datetime(2026, 11, 23, 18, 0, 0, tzinfo=timezone(timedelta(hours=1)))

    assert Reception.at("acme", moment).received_at == "2026-11-23T17:00:00.000000Z"


def test_a_namespace_that_needs_escaping_is_escaped() -> None:
    assert body(take(DOCUMENTED, 'a"\\\n'))["namespace"] == 'a"\\\n'


# --- control frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(CONTROL_TYPES))
@pytest.mark.parametrize("spelled", [str.lower, str.upper, str.title])
def test_control_frames_are_no_events(kind: str, spelled: Callable[[str], str]) -> None:
    for frame in (json.dumps({"type": spelled(kind)}).encode(), message(type=spelled(kind))):
        assert normalize(frame, Reception.at("acme", NOW), LIMIT) == Control(kind)


def test_the_error_that_every_client_knew_means_that_credentials_were_refused() -> None:
    frame = b'{"type": "error", "data": {"errorMessage": "UNAUTHORIZED"}}'

    control = normalize(frame, Reception.at("acme", NOW), LIMIT)

    assert isinstance(control, Control)
    assert control == Control("error", "UNAUTHORIZED")
    assert control.unauthorized


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (b'{"type":"error","data":{"errorMessage":"too many streams"}}', "too many streams"),
        (b'{"type":"error","data":{"errorMessage":["a"]}}', "['a']"),
        (b'{"type":"error","data":{}}', ""),
        (b'{"type":"error","data":"UNAUTHORIZED"}', ""),
        (b'{"type":"error","data":null}', ""),
        (b'{"type":"error"}', ""),
    ],
)
def test_another_error_does_not_mean_that(frame: bytes, text: str) -> None:
    control = normalize(frame, Reception.at("acme", NOW), LIMIT)

    assert isinstance(control, Control)
    assert control == Control("error", text)
    assert not control.unauthorized


def test_a_notification_that_says_unauthorized_is_no_refusal() -> None:
    frame = b'{"type":"user-notification","data":{"errorMessage":"UNAUTHORIZED"}}'

    control = normalize(frame, Reception.at("acme", NOW), LIMIT)

    assert isinstance(control, Control)
    assert not control.unauthorized


# --- malformed messages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "not_json"),
        (b"PING", "not_json"),
        (b'{"type":"container"', "not_json"),
        (b'{"type":"container"} {}', "not_json"),
        (b'{"type":5,', "not_json"),
        (b"\xff\xfe", "not_json"),
        (b'\xef\xbb\xbf{"type":"container"}', "not_json"),
        (with_suffix(DOCUMENTED, b',"x":"\xff"'), "not_json"),
        (with_suffix(DOCUMENTED, b',"\xff":1'), "not_json"),
        (with_suffix(DOCUMENTED, b',"x":"\x01"'), "not_json"),
        (with_suffix(DOCUMENTED, b',"x":"\\ud800"'), "not_json"),
        (with_suffix(DOCUMENTED, b',"x":NaN'), "not_json"),
        (DOCUMENTED.replace(b"Success", b"\xe9"), "not_json"),
        (b"[]", "not_object"),
        (b"null", "not_object"),
        (b'"container"', "not_object"),
        (b"17", "not_object"),
        (b"{}", "bad_field"),
        (message("type"), "bad_field"),
        (message(type=None), "bad_field"),
        (message(type=7), "bad_field"),
        (message(action=7), "bad_field"),
        (message(state={"a": 1}), "bad_field"),
        (message(resource_uri=["/"]), "bad_field"),
        (message(parents="/api/"), "bad_field"),
        (message(parents=[1]), "bad_field"),
        (message(parents=[None]), "bad_field"),
        (message(uuid=7), "bad_field"),
        (message(datetime=1454345248), "bad_field"),
        (message(date=True), "bad_field"),
    ],
)
@pytest.mark.parametrize("namespace", ["acme", ""])
def test_what_is_no_event_is_malformed_for_a_reason(frame: bytes, reason: str, namespace: str) -> None:
    assert refuse(frame, namespace) == reason


def test_an_event_may_be_as_large_as_the_limit_and_no_larger() -> None:
    assert isinstance(normalize(DOCUMENTED, Reception.at("acme", NOW), len(DOCUMENTED)), Event)
    assert refuse(DOCUMENTED, limit=len(DOCUMENTED) - 1) == "too_large"


def nested(depth: int) -> bytes:
    """An event of this depth, with brackets in a string that must not count."""
    inside = b"[" * (depth - 1) + b'"' + b"[" * 1000 + b'\\""' + b"]" * (depth - 1)
    return with_suffix(DOCUMENTED, b',"x":' + inside)


def in_deep(calls: int, function: Callable[[], Any]) -> Any:
    """Call a function from deep inside of others, as somebody's sink may do."""
    return function() if calls == 0 else in_deep(calls - 1, function)


@pytest.mark.parametrize("namespace", ["acme", ""])
def test_what_was_let_in_can_be_read_from_deep_inside_a_sink(namespace: str) -> None:
    event = take(nested(500), namespace)

    assert in_deep(200, lambda: fields_of(event.json)).state == "Success"
    assert_canonical(event)


@pytest.mark.parametrize("depth", [501, 900, 990, 5000, 100_000])
@pytest.mark.parametrize("namespace", ["acme", ""])
def test_what_is_nested_too_deep_for_others_is_malformed(depth: int, namespace: str) -> None:
    assert refuse(nested(depth), namespace) == "not_json"


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n"])
def test_a_message_of_several_lines_becomes_one_line(line_break: str) -> None:
    pretty = json.dumps(json.loads(DOCUMENTED), indent=2).replace("\n", line_break).encode()

    assert_canonical(take(pretty))
    assert body(take(pretty)) == body(take(DOCUMENTED))


# --- promises for everything -------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ANY_CASE = st.sampled_from(["container", "Container", "action", "ERROR", "auth", "\u0130", "\u01c5", "\u03a3", ""]) | st.text()
UUIDS = st.uuids().map(str) | st.uuids().map(lambda made: str(made).upper()) | st.just("abc")
TIMES = st.datetimes().map(datetime.isoformat) | st.sampled_from(["2016-02-01T16:47:28Z", *UNREADABLE])
# Any subset of the fields, mostly of the right kind, in any order, with others in between.
MESSAGES = (
    st.fixed_dictionaries(
        {"type": ANY_CASE},
        optional={
            "action": ANY_CASE | st.none(),
            "state": st.text() | st.none(),
            "resource_uri": st.sampled_from(["/api/app/v1/acme/container/7/", "/api/app/v1/service/7/"]) | st.text(),
            "parents": st.lists(st.text(), max_size=3) | st.none(),
            "uuid": UUIDS | st.none() | JSON,
            "datetime": TIMES | st.none() | JSON,
            "date": TIMES | st.none(),
            "data": JSON,
            "namespace": JSON,
            "received_at": JSON,
            "exit_code": JSON,
        },
    )
    .flatmap(lambda fields: st.permutations(list(fields.items())))
    .map(dict)
)
# All seven fields in the form that keeps its bytes, with others in between.
CANONICAL = st.builds(
    lambda known, other: other | known,
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["container", "volume"]),
            "action": st.sampled_from(["create", "update"]),
            "state": st.text(),
            "resource_uri": st.text(),
            "parents": st.lists(st.text(), max_size=3),
            "uuid": st.uuids().map(str),
            "datetime": st.sampled_from(["2016-02-01T16:47:28Z", "2016-02-01T16:47:28.123456789Z"]),
        }
    ),
    st.dictionaries(st.text().filter(lambda name: name not in NINE | {"date", "data"}), JSON, max_size=3),
)
# The documented example with a piece of it replaced by junk.
DAMAGED = st.builds(
    lambda start, junk, end: DOCUMENTED[:start] + junk + DOCUMENTED[end:],
    st.integers(0, len(DOCUMENTED)),
    st.binary(max_size=6) | st.text(max_size=6).map(str.encode),
    st.integers(0, len(DOCUMENTED)),
)
NAMESPACES = st.sampled_from(["", "acme"])
ENCODERS = st.sampled_from(
    [
        lambda fields: json.dumps(fields).encode(),
        lambda fields: json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(),
        lambda fields: json.dumps(fields, indent=1).encode(),
    ]
)


@given(st.binary() | DAMAGED, NAMESPACES)
@settings(max_examples=500, deadline=None)
def test_no_bytes_make_it_raise_or_give_anything_but_a_canonical_event(frame: bytes, namespace: str) -> None:
    result = normalize(frame, Reception.at(namespace, NOW), LIMIT)

    if isinstance(result, Event):
        assert_canonical(result)


@given(MESSAGES, ENCODERS, NAMESPACES)
@settings(max_examples=300, deadline=None)
def test_every_event_is_canonical_and_stays_as_it_is(
    fields: dict[str, Any], encode: Callable[[Any], bytes], namespace: str
) -> None:
    first = normalize(encode(fields), Reception.at(namespace, NOW), LIMIT)

    if isinstance(first, Event):
        assert_canonical(first)
        again = take(first.json, namespace, LATER)
        assert again.key == first.key
        assert again.dated
        assert body(again) == body(first) | {"received_at": "2026-11-23T18:30:00.000000Z"}


@given(CANONICAL, NAMESPACES)
@settings(deadline=None)
def test_a_message_that_keeps_its_bytes_means_what_a_rewritten_one_means(fields: dict[str, Any], namespace: str) -> None:
    frame = json.dumps(fields).encode()

    kept, rewritten = take(frame, namespace), take(b"\n" + frame, namespace)

    assert (kept.json.startswith(frame.removesuffix(b"}"))) == bool(namespace)
    assert (rewritten.key, rewritten.dated, body(rewritten)) == (kept.key, kept.dated, body(kept))


@given(CANONICAL, ENCODERS, NAMESPACES)
@settings(deadline=None)
def test_whatever_is_unknown_is_preserved(fields: dict[str, Any], encode: Callable[[Any], bytes], namespace: str) -> None:
    event = body(take(encode(fields), namespace))

    assert {name: value for name, value in event.items() if name in fields} == fields
    assert event.keys() == fields.keys() | NINE


@pytest.mark.parametrize(
    ("head", "repeated"),
    [
        (b'{"type":"', b'\\"'),
        (b'{"type":"', b'{\\"a\\":'),
        (b'["', b'"x'),
        (b'{"type":"a","state":"', b"\\\\"),
        (b"", b'"'),
        (b"", b'{"'),
    ],
)
def test_a_message_that_ends_within_a_string_is_refused_in_linear_time(head: bytes, repeated: bytes) -> None:
    def seconds(count: int) -> float:
        # The depth is measured only if there are many brackets.
        frame = head + b"[" * 1000 + repeated * count
        began = time.perf_counter()
        assert isinstance(normalize(frame, Reception.at("acme", NOW), len(frame)), Malformed)
        return time.perf_counter() - began

    short, long = (min(seconds(count) for _ in range(3)) for count in (5_000, 80_000))

    assert long < 16 * 8 * short, "16 times the length takes about 16 times as long, not 256 times"


@pytest.mark.parametrize("written", ["0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "0001-01-01T00:00:00+00:00"])
def test_a_time_that_can_not_be_true_makes_no_age_of_two_thousand_years(written: str) -> None:
    event = take(json.dumps(json.loads(DOCUMENTED) | {"datetime": written}).encode())

    assert fields_of(event.json).datetime == written.replace("+00:00", "Z")
    assert age_seconds(event.json, NOW.timestamp() + 5.0) == 5.0


@pytest.mark.parametrize(
    ("written", "seconds"), [("1970-01-01T00:00:01Z", 1.0), ("1970-01-01T00:00:01.5Z", 1.5), ("1969-12-31T23:59:59Z", -1.0)]
)
def test_the_age_of_an_event_is_by_its_own_time(written: str, seconds: float) -> None:
    event = normalize(DOCUMENTED, Reception.at("acme", NOW), LIMIT)
    assert isinstance(event, Event)
    json_ = event.json.replace(fields_of(event.json).datetime.encode(), written.encode())

    assert age_seconds(json_, 100.0) == 100.0 - seconds
    assert age_seconds(json_, -2.0) == age_seconds(None, 100.0) == 0.0
