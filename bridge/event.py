"""Normalization of raw messages: each becomes an `Event`, a `Control` message or something `Malformed`; pure.

The rules come from the API's documentation and from real captures (docs/events.md). Most messages are already canonical. They
are validated and keep their bytes, with our two fields spliced in before the closing brace; only the others are written anew.
"""

import email.utils
import re
import uuid
from binascii import unhexlify
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "https://ws.cloud.docker.com/api/audit/v1/events/")
"""Root of the uuids that the bridge makes."""

MalformedReason = Literal["not_json", "not_object", "bad_field", "too_large"]

CONTROL_TYPES: Final = frozenset({"auth", "error", "user-notification", "user-notifications"})
"""Message types about the connection or the account, seen in the original clients; never events."""

OLDEST: Final = "2006"  # An earlier time is that of a clock that was not set, or a zero.
# The shape of a canonical uuid, compared after every lower-case hex digit became a zero: a quarter of a regex's time.
_CANONICAL_UUID: Final = b"00000000-0000-0000-0000-000000000000"
_HEX_TO_ZERO: Final = bytes.maketrans(b"0123456789abcdef", b"0" * 16)
# A number is looked for in bytes in an eighth of the time that `b"\n" in` takes.
_NEWLINE: Final = ord("\n")
_RETURN: Final = ord("\r")
_ISO_8601: Final = re.compile(
    r"(?P<seconds>.*?)(?P<fraction>[.,]\d+)?(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?", re.IGNORECASE | re.ASCII
)
_MAX_DEPTH: Final = 500
"""Deepest nesting of an event. Decoders fail near 1,000, earlier in deeper callers; every event must be readable everywhere."""

# A string without an end goes to the end of the message. So no quote is looked at twice, which would take minutes for 100 KB.
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_URI_NAMESPACE: Final = re.compile(r"/api/[a-z]+/v1/(?P<namespace>[^/]+)/[a-z]+/[^/]+/?")


class Reception(msgspec.Struct, frozen=True):
    """Namespace of a batch of messages (empty: each resource URI has it), its time (RFC 3339), and how its events end."""

    namespace: str
    received_at: str
    suffix: bytes

    @classmethod
    def at(cls, namespace: str, now: datetime) -> "Reception":
        """Describe messages received at `now` (timezone-aware) by a stream of `namespace`."""
        received_at = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ours = _encode({"namespace": namespace, "received_at": received_at})
        return cls(namespace, received_at, b"," + ours[1:])


class Event(msgspec.Struct, frozen=True, gc=False):
    """One normalized event.

    Attributes:
        key: The uuid's 16 bytes; events with the same key are duplicates.
        json: The whole event as one line of JSON, without the newline.
        dated: The message had a time; if not, `datetime` is the time of reception.
    """

    key: bytes
    json: bytes
    dated: bool = True


class Control(msgspec.Struct, frozen=True):
    """A message about the connection or the account: `type`, and its text where it has one."""

    type: str
    text: str = ""

    @property
    def unauthorized(self) -> bool:
        """The service refused the credentials after an upgrade (before April 2016)."""
        return self.type == "error" and self.text.upper() == "UNAUTHORIZED"


class Malformed(msgspec.Struct, frozen=True):
    """A message that is no event, with a reason, and its bytes for the quarantine."""

    reason: MalformedReason
    frame: bytes


class Fields(msgspec.Struct, frozen=True, gc=False):
    """The fields of a normalized event, for filters, templates and headers."""

    type: str
    action: str
    state: str
    resource_uri: str
    parents: list[str]
    uuid: str
    datetime: str
    namespace: str
    received_at: str


class _Wire(msgspec.Struct, gc=False):
    """Fields of a message, all of them optional but the type; `date` is `datetime`'s name of 2015."""

    type: str
    action: str | None = None
    state: str | None = None
    resource_uri: str | None = None
    parents: list[str] | None = None
    uuid: str | None = None
    datetime: str | None = None
    date: str | None = None
    data: Raw | UnsetType = UNSET
    namespace: Raw | UnsetType = UNSET
    received_at: Raw | UnsetType = UNSET


_decode_wire: Final = msgspec.json.Decoder(_Wire).decode
# Numbers with a point or an exponent stay as they are written: 1.10 and 1e400 would not survive being a float.
_decode_any: Final = msgspec.json.Decoder(float_hook=Raw).decode
_encode: Final = msgspec.json.Encoder().encode
fields_of: Final = msgspec.json.Decoder(Fields).decode
"""Decode the JSON of a normalized event into its `Fields`."""


def normalize_all(
    messages: Sequence[bytes], namespace: str, now: datetime, max_bytes: int
) -> tuple[list[Event], list[Malformed], list[Control]]:
    """Normalize a batch of messages, received at `now` (timezone-aware) by a stream of `namespace`; keep their order."""
    reception = Reception.at(namespace, now)
    results = [normalize(message, reception, max_bytes) for message in messages]
    events = [result for result in results if type(result) is Event]
    if len(events) == len(results):
        return events, [], []
    malformed = [result for result in results if isinstance(result, Malformed)]
    return events, malformed, [result for result in results if isinstance(result, Control)]


