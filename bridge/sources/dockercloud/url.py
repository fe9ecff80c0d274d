"""Where and how to listen to the Docker Cloud Stream API, and the address that comes of it; no sockets."""

from contextlib import suppress
from urllib.parse import SplitResult, quote, urlencode, urlsplit

import msgspec


class DockerCloudOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to listen.

    Attributes:
        url: `ws://` or `wss://`, host, maybe port and a base path; no credentials, no query.
        namespace: Whose events; empty means the account's own.
        path: Instead of `/api/audit/v1/[namespace/]events`, the path that the original clients used.
        types: Only events of these types.
        objects: Only events of these resource URIs.
        parents: Only events of things below these resource URIs.
        ping_interval: Seconds of silence before a ping.
        ping_timeout: Seconds within which a peer must answer a ping, and take what we send.
        idle_timeout: Seconds without an event after which the session is ended; None means never.
        connect_timeout: Seconds for everything until the stream is open, from the name's resolution on.
        max_frame_bytes: The largest message that is accepted.
        ca_file: Certificates to trust instead of the system's, PEM; read again when the file has changed.
        proxy: `http://[user:password@]host[:port]`; None means what `http_proxy` (for `ws:`), `https_proxy` (for `wss:`)
            say. Hosts in `no_proxy` are reached directly in either case.
        user_agent: What we call ourselves.

    Raises:
        ValueError: `url` or `proxy` is not of this form.
    """

    url: str
    namespace: str = ""
    path: str | None = None
    types: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    ping_interval: float = 10.0
    ping_timeout: float = 5.0
    idle_timeout: float | None = None
    connect_timeout: float = 10.0
    max_frame_bytes: int = 16 * 1024 * 1024
    ca_file: str | None = None
    proxy: str | None = None
    user_agent: str = "event-bridge"

    def __post_init__(self) -> None:
        url = _split(self.url, "url", ("ws", "wss"))
        if url.username is not None or url.query or url.fragment:
            raise ValueError("url: write only ws:// or wss://, host, port and path; credentials have their own settings")
        if self.proxy is not None:
            _split(self.proxy, "proxy", ("http",))
        if not all("!" <= character <= "~" for character in stream_url(self)):
            raise ValueError("url, path: only printable ASCII without spaces; write the rest percent-encoded")

    def __repr__(self) -> str:
        # A proxy's password stands in its URL.
        return f"DockerCloudOptions({stream_url(self)!r})"


def _split(url: str, name: str, schemes: tuple[str, ...]) -> SplitResult:
    """Take a URL apart; the error never repeats it, since it may hold a password."""
    with suppress(ValueError):
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        if parts.scheme in schemes and parts.hostname and (parts.port is None or parts.port > 0):
            return parts
    raise ValueError(f"{name}: not of the form {' or '.join(f'{scheme}://host[:port]' for scheme in schemes)}")


def stream_url(options: DockerCloudOptions) -> str:
    """Build the address of a stream; filters are comma-joined, one parameter each, sorted, as the Go client sent them."""
    url = urlsplit(options.url)
    namespace = quote(options.namespace, safe="") + "/" if options.namespace else ""
    path = options.path or f"/api/audit/v1/{namespace}events"
    filters = {"object": options.objects, "parent": options.parents, "type": options.types}
    query = urlencode({name: ",".join(values) for name, values in filters.items() if values}, quote_via=quote)
    joint = "" if not query else "&" if "?" in path else "?"
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}/{path.lstrip('/')}{joint}{query}"
