"""Secrets that change while the process runs: whoever opens something anew asks for its settings as they are now.

Only secrets are taken over by that. Whatever else has changed waits for a reload, together with the secrets beside it: a new
key may well belong to a new address.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import structlog
from pydantic import BaseModel

from config.diff import differ_in_secrets_only
from config.errors import ConfigError
from config.settings import Settings

log = structlog.get_logger(__name__)

_FRESH_ENOUGH: Final = 1.0
"""Seconds for which a configuration that was just read is not read again: many streams may reconnect at once."""

Model = TypeVar("Model", bound=BaseModel)


class Latest:
    """The configuration as environment and files say it now, or the last time that they could be read.

    Args:
        settings: The configuration that the process starts with.
        read: Reads it anew.
        monotonic: Seconds of a clock that nobody sets.
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
        """Read it now.

        Raises:
            ConfigError: It can't be used.
        """
        with self._lock:
            self._read_at = self._monotonic()
            self._settings = self._read()
            self._problems = []
            return self._settings

    def settings(self) -> Settings:
        """What was read last, a second ago at most if it could be read."""
        with self._lock:
            if self._monotonic() - self._read_at > _FRESH_ENOUGH:
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


class Rotating(Generic[Model]):
    """A part of the settings, a sink's for example, with the secrets as they are now.

    Args:
        latest: Where to look.
        find: Finds the part in all settings; None if it is not there any more.
        settings: The part as it was when something was made of it.
    """

    def __init__(self, latest: Latest, find: Callable[[Settings], BaseModel | None], settings: Model) -> None:
        self._latest = latest
        self._find = find
        self._settings = settings

    def now(self) -> Model:
        """The settings for something that is opened now."""
        found: Any = self._find(self._latest.settings())
        if found is not None and differ_in_secrets_only(self._settings, found):
            self._settings = found
        return self._settings
