"""The address of a Docker Cloud stream; no sockets."""

from urllib.parse import quote, urlencode, urlsplit

from bridge.sources.dockercloud.settings import DockerCloudSettings


def stream_url(settings: DockerCloudSettings) -> str:
    """Build the address of a stream. Filters are comma-joined, one parameter each, sorted, as the Go client sent them."""
    url = urlsplit(settings.url)
    namespace = quote(settings.namespace, safe="") + "/" if settings.namespace else ""
    path = settings.path or f"/api/audit/v1/{namespace}events"
    filters = {"object": settings.objects, "parent": settings.parents, "type": settings.types}
    query = urlencode({name: ",".join(values) for name, values in filters.items() if values}, quote_via=quote)
    joint = "" if not query else "&" if "?" in path else "?"
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}/{path.lstrip('/')}{joint}{query}"
