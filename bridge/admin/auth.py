"""Access to the operations over HTTP.

Without a token: clients on this machine, but no browser and no proxy. A web page can make a browser send requests to loopback,
but the browser then names the page's origin (`Origin`), or came by a name of the page's choice (`Host`, "DNS rebinding").
With a token: every client that sends it, from any address, but no web page.
"""

import hmac
from email.message import Message
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address

from bridge.admin.listener import Response, text_response


def refusal(client: str, headers: Message, token: str | None) -> Response | None:
    """Return why a request is refused; None if it is not.

    Args:
        client: The client's address.
        headers: Its headers.
        token: The token that it must have; None if there is none.
    """
    if "Origin" in headers:
        return text_response(HTTPStatus.FORBIDDEN, "not for web pages: the request has an Origin header")
    if token is not None:
        return _without_token(headers, token)
    if not is_loopback(client) or "Forwarded" in headers or "X-Forwarded-For" in headers:
        return text_response(
            HTTPStatus.FORBIDDEN, "without http.token, events are shown and changed from the bridge's own machine only; set one"
        )
    if not _names_an_address(headers.get_all("Host", [])):
        return text_response(HTTPStatus.FORBIDDEN, "without http.token, the Host must be localhost or an IP address")
    return None


def is_loopback(address: str) -> bool:
    """Return True for a loopback address."""
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped.is_loopback
    return ip.is_loopback


def _without_token(headers: Message, token: str) -> Response | None:
    scheme, _, given = str(headers.get("Authorization", "")).partition(" ")
    # Headers are read as Latin-1, whatever they are; what is compared is what was sent.
    sent = given.strip().encode("latin-1", "replace")
    if scheme.lower() == "bearer" and hmac.compare_digest(sent, token.encode()):
        return None
    wrong = (
        "the token is not the one of http.token" if given else "needs the token of http.token, as `Authorization: Bearer ...`"
    )
    return text_response(HTTPStatus.UNAUTHORIZED, wrong, {"WWW-Authenticate": 'Bearer realm="event-bridge"'})


def _names_an_address(hosts: list[str]) -> bool:
    """Return True if the only Host is an IP address or localhost, which no name server resolves."""
    if len(hosts) != 1:
        return False
    host = hosts[0].strip()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        ip_address(name)
    except ValueError:
        return name.lower() == "localhost"
    return True