def normalize(frame: bytes, reception: Reception, max_bytes: int) -> Event | Control | Malformed:
    """Classify one message, and make an event uniform.

    Args:
        frame: The payload of one message.
        reception: Namespace and time of its batch.
        max_bytes: A larger message is malformed.
    """
    if len(frame) > max_bytes:
        return Malformed("too_large", frame)
    try:
        if len(frame) > 2 * _MAX_DEPTH:
            _check_depth(frame)
        wire = _decode_wire(frame)
    except msgspec.ValidationError:
        return Malformed(_why_invalid(frame), frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Malformed("not_json", frame)
    if _is_canonical(wire, frame) and reception.namespace:
        return Event(unhexlify(wire.uuid.replace("-", "")), frame.rstrip()[:-1] + reception.suffix)  # type: ignore[union-attr]
    if wire.type.lower() in CONTROL_TYPES:
        return Control(wire.type.lower(), _error_message(wire.data))
    return _rewrite(frame, wire, reception)


def _is_canonical(wire: _Wire, frame: bytes) -> bool:
    """Check that the message can keep its bytes: all seven fields canonical, none of ours, one line of text."""
    return (
        wire.uuid is not None
        and wire.uuid.encode().translate(_HEX_TO_ZERO) == _CANONICAL_UUID
        and wire.datetime is not None
        and canonical_datetime(wire.datetime) == wire.datetime
        and wire.type.islower()
        and wire.type not in CONTROL_TYPES
        and wire.action is not None
        and wire.action.islower()
        and wire.state is not None
        and wire.resource_uri is not None
        and wire.parents is not None
        and wire.namespace is UNSET
        and wire.received_at is UNSET
        and _NEWLINE not in frame
        and _RETURN not in frame
        # The decoder looks at the fields that it knows; the others must be text as well.
        and (frame.isascii() or _is_utf8(frame))
    )


def _rewrite(frame: bytes, wire: _Wire, reception: Reception) -> Event | Malformed:
    try:
        body: dict[str, Any] = _decode_any(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Malformed("not_json", frame)
    for own in ("namespace", "received_at"):
        body.pop(own, None)
    try:
        identity = canonical_uuid(body) if wire.uuid is None else uuid.UUID(wire.uuid)
    except ValueError:
        return Malformed("bad_field", frame)
    time = canonical_datetime(wire.datetime or "")
    if time is None and wire.date is not None:
        time = canonical_datetime(wire.date)
        if time is not None:
            del body["date"]
    body |= {
        "type": wire.type.lower(),
        "action": (wire.action or "").lower(),
        "state": wire.state or "",
        "resource_uri": wire.resource_uri or "",
        "parents": wire.parents or [],
        "uuid": str(identity),
        "datetime": time or reception.received_at,
        "namespace": reception.namespace or namespace_of(wire.resource_uri or ""),
        "received_at": reception.received_at,
    }
    return Event(identity.bytes, _encode(body), dated=time is not None)


def canonical_uuid(body: Mapping[str, Any]) -> uuid.UUID:
    """Name an event that has no uuid (captures of 2015) by its content: the same event always gets the same one."""
    content = {name: value for name, value in body.items() if name != "uuid"}
    return uuid.uuid5(NAMESPACE, msgspec.json.encode(content, order="deterministic").decode())


def canonical_datetime(text: str) -> str | None:
    """Rewrite a time as RFC 3339 in UTC with `Z`; sub-second digits stay as they are. None if it can't be read.

    Understood are ISO 8601 with any offset (none means UTC) and RFC 2822, both seen in captures.
    """
    return _canonical_datetime(text) if len(text) <= 64 else None  # No time is longer.


# The cache is there because the events of one second all carry the same time.
@lru_cache(maxsize=8192)
def _canonical_datetime(text: str) -> str | None:
    match = _ISO_8601.fullmatch(text)
    try:
        if match and match["seconds"][:4].isdigit():
            moment = datetime.fromisoformat(match["seconds"] + (match["zone"] or "Z").upper())
            fraction = (match["fraction"] or "").replace(",", ".")
        else:
            moment, fraction = email.utils.parsedate_to_datetime(text), ""
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    return f"{moment.replace(tzinfo=None).isoformat(timespec='seconds')}{fraction}Z"


def namespace_of(resource_uri: str) -> str:
    """Read the namespace out of a resource URI; empty if it has none (`/api/app/v1/service/<uuid>/`)."""
    match = _URI_NAMESPACE.fullmatch(resource_uri)
    return match["namespace"] if match else ""


def age_seconds(event: bytes | None, now: float) -> float:
    """Return the age of an event (JSON) by its own time if that can be true; 0 without an event, and for one of the future."""
    if event is None:
        return 0.0
    fields = fields_of(event)
    own, here = (now - datetime.fromisoformat(time).timestamp() for time in (fields.datetime, fields.received_at))
    return max(0.0, here if fields.datetime < OLDEST and here >= 0 else own)


def _check_depth(frame: bytes) -> None:
    if frame.count(b"[") + frame.count(b"{") <= _MAX_DEPTH:
        return
    depth = 0
    for bracket in re.findall(rb"[\[\]{}]", _STRING.sub(b"", frame)):
        depth += 1 if bracket in b"[{" else -1
        if depth > _MAX_DEPTH:
            raise RecursionError


def _is_utf8(frame: bytes) -> bool:
    try:
        frame.decode()
    except UnicodeDecodeError:
        return False
    return True


def _why_invalid(frame: bytes) -> MalformedReason:
    try:
        return "bad_field" if isinstance(_decode_any(frame), dict) else "not_object"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "not_json"


def _error_message(data: Raw | UnsetType) -> str:
    """Read the text of `{"type":"error","data":{"errorMessage":"…"}}`, as every client of the API parsed it."""
    if data is UNSET:
        return ""
    try:
        return str(msgspec.json.decode(data, type=dict[str, Any]).get("errorMessage", ""))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
