"""Secrets that change while the process runs: streams and sinks ask for their present settings before they open anything.

They get new secrets only. Anything else that changed waits for a reload, together with the secrets beside it: a new key may
belong to a new address.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import structlog
from pydantic import BaseModel, SecretStr

from config.errors import ConfigError
from config.settings import Settings

log = structlog.get_logger(__name__)

_FRESH_SECONDS: Final = 1.0
"""A configuration read so recently is not read again: many streams may reconnect at once."""

Model = TypeVar("Model", bound=BaseModel)


class ConfigReader:
    """Reads the configuration anew from environment and files; keeps the last one that could be read.

    Args:
        settings: The configuration that the process starts with.
        read: Reads the configuration.
        monotonic: Monotonic clock.
    """

    def __init__(
        self, settings: Settings, read: Callable[[], Settings], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._read = read
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._read_at = monotonic()
        self._problems: list[str] = []

    def read(self) -> Settings:
        """Read the configuration now.

        Raises:
            ConfigError: It can't be used.
        """
        with self._lock:
            self._read_at = self._monotonic()
            self._settings = self._read()
            self._problems = []
            return self._settings

    def current(self) -> Settings:
        """Return what was read last, a second ago at most if it could be read."""
        with self._lock:
            if self._monotonic() - self._read_at > _FRESH_SECONDS:
                self._read_again()
            return self._settings

    def _read_again(self) -> None:
        self._read_at = self._monotonic()
        problems: list[str] = []
        try:
            self._settings = self._read()
        except ConfigError as error:
            problems = error.problems
            if problems != self._problems:
                log.warning("secrets can't be read again, the last ones are used", problems=problems)
        self._problems = problems


class FreshSecrets(Generic[Model]):
    """A part of the settings, a sink's for example, with its secrets kept up to date.

    Args:
        reader: Gives the present configuration.
        settings: The part as it was when something was made of it.
        section: Key of the part in the configuration.
        name: Name of the stream or sink in a section of several.
    """

    def __init__(self, reader: ConfigReader, settings: Model, section: str, name: str | None = None) -> None:
        self._reader = reader
        self._settings = settings
        self._section = section
        self._name = name

    def current(self) -> Model:
        """Return the settings with which to open something now."""
        new: Any = getattr(self._reader.current(), self._section)
        if self._name is not None:
            new = new.get(self._name)
        if new is not None and _differ_in_secrets_only(self._settings, new):
            self._settings = new
        return self._settings


def _differ_in_secrets_only(old: BaseModel, new: BaseModel) -> bool:
    """Tell whether both set the same, with other values of some secrets."""
    return type(old) is type(new) and old != new and _masked(old.model_dump()) == _masked(new.model_dump())


def _masked(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return SecretStr
    if isinstance(value, dict):
        return {key: _masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(inner) for inner in value]
    return value
