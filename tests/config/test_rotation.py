"""Secrets that change while something runs."""

from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from bridge.sources.dockercloud.settings import DockerCloudSettings
from config.errors import ConfigError
from config.rotation import Latest, Rotating
from config.settings import Settings

SECRET = "s3cret"


class Bench:
    """A configuration that the test rewrites, a clock, and how often it was read."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reads = 0
        self.answer: Callable[[], Settings] = with_key("old")
        self.latest = Latest(self.answer(), self._read, lambda: self.now)
        self.first = acme(self.answer())
        self.rotating = Rotating(self.latest, lambda now: now.streams.get("acme"), self.first)

    def _read(self) -> Settings:
        self.reads += 1
        return self.answer()

    def key(self) -> str:
        """The key with which something would be opened, some time later."""
        self.now += 2.0
        found = self.rotating.now().api_key
        assert found is not None
        return found.get_secret_value()


def with_key(key: str, **others: str) -> Callable[[], Settings]:
    stream = {"username": "bob", "api_key": key, **others}
    return lambda: Settings.model_validate({"streams": {"acme": stream}})


def acme(settings: Settings) -> DockerCloudSettings:
    stream = settings.streams["acme"]
    assert isinstance(stream, DockerCloudSettings)
    return stream


def unreadable() -> Settings:
    raise ConfigError(["bridge.yaml: gone"])


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_new_secret_is_found_without_being_told(bench: Bench) -> None:
    assert bench.key() == "old"
    bench.answer = with_key("new")

    assert bench.key() == "new"


def test_what_has_not_changed_is_the_same_object_so_that_nothing_is_made_anew(bench: Bench) -> None:
    bench.now += 2.0

    assert bench.rotating.now() is bench.first
    assert bench.reads == 1


def test_many_who_ask_at_once_read_it_once(bench: Bench) -> None:
    bench.now += 5.0
    for _ in range(100):
        bench.rotating.now()
        bench.now += 0.01

    assert bench.reads == 1


def test_what_changed_beside_a_secret_waits_for_a_reload_with_it(bench: Bench) -> None:
    bench.answer = with_key("new")
    assert bench.key() == "new"
    bench.answer = with_key("newer", url="wss://elsewhere.example.com")

    assert bench.key() == "new"
    assert bench.rotating.now().url == bench.first.url


def test_a_stream_that_is_gone_from_the_configuration_keeps_its_secret_until_the_reload(bench: Bench) -> None:
    bench.answer = lambda: Settings.model_validate({"streams": {"other": {}}})

    assert bench.key() == "old"


def test_the_last_good_secrets_survive_a_mistake_which_is_said_once(bench: Bench) -> None:
    bench.answer = with_key("new")
    bench.key()
    bench.answer = unreadable

    with capture_logs() as logs:
        assert [bench.key() for _ in range(5)] == ["new"] * 5
        bench.answer = with_key(SECRET)
        assert bench.key() == SECRET
        bench.answer = unreadable
        bench.key()

    assert [(line["log_level"], line["problems"]) for line in logs] == [("warning", ["bridge.yaml: gone"])] * 2


def test_a_reload_reads_at_once_and_tells_of_a_mistake(bench: Bench) -> None:
    bench.answer = with_key("new")
    assert acme(bench.latest.read()).api_key != bench.first.api_key
    assert bench.rotating.now().api_key != bench.first.api_key
    assert bench.reads == 1
    bench.answer = unreadable

    with pytest.raises(ConfigError):
        bench.latest.read()
    assert bench.latest.settings().streams.keys() == {"acme"}
