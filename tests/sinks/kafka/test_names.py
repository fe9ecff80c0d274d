import pytest

from bridge.event import Fields
from sinks.kafka.names import Keys, Topics, problem_of


def event(**fields: object) -> Fields:
    base = {
        "type": "container",
        "action": "update",
        "state": "Not running",
        "resource_uri": "/api/app/v1/acme/container/0b0e3538-88df/",
        "parents": [],
        "uuid": "093ba3bb-08dd-48f0-8f12-4d3b85ef85b3",
        "datetime": "2016-02-01T16:47:28Z",
        "namespace": "acme",
        "received_at": "2026-11-23T17:00:00.123456Z",
    }
    return Fields(**base | fields)  # type: ignore[arg-type]  # The test gives what it wants.


@pytest.mark.parametrize(
    ("template", "topic"),
    [
        ("docker-events", "docker-events"),
        ("docker.{namespace}.{type}", "docker.acme.container"),
        ("{action}_{state}", "update_Not_running"),
        ("of.{resource_uuid}", "of.0b0e3538-88df"),
    ],
)
def test_a_topic_is_made_of_the_events_fields(template: str, topic: str) -> None:
    assert Topics(template).name(event()) == topic


def test_what_can_not_stand_in_a_topic_becomes_an_underscore() -> None:
    topics = Topics("docker.{namespace}.{state}")

    assert topics.name(event(namespace="", state="läuft: 運行/*")) == "docker._.l_uft______"
    assert problem_of(topics.name(event(namespace="../..", state="{x}"))) is None


def test_a_resource_without_a_uuid_is_an_underscore() -> None:
    assert Topics("{resource_uuid}").name(event(resource_uri="")) == "_"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("", "'' can't be the name"),
        ("..", "'..' can't be the name"),
        ("a b", "' ' can't stand in the name"),
        ("docker/{type}", "'/' can't stand in the name"),
        ("x" * 250, "249 characters at most, this one has 250"),
        ("x" * 248 + "{type}{state}", "249 characters at most, those of this template have 250 or more"),
        ("{uuid}", "{uuid} can't stand here; fields are {type}, {action}, {state}, {namespace}, {resource_uuid}"),
        ("{type.__class__}", "{type.__class__} can't stand here"),
        ("{parents[0]}", "{parents[0]} can't stand here"),
        ("{type!r}", "{type!r} can't stand here"),
        ("{type:>{state}}", "{type:>{state}} can't stand here"),
        ("{}", "{} can't stand here"),
        ("{0}", "{0} can't stand here"),
        ("{type", "a brace without its other half"),
        ("type}", "a brace without its other half"),
    ],
)
def test_a_bad_topic_template_is_refused_with_the_reason(template: str, words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are compared below
        Topics(template)
    assert words in str(error.value)


def test_a_topic_template_may_make_names_of_the_greatest_length() -> None:
    assert len(Topics("x" * 240 + "{type}").name(event())) == 249


def test_the_key_is_the_resource_uri_unless_something_else_is_wanted() -> None:
    assert Keys("{resource_uri}").key(event()) == b"/api/app/v1/acme/container/0b0e3538-88df/"
    assert Keys("{namespace}/{uuid}").key(event()) == b"acme/093ba3bb-08dd-48f0-8f12-4d3b85ef85b3"
    assert Keys("{state}").key(event(state="Läuft")) == "Läuft".encode()
    assert Keys("{resource_uri}").key(event(resource_uri="")) == b""


def test_an_empty_template_makes_records_without_a_key() -> None:
    assert Keys("").key(event()) is None
