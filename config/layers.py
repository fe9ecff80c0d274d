"""The sources of values, by priority: the first source that has a key wins.

1. Variables `BRIDGE_…`, with two underscores between the levels (`BRIDGE_STREAMS__ACME__URL`).
2. Files named like them, with `__`, in a directory of secrets (`bridge_streams__acme__api_key`): in systemd's
   `$CREDENTIALS_DIRECTORY`, then in `$BRIDGE_SECRETS_DIR`, or in /run/secrets if that is there.
3. The YAML file.
4. The variables of the original clients (`config.dockercloud_env`).

Each becomes a layer: nested mappings, with the variable or file that each key comes from. pydantic-settings only splits
nested names: it decodes text without knowing the types of a plug-in's sink, ignores misspelt variables and missing files,
and can't tell which variable an error comes from.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from config.introspection import KeyPath, fields_of
from config.settings import Settings
from config.yaml_file import ReadError, read_document

PREFIX: Final = "BRIDGE_"
CONFIG: Final = "BRIDGE_CONFIG"
SECRETS_DIR: Final = "BRIDGE_SECRETS_DIR"
OTHERS: Final = frozenset({CONFIG, SECRETS_DIR, "BRIDGE_SIMULATOR_API_KEY"})
"""Variables that are no keys of the configuration; the last one is the simulator's (`bridge.cli.main`)."""

CREDENTIALS_DIRECTORY: Final = "CREDENTIALS_DIRECTORY"  # Set by systemd for a unit with LoadCredential=.

SEARCHED: Final = (Path("bridge.yaml"), Path("/etc/event-bridge/bridge.yaml"))
DEFAULT_SECRETS_DIR: Final = Path("/run/secrets")

_MAX_SECRET_BYTES: Final = 1024 * 1024

_KUBERNETES: Final = re.compile(
    r"BRIDGE_([A-Z0-9_]+_)?(SERVICE_HOST=|SERVICE_PORT(_[A-Z0-9_]+)?=|PORT_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?=|PORT=[a-z]+://)"
)
"""Variables that Kubernetes sets in every pod beside a Service called `bridge` or `bridge-<something>`: ignored."""


@dataclass
class Layer:
    """One source.

    Attributes:
        data: Its values, as nested mappings.
        labels: The variable or file of each key.
        text: Whether all its values are text.
    """

    data: dict[str, Any]
    labels: Mapping[KeyPath, str]
    text: bool = True

    def has(self, path: KeyPath) -> bool:
        """Tell whether the layer has a value at a path."""
        try:
            self.value(path)
        except (LookupError, TypeError):
            return False
        return True

    def value(self, path: KeyPath) -> Any:
        """Return the value at a path; raise `LookupError` or `TypeError` if there is none."""
        value: Any = self.data
        for key in path:
            value = value[key]
        return value

    def place(self, path: KeyPath) -> str:
        """Name the value at a path, or the one that is missing there, by its variable or by its file and key."""
        for length in range(len(path), -1, -1):
            if label := self.labels.get(path[:length]):
                return f"{label}: {dotted(path[length:])}".removesuffix(": ")
        return variable(path)


def variable(path: KeyPath) -> str:
    """Name the variable for a path."""
    return PREFIX + "__".join(map(str, path)).upper()


def dotted(path: KeyPath) -> str:
    """Write a path as `sinks.alerts.match[0]`. A key that is no name is hidden: it may be a mistyped `api_key:secret`."""
    text = ""
    for key in path:
        name = str(key) if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", str(key)) else "…"
        text += f"[{key}]" if isinstance(key, int) else f".{name}"
    return text.removeprefix(".")


def find(config: Path | None, env: Mapping[str, str]) -> Path | None:
    """Return the file to read: the one given, else `BRIDGE_CONFIG`, ./bridge.yaml, /etc/event-bridge/bridge.yaml.

    None if no file is named and none exists. A file that is named need not exist: reading it is the error.
    """
    if config is not None:
        return config
    if env.get(CONFIG):
        return Path(env[CONFIG])
    return next((path for path in SEARCHED if _is_there(path)), None)


def from_file(config: Path | None, env: Mapping[str, str]) -> Layer | None:
    """Read the YAML file, if there is one.

    Raises:
        ReadError: It can't be read. The text names it.
    """
    path = find(config, env)
    if path is None:
        return None
    try:
        return Layer(read_document(path, env), {(): str(path)}, text=False)
    except ReadError as error:
        named = f" (named by {CONFIG})" if config is None and env.get(CONFIG) else ""
        raise ReadError(f"{path}{named}: {error}") from None


