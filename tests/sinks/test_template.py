from bridge.event import Fields
from sinks.kafka.records import KEY_FIELDS, TOPIC_FIELDS
from sinks.template import Template, resource_uuid
from tests.contract.harness import make_entry


def event(**changes: str) -> Fields:
    return make_entry(1, **changes).fields


def test_braces_can_be_written() -> None:
    template = Template("{{{type}}}", KEY_FIELDS)

    assert template.render(template.values(event())) == "{container}"


def test_every_field_that_is_offered_can_be_used() -> None:
    for fields in (TOPIC_FIELDS, KEY_FIELDS):
        template = Template("".join("{" + name + "}" for name in fields), fields)
        assert template.render(template.values(event())).startswith("containerupdateRunningacme")


def test_an_old_name_is_accepted_and_known_as_such() -> None:
    template = Template("{id}/{type}", ["type", "resource_uuid"], {"id": "resource_uuid"})

    assert (template.names, template.renamed) == (["resource_uuid", "type"], {"id": "resource_uuid"})
    assert template.render(template.values(event(resource_uri="/a/b/"))) == "b/container"


def test_the_resource_uuid_is_the_last_segment_of_the_uri() -> None:
    assert resource_uuid(event(resource_uri="/api/app/v1/service/abc/")) == "abc"
    assert resource_uuid(event(resource_uri="abc")) == "abc"
    assert resource_uuid(event(resource_uri="")) == ""
