"""The variables of the original clients: a deployment that used them works with event-bridge unchanged.

`DOCKERCLOUD_AUTH`, `DOCKERCLOUD_USER`, `DOCKERCLOUD_APIKEY`, `DOCKERCLOUD_PASS`, `DOCKERCLOUD_NAMESPACE` and
`DOCKERCLOUD_STREAM_HOST` have the meaning of python-dockercloud 1.0.12 (`dockercloud/__init__.py`, `api/auth.py`).
An empty variable counts as not set, as there. A secret may be given by a file: `DOCKERCLOUD_APIKEY_FILE`.

If no stream is configured, credentials or a host make one stream, named by the namespace. If streams are configured, the
credentials and the host apply to the streams that have neither: credentials are sent only to the servers to which the
original clients would have sent them. `DOCKERCLOUD_NAMESPACE` is then ignored.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from bridge.field_types import NAME
from config.introspection import FILE, KeyPath
from config.layers import Layer

NAMESPACE: Final = "DOCKERCLOUD_NAMESPACE"
_SECRETS: Final = {"auth": "DOCKERCLOUD_AUTH", "api_key": "DOCKERCLOUD_APIKEY", "password": "DOCKERCLOUD_PASS"}
_VARIABLES: Final = {
    **_SECRETS,
    **{key + FILE: name + FILE.upper() for key, name in _SECRETS.items()},
    "username": "DOCKERCLOUD_USER",
    "url": "DOCKERCLOUD_STREAM_HOST",
}


def from_original(env: Mapping[str, str], streams: Mapping[str, Any]) -> Layer:
    """Make the layer that all others override.

    Args:
        env: The environment.
        streams: The streams that the other sources configure, by name.
    """
    given = {key: env[name] for key, name in _VARIABLES.items() if env.get(name)}
    if not given:
        return Layer({}, {})
    if streams:
        return _layer({name: given for name, stream in streams.items() if _has_none_of_its_own(stream)})
    namespace = env.get(NAMESPACE, "")
    return _layer({_name(namespace): {"namespace": namespace, **given}})


def incomplete(layer: Layer) -> Iterator[tuple[KeyPath, str]]:
    """Find incomplete credentials; yield the path and a text that names these variables."""
    for stream, given in layer.data.get("streams", {}).items():
        secrets = given.keys() & {"api_key", "password", "api_key_file", "password_file"}
        if not given.keys() & {"auth", "auth_file"} and ("username" in given) is not bool(secrets):
            text = "is missing: DOCKERCLOUD_APIKEY and DOCKERCLOUD_PASS need it beside them"
            yield ("streams", stream, "username"), text if secrets else "needs DOCKERCLOUD_APIKEY or DOCKERCLOUD_PASS beside it"


def _has_none_of_its_own(stream: Any) -> bool:
    return isinstance(stream, dict) and stream.get("type", "docker-cloud") == "docker-cloud" and not stream.keys() & _VARIABLES


def _name(namespace: str) -> str:
    try:
        return NAME.check(namespace)
    except ValueError:
        return "default"


def _layer(streams: dict[str, dict[str, str]]) -> Layer:
    names = {**_VARIABLES, "namespace": NAMESPACE}
    labels: dict[KeyPath, str] = {("streams", stream, key): name for stream in streams for key, name in names.items()}
    return Layer({"streams": streams} if streams else {}, labels)
