"""Secrets that change while something runs."""

from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.sources.dockercloud.settings import DockerCloudSettings
from config.errors import ConfigError
from config.rotation import ConfigReader, FreshSecrets
from config.settings import Settings
from sinks.webhook.settings import WebhookSettings

SECRET = "s3cret"


class Bench:
    """A configuration that the test rewrites, a clock, and how often it was read."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reads = 0
        self.answer: Callable[[], Settings] = with_key("old")
        self.reader = ConfigReader(self.answer(), self._read, lambda: self.now)
        self.first = acme(self.answer())
        self.secrets = FreshSecrets(self.reader, self.first, "streams", "acme")

    def _read(self) -> Settings:
        self.reads += 1
        return self.answer()

    def key(self) -> str:
        """The key with which something would be opened, some time later."""
        self.now += 2.0
        found = self.secrets.current().api_key
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

    assert bench.secrets.current() is bench.first
    assert bench.reads == 1


def test_many_who_ask_at_once_read_it_once(bench: Bench) -> None:
    bench.now += 5.0
    for _ in range(100):
        bench.secrets.current()
        bench.now += 0.01

    assert bench.reads == 1


def test_what_changed_beside_a_secret_waits_for_a_reload_with_it(bench: Bench) -> None:
    bench.answer = with_key("new")
    assert bench.key() == "new"
    bench.answer = with_key("newer", url="wss://elsewhere.example.com")

    assert bench.key() == "new"
    assert bench.secrets.current().url == bench.first.url


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
    assert acme(bench.reader.read()).api_key != bench.first.api_key
    assert bench.secrets.current().api_key != bench.first.api_key
    assert bench.reads == 1
    bench.answer = unreadable

    with pytest.raises(ConfigError):
        bench.reader.read()
    assert bench.reader.current().streams.keys() == {"acme"}


def hook(**values: Any) -> WebhookSettings:
    return WebhookSettings.model_validate({"url": "https://hooks.example.com/", **values})


def takes_over(old: WebhookSettings, new: WebhookSettings) -> bool:
    """Whether a sink made with the old settings gets the new ones."""
    configuration = Settings.model_validate({"sinks": {"hook": new}})
    return FreshSecrets(ConfigReader(configuration, lambda: configuration), old, "sinks", "hook").current() is not old


def test_other_secrets_are_told_from_everything_else() -> None:
    assert takes_over(hook(token="a"), hook(token="b"))
    assert takes_over(hook(headers={"X-Key": "a"}), hook(headers={"X-Key": "b"}))
    assert not takes_over(hook(token="a"), hook(token="a"))
    assert not takes_over(hook(token="a"), hook(token="b", timeout=3))
    assert not takes_over(hook(), hook(token="b"))
    assert not takes_over(hook(headers={"X-Key": "a"}), hook(headers={"X-Other": "b"}))


def test_a_stream_of_another_kind_is_not_taken_over() -> None:
    streams = {"acme": {"type": "engine"}}
    configuration = Settings.model_validate({"streams": streams})
    old = DockerCloudSettings.model_validate({"username": "bob", "api_key": "a"})

    assert FreshSecrets(ConfigReader(configuration, lambda: configuration), old, "streams", "acme").current() is old
