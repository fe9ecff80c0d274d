"""The URL of a receiver, and of the proxy on the way to it."""

from urllib.request import getproxies, proxy_bypass

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url


class NoConnection(Exception):
    """No connection could be opened; `__cause__` is the error."""


def read_url(text: str) -> Url:
    """Parse the URL of a receiver.

    Raises:
        ValueError: It is not valid. The error does not repeat it, since it may hold a token.
    """
    try:
        url = parse_url(text)
        (url.host or "").encode("idna")
    except (LocationParseError, UnicodeError):
        raise ValueError("not a URL") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError("must look like https://host/path or http://host/path")
    if url.auth is not None:
        raise ValueError("has credentials in it: set `username` and `password`, or `token`, instead")
    return url


def proxy_for(url: Url) -> Url | None:
    """Return the proxy that the environment names for an https URL (`HTTPS_PROXY`, `NO_PROXY`).

    Raises:
        NoConnection: The proxy can't be used.
    """
    proxy = getproxies().get("https")
    if url.scheme != "https" or not proxy or proxy_bypass(url.netloc or ""):
        return None
    try:
        parsed = parse_url(proxy)
    except LocationParseError:
        parsed = Url()
    if not parsed.host or parsed.scheme not in {"http", None}:
        raise NoConnection from OSError("HTTPS_PROXY must look like http://host:port")
    return parsed
