"""The decision about a client's handshake with the simulator. Pure."""

import base64
import binascii
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

from bridge.event import namespace_of
from bridge.simulator.settings import NAMESPACE, SimulatorSettings

_PATH: Final = re.compile(rf"/api/audit/v1/(?:(?P<namespace>{NAMESPACE.pattern})/)?events/?")


class Subscription(NamedTuple):
    """What a client wants: any value of a parameter, all parameters; an empty parameter lets every event pass."""

    namespace: str
    types: frozenset[str]
    objects: frozenset[str]
    parents: frozenset[str]

    @classmethod
    def from_query(cls, namespace: str, query: Mapping[str, Sequence[str]]) -> Self:
        """Read the filters of a query; values may be repeated or joined by commas, `parents` is the Go client's `parent`."""

        def values(*names: str) -> frozenset[str]:
            return frozenset(value for name in names for text in query.get(name, ()) for value in text.split(",") if value)

        return cls(namespace, values("type"), values("object"), values("parent", "parents"))

    @property
    def filters(self) -> bool:
        """True if not every event of the namespace passes."""
        return bool(self.types or self.objects or self.parents)

    def accepts(self, event: Mapping[str, Any]) -> bool:
        """Tell whether an event passes; one without a namespace concerns every namespace."""
        uri, parents = str(event.get("resource_uri")), event.get("parents")
        return (
            (not self.types or str(event.get("type")) in self.types)
            and (not self.objects or uri in self.objects)
            and (not self.parents or (isinstance(parents, list) and not self.parents.isdisjoint(map(str, parents))))
            and (not self.namespace or namespace_of(uri) in ("", self.namespace))
        )


class Refusal(NamedTuple):
    """A refused handshake: HTTP status, the error in words, and headers beyond the usual ones."""

    status: int
    error: str
    headers: Mapping[str, str] = {}


def answer_handshake(
    settings: SimulatorSettings, target: str, headers: Mapping[str, str], *, expired: bool
) -> Subscription | Refusal:
    """Decide about a handshake; the websocket's own rules are checked afterwards, by the library.

    Args:
        settings: What is simulated.
        target: The request's path and query.
        headers: The request's headers, their names in lower case.
        expired: Whether credentials have expired.
    """
    if settings.refuse is not None:
        wait = {} if settings.retry_after is None else {"Retry-After": str(settings.retry_after)}
        return Refusal(settings.refuse, "refused on purpose", wait)
    url = urlsplit(target)
    query = parse_qs(url.query)
    match = _PATH.fullmatch(url.path)
    if match is None:
        return Refusal(404, "there is no such resource")
    if expired or not is_authorized(settings, headers.get("authorization"), query):
        return Refusal(401, "not authorized")
    namespace = match["namespace"] or settings.username
    if settings.namespaces and namespace not in {served or settings.username for served in settings.namespaces}:
        return Refusal(404, "there is no such namespace")
    if headers.get("upgrade", "").lower() != "websocket" or headers.get("sec-websocket-version") != "13":
        return Refusal(426, "this is a websocket", {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})
    return Subscription.from_query(namespace, query)


def is_authorized(settings: SimulatorSettings, header: str | None, query: Mapping[str, Sequence[str]]) -> bool:
    """Check credentials in all forms that clients of the API ever used.

    In the `Authorization` header or in `?auth=` (its value, encoded): `Basic`, `ApiKey user:key`, `TutumAccessKey key`. In the
    query: `?user=…&token=…`.
    """
    if settings.api_key is None:
        return True
    offered = [_user_and_key(text) for text in (header or "", *query.get("auth", ()))]
    offered += zip(query.get("user", ()), query.get("token", ()), strict=False)
    return any(
        hmac.compare_digest(key.encode(), settings.api_key.encode())
        and (not settings.username or user in (settings.username, None))
        for user, key in offered
    )


def _user_and_key(credentials: str) -> tuple[str | None, str]:
    """Take apart the value of an `Authorization` header; the user is None where the scheme has none."""
    scheme, _, token = credentials.strip().partition(" ")
    if scheme.lower() == "tutumaccesskey":
        return None, token.strip()
    if scheme.lower() == "basic":
        try:
            token = base64.b64decode(token, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None, ""
    elif scheme.lower() != "apikey":
        return None, ""
    user, _, key = token.strip().partition(":")
    return user, key