def from_environment(env: Mapping[str, str], problems: list[str]) -> Layer:
    """Read the variables; a variable that names no key is a problem."""
    texts = {name: value for name, value in env.items() if name.startswith(PREFIX) and name not in OTHERS}
    ours = {name: value for name, value in texts.items() if not _is_kubernetes(name, value)}
    return _nested(ours, {name: name for name in ours}, problems)


def from_secrets(env: Mapping[str, str], problems: list[str]) -> tuple[Layer, bool]:
    """Read the files in directories of secrets that are named like variables of the configuration; ignore all others.

    A file without `__` is ignored, too: a secret called `bridge_api_key` may be there for an `api_key_file`.

    Returns:
        The layer, and whether all of them could be read.
    """
    texts, labels, sound = {}, {}, True
    for directory in _secret_directories(env):
        try:
            names = sorted(path.name for path in directory.iterdir() if path.is_file())
        except OSError as error:
            problems.append(f"{directory}: can't be read as a directory of secrets: {error.strerror}")
            sound = False
            continue
        for name in names:
            if not name.upper().startswith(PREFIX) or "__" not in name:
                continue
            labels[name.upper()] = str(directory / name)
            try:
                texts[name.upper()] = read_secret(directory / name)
            except ReadError as error:
                problems.append(str(error))
                sound = False
    return _nested(texts, labels, problems), sound


def read_secret(path: Path) -> str:
    """Read a file that holds one secret, without the line end that editors add.

    Raises:
        ReadError: It can't be read, is no text, or is empty. The text names the file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_SECRET_BYTES + 1)
        text = content.decode().rstrip("\r\n")
    except OSError as error:
        raise ReadError(f"{path}: can't be read: {error.strerror}") from None
    except ValueError:
        raise ReadError(f"{path}: is not text in UTF-8") from None
    if not text or len(content) > _MAX_SECRET_BYTES:
        raise ReadError(f"{path}: {'is too large for a secret' if text else 'is empty'}")
    return text


class _Base(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__")


_SECTIONS: Final = create_model("_Sections", __base__=_Base, **dict.fromkeys(Settings.model_fields, (dict[str, Any], {})))  # type: ignore[call-overload]


class _Texts(EnvSettingsSource):
    """Splits nested names; does not decode the values."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = {name.lower(): value for name, value in texts.items()}
        super().__init__(_SECTIONS)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return dict(self._texts)

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        del field_name, field
        return value


def _nested(texts: Mapping[str, str], labels: Mapping[str, str], problems: list[str]) -> Layer:
    """Make a layer of values by variable name, and report the names that are wrong."""
    paths = {name: tuple(name.removeprefix(PREFIX).lower().split("__")) for name in sorted(texts)}
    by_path = {path: labels[name] for name, path in paths.items()}
    good = {}
    for name, path in paths.items():
        part = next((by_path[other] for other in by_path if other != path and other[: len(path)] == path), None)
        if path[0] not in Settings.model_fields or "" in path:
            problems.append(f"{labels[name]}: no such setting; {_hint(name)}")
        elif part is not None:
            problems.append(f"{labels[name]}: is set together with {part}; set either the whole or its parts")
        else:
            good[name] = texts[name]
    return Layer(_Texts(good)(), {paths[name]: labels[name] for name in good})


def _hint(name: str) -> str:
    section, separator, rest = name.removeprefix(PREFIX).partition("__")
    known = {*_known(Settings, PREFIX), *OTHERS}
    if section.lower() not in Settings.model_fields and rest:
        known |= {PREFIX + other.upper() + separator + rest for other in Settings.model_fields}
    close = get_close_matches(name, sorted(known), n=1, cutoff=0.75)
    return f"did you mean {close[0]}?" if close else "variables are named like BRIDGE_STREAMS__ACME__URL, with two underscores"


def _known(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield the names of all variables except those that contain the name of a stream or sink."""
    for key, shape in fields_of(model).items():
        if shape.models:
            yield from _known(shape.models[0], f"{prefix}{key.upper()}__")
        elif not shape.is_mapping:
            yield prefix + key.upper()


def _is_kubernetes(name: str, value: str) -> bool:
    return "__" not in name and _KUBERNETES.match(f"{name}={value}") is not None


def _secret_directories(env: Mapping[str, str]) -> list[Path]:
    """Return the directories of secrets, the one that wins last; the default one only if it can be read."""
    directories = [Path(env[SECRETS_DIR])] if env.get(SECRETS_DIR) else []
    if SECRETS_DIR not in env and os.access(DEFAULT_SECRETS_DIR, os.R_OK | os.X_OK):
        directories = [DEFAULT_SECRETS_DIR]
    if env.get(CREDENTIALS_DIRECTORY):
        directories.append(Path(env[CREDENTIALS_DIRECTORY]))
    return directories


def _is_there(path: Path) -> bool:
    """Tell whether a path exists; True if that is not known, so that reading it reports the error."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
