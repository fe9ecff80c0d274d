import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.event import Fields
from sinks.mqtt.topic import MAX_TEXT_BYTES, Topic, clean_text
from tests.contract.harness import make_entry


def fields(**changes: str) -> Fields:
    return make_entry(1, **changes).fields


def test_a_topic_is_made_of_the_fields_of_the_event() -> None:
    event = fields(resource_uri="/api/app/v1/acme/container/0b0e3538/", state="Not running")

    topic = Topic("dock-{namespace}/{type}.{action}/{state}/{resource_uuid}/{uuid}/{{x}}").of(event)

    assert topic.decode() == f"dock-acme/container.update/Not running/0b0e3538/{event.uuid}/{{x}}"


def test_a_replacement_makes_no_level_and_no_wildcard() -> None:
    topic = Topic("docker/{state}", replace={" ": "/", ".": "#", "x": "", "/": "-"})

    assert topic.of(fields(state="a b.c x/d")) == b"docker/a_b_c_-d"


def test_the_old_name_of_a_field_is_accepted() -> None:
    topic = Topic("docker/{id}/{type}")

    assert topic.of(fields(resource_uri="/api/app/v1/acme/container/0b0e3538/")) == b"docker/0b0e3538/container"
    assert topic.template.renamed == {"id": "resource_uuid"}


def test_a_template_without_fields_is_a_topic() -> None:
    assert Topic("100% docker").of(fields()) == b"100% docker"


@pytest.mark.parametrize(
    ("state", "level"),
    [
        ("a/b", b"a_b"),
        ("+", b"_"),
        ("a#", b"a_"),
        ("a\x00\x1f\x7f\x85b", b"a____b"),
        ("$SYS", b"_SYS"),
        ("", b"_"),
        ("\ufffe\ufdd0\U0010ffff", b"___"),
        ("Läuft 🐳", "Läuft 🐳".encode()),
    ],
)
def test_what_an_event_brings_in_is_made_fit_for_a_level(state: str, level: bytes) -> None:
    assert Topic("{state}/x").of(fields(state=state)) == level + b"/x"


@given(st.text(), st.text())
def test_no_event_can_leave_its_level_or_break_the_protocol(state: str, action: str) -> None:
    topic = Topic("docker/{state}/{action}").fill((state, action)).decode()

    levels = topic.split("/")
    assert len(levels) == 3
    assert all(levels)
    assert not any(level.startswith("$") for level in levels)
    assert not set("+#\x00") & set(topic)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("docker/{typ}", "{typ} can't stand here; fields are {namespace}, {type}, {action}, {state}, {resource_uuid}, {uuid}"),
        ("docker/{}", "{} can't stand here"),
        ("docker/{0}", "{0} can't stand here"),
        ("{type.__class__}", "{type.__class__} can't stand here"),
        ("{parents[0]}", "{parents[0]} can't stand here"),
        ("{type!r}", "{type!r} can't stand here"),
        ("{type:>10}", "{type:>10} can't stand here"),
        ("docker/{type", "a brace without its other half"),
        ("docker/}", "a brace without its other half"),
        ("docker/+/{type}", "are for subscribers"),
        ("docker/#", "are for subscribers"),
        ("$SYS/{type}", "the broker's own"),
        ("/docker", "has an empty level"),
        ("docker/", "has an empty level"),
        ("docker//{type}", "has an empty level"),
        ("", "has an empty level"),
        ("docker\x00", "can't stand in a topic"),
        ("x" * 40_000, "too long"),
    ],
)
def test_a_bad_template_is_told_what_is_wrong_with_it(template: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Topic(template)


def test_topics_are_remembered_up_to_a_bound() -> None:
    topic = Topic("{uuid}")
    event = fields()

    assert topic.of(event) is topic.of(event)
    for number in range(5000):
        topic.of(make_entry(number).fields)
    assert topic.fill.cache_info().currsize <= 4096


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_text_for_a_property_has_nothing_that_a_broker_refuses(text: str) -> None:
    cleaned = clean_text(text).decode()

    assert len(cleaned) == len(text)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in cleaned)
    assert not any(ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF for character in cleaned)
    assert clean_text(cleaned) == cleaned.encode()


def test_text_for_a_property_is_cut_between_characters() -> None:
    text = clean_text("ä" * MAX_TEXT_BYTES)

    assert len(text) == MAX_TEXT_BYTES - 1
    assert set(text.decode()) == {"ä"}
