"""What every sink's settings have in common, and the words between a forwarder and a sink."""

import importlib
import sys
from typing import Any, Self

import pytest
from pydantic import ValidationError

from bridge import field_types
from bridge.event import Fields
from bridge.policy import FILTER_FIELDS
from bridge.sink import REASONS, Entry, Failure, SinkSettings, Unavailable

EVENT = (
    b'{"type":"container","action":"update","state":"Running","resource_uri":"/api/app/v1/acme/container/7/",'
    b'"parents":[],"uuid":"093ba3bb-08dd-48f0-8f12-4d3b85ef85b3","datetime":"2016-02-01T16:47:28Z",'
    b'"exit_code":1,"namespace":"acme","received_at":"2026-11-23T17:00:00.123456Z"}'
)


def settings(**changes: Any) -> SinkSettings:
    return SinkSettings.model_validate({"type": "kafka"} | changes)


def why_not(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        settings(**changes)
    return str(caught.value)


# --- settings ----------------------------------------------------------------------------------------------------------


def test_a_sink_needs_nothing_but_its_type() -> None:
    plain = settings()

    assert (plain.match, plain.drop, plain.ordering, plain.start_at) == ([], [], "resource", "latest")
    assert (plain.batch.max_events, plain.batch.max_bytes, plain.batch.max_wait) == (1000, 1 << 20, 0.0)
    assert (plain.retry.first_delay, plain.retry.max_delay, plain.retry.max_pending) == (1.0, 600.0, 1000)
    assert (plain.retry.max_age, plain.retry.max_attempts) == (72 * 3600.0, None)


def test_units_are_understood() -> None:
    changed = settings(batch={"max_bytes": "64KiB", "max_wait": "50ms"}, retry={"max_age": "3d", "max_delay": "10m"})

    assert (changed.batch.max_bytes, changed.batch.max_wait) == (65536, 0.05)
    assert (changed.retry.max_age, changed.retry.max_delay) == (259200.0, 600.0)


def test_a_rule_may_be_written_short() -> None:
    assert settings(match={"state": "Running"}).match == [{"state": ["Running"]}]
    assert settings(drop=[{"state": "Running", "type": ["node", "service"]}]).drop == [
        {"state": ["Running"], "type": ["node", "service"]}
    ]


@pytest.mark.parametrize("field", FILTER_FIELDS)
def test_every_field_of_the_filter_can_be_set(field: str) -> None:
    assert settings(match={field: "*"}).match == [{field: ["*"]}]


@pytest.mark.parametrize("name", ["match", "drop"])
def test_a_rule_about_an_unknown_field_is_refused_with_those_that_exist(name: str) -> None:
    assert f"no such field: stat, uuid; fields are {', '.join(FILTER_FIELDS)}" in why_not(
        **{name: [{"stat": "x", "uuid": "y", "type": "z"}]}
    )


def test_an_empty_rule_is_refused_since_it_would_fit_everything() -> None:
    assert "no such field: (empty rule)" in why_not(drop=[{}])


@pytest.mark.parametrize("name", ["match", "drop"])
def test_a_field_without_a_pattern_is_refused(name: str) -> None:
    assert "no pattern for parents, state" in why_not(**{name: [{"type": "node", "state": [], "parents": []}]})


@pytest.mark.parametrize("rules", [7, "state", [7], [["state"]], [{"state": 7}], [{"state": [7]}], [{"state": None}], {7: "x"}])
def test_what_is_no_rule_is_refused(rules: object) -> None:
    why_not(match=rules)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": {"max_events": 0}},
        {"batch": {"max_events": 100_001}},
        {"batch": {"max_bytes": 0}},
        {"batch": {"max_wait": -1}},
        {"batch": {"max_wait": "2m"}},
        {"retry": {"first_delay": 0}},
        {"retry": {"max_delay": float("inf")}},
        {"retry": {"max_attempts": 0}},
        {"retry": {"max_pending": 0}},
        {"ordering": "global"},
        {"start_at": "yesterday"},
    ],
)
def test_what_is_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    (name,) = changes

    assert name in why_not(**changes)


@pytest.mark.parametrize("changes", [{"pasword": "geheim"}, {"batch": {"max_event": "geheim"}}, {"retry": "geheim"}])
def test_an_error_never_repeats_what_was_set(changes: dict[str, Any]) -> None:
    assert "geheim" not in why_not(**changes)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        settings().ordering = "none"


# --- entries and failures ----------------------------------------------------------------------------------------------


def test_an_entry_s_fields_are_decoded_once() -> None:
    entry = Entry(7, 1700000000.0, EVENT)

    assert entry.fields is entry.fields
    assert entry.fields == Fields(
        type="container",
        action="update",
        state="Running",
        resource_uri="/api/app/v1/acme/container/7/",
        parents=[],
        uuid="093ba3bb-08dd-48f0-8f12-4d3b85ef85b3",
        datetime="2016-02-01T16:47:28Z",
        namespace="acme",
        received_at="2026-11-23T17:00:00.123456Z",
    )


def test_a_failure_tells_which_event_what_becomes_of_it_and_why() -> None:
    entry = Entry(7, 1700000000.0, EVENT)

    assert Failure.retry(entry, "timeout", "no answer in 5 s") == Failure(7, "retry", "timeout", "no answer in 5 s", None)
    assert Failure.retry(entry, "throttled", "429", 30.0).retry_after == 30.0
    assert Failure.rejected(entry, "too_large", "413") == Failure(7, "rejected", "too_large", "413")
    assert (Failure.held(entry).outcome, Failure.held(entry).reason) == ("held", "held")


def test_a_sink_that_is_unavailable_may_say_when_and_what_was_delivered() -> None:
    error = Unavailable("503 Service Unavailable", "server_error", retry_after=5.0, delivered=(7, 8))

    assert str(error) == "503 Service Unavailable"
    assert (error.reason, error.retry_after, error.delivered) == ("server_error", 5.0, (7, 8))
    assert (Unavailable("x").reason, Unavailable("x").retry_after, Unavailable("x").delivered) == ("unreachable", None, ())


def test_reasons_are_a_small_set_of_label_values() -> None:
    assert len(REASONS) == len(set(REASONS)) == 11
    assert all(reason.isidentifier() for reason in REASONS)


# --- names of before ---------------------------------------------------------------------------------------------------


def test_the_old_name_of_the_field_types_works_and_warns() -> None:
    sys.modules.pop("bridge.units", None)
    with pytest.warns(FutureWarning, match=r"bridge\.field_types"):
        units = importlib.import_module("bridge.units")

    assert (units.Seconds, units.Bytes) == (field_types.Seconds, field_types.Bytes)


class _OldPreflight(SinkSettings):
    def for_a_check(self) -> Self:
        return super().for_a_check().model_copy(update={"type": "check"})


def test_settings_that_override_the_old_name_of_for_preflight_work_and_warn() -> None:
    assert settings().for_preflight() == settings()
    assert _OldPreflight(type="old").for_preflight().type == "check"
    assert _OldPreflight(type="old").deprecations == ["the plug-in for type old: for_a_check is called for_preflight now"]
    assert settings().deprecations == ()
