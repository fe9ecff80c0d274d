"""What differs between two configurations."""

from typing import Any

from config.diff import Changes, as_far_as_possible, changes, needing_restart
from config.settings import Settings
from sinks.webhook.settings import WebhookSettings

HOOK = "https://hooks.example.com/"


def settings(**sections: Any) -> Settings:
    return Settings.model_validate(sections)


def hook(**values: Any) -> WebhookSettings:
    return WebhookSettings.model_validate({"url": HOOK, **values})


def test_what_came_went_and_changed_is_told_apart_from_what_stayed() -> None:
    old = settings(streams={"stays": {}, "goes": {}, "changes": {"username": "bob", "api_key": "old"}})
    new = settings(streams={"comes": {}, "changes": {"username": "bob", "api_key": "new"}, "stays": {}})

    assert changes(old.streams, new.streams) == Changes(["comes"], ["goes"], ["changes"])


def test_sinks_are_compared_with_all_of_their_own_keys() -> None:
    old = settings(sinks={"one": hook(token="a"), "two": hook(timeout=3), "three": hook(headers={"x": "1"})})
    new = settings(sinks={"one": hook(token="b"), "two": hook(timeout=3), "three": hook(headers={"x": "1"})})

    assert changes(old.sinks, new.sinks) == Changes([], [], ["one"])


def test_a_default_that_is_written_out_is_no_change() -> None:
    assert changes({"hook": hook()}, {"hook": hook(method="POST", connections=4)}) == Changes([], [], [])


def test_another_type_under_the_same_name_is_a_change() -> None:
    old = settings(streams={"acme": {}})
    new = settings(streams={"acme": {"type": "engine"}})

    assert changes(old.streams, new.streams) == Changes([], [], ["acme"])


def test_what_needs_a_restart_is_named_by_its_key() -> None:
    old = settings(log={"level": "info"})
    new = settings(
        journal={"max_bytes": "64 MiB", "dedup": {"window": 60}},
        http={"listen": "off"},
        log={"level": "debug"},
        streams={"a": {}},
    )

    assert needing_restart(old, new) == ["journal.max_bytes", "journal.dedup.window", "http.listen"]
    assert needing_restart(old, old) == []


def test_a_token_in_place_of_another_needs_no_restart_but_the_first_one_does() -> None:
    none, one, other = settings(), settings(http={"token": "a" * 16}), settings(http={"token": "b" * 16})

    assert needing_restart(one, other) == []
    assert needing_restart(none, one) == needing_restart(one, none) == ["http.token"]


def test_what_needs_a_restart_keeps_its_value_and_the_rest_gets_the_new_one() -> None:
    old = settings(journal={"max_bytes": "64 MiB"})
    new = settings(http={"listen": "off"}, log={"level": "debug"}, shutdown={"grace": 3}, streams={"a": {}})

    applied = as_far_as_possible(old, new)

    assert (applied.journal, applied.http) == (old.journal, old.http)
    assert (applied.log, applied.shutdown, applied.streams) == (new.log, new.shutdown, new.streams)
