"""Secrets that change while the process runs: streams and sinks get their current settings before they connect.

Only new secrets are applied. If other settings of a stream or sink changed, too, its new secrets wait for the reload: a new
key may belong to a new address.
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
"""Minimum age of a configuration that is read again: many streams may reconnect at once."""

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
        """Return the last configuration that could be read; read it again if it is older than a second."""
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
    """The settings of one stream, sink or section, with its secrets kept up to date.

    Args:
        reader: Reads the current configuration.
        settings: The settings that the stream, sink or section was made with.
        section: Key of the section in the configuration.
        name: Name of the stream or sink in a section of several.
    """

    def __init__(self, reader: ConfigReader, settings: Model, section: str, name: str | None = None) -> None:
        self._reader = reader
        self._settings = settings
        self._section = section
        self._name = name

    def current(self) -> Model:
        """Return the settings to connect with now."""
        new: Any = getattr(self._reader.current(), self._section)
        if self._name is not None:
            new = new.get(self._name)
        if new is not None and _differ_in_secrets_only(self._settings, new):
            self._settings = new
        return self._settings


def _differ_in_secrets_only(old: BaseModel, new: BaseModel) -> bool:
    """Tell whether both differ, but only in values of secrets."""
    return type(old) is type(new) and old != new and _masked(old.model_dump()) == _masked(new.model_dump())


def _masked(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return SecretStr
    if isinstance(value, dict):
        return {key: _masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(inner) for inner in value]
    return value
