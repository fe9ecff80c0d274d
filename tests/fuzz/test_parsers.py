"""No input makes a parser slow, raise what nobody expects, or keep more than it should. `make fuzz` looks for longer."""

import json
import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import mutations
from tests.fuzz.parsers import ENGINE, EVENT, PARSERS, engine, sinks, with_field

SMALL = 1 << 13
FACTOR = 16


def seconds(run: Callable[[bytes], object], data: bytes) -> float:
    """The least time of the processor in several runs, which other work on the machine disturbs least."""
    durations = []
    for _ in range(5):
        began = time.thread_time()
        run(data)
        durations.append(time.thread_time() - began)
    return min(durations)


@pytest.mark.parametrize("name", PARSERS)
def test_sixteen_times_the_input_takes_about_sixteen_times_as_long(name: str) -> None:
    """Quadratic would be 256 times. What is over in a millisecond may vary as it likes."""
    run, _, hostile = PARSERS[name]
    for small, large in zip(hostile(SMALL), hostile(FACTOR * SMALL), strict=True):
        growth = seconds(run, large) / max(seconds(run, small), 0.001)
        assert growth < 5 * FACTOR, f"{large[:60]!r}…: {growth:.0f} times as long"


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_raises_nothing_that_is_not_expected_of_it(name: str) -> None:
    run, seeds, hostile = PARSERS[name]
    for data in [*seeds, *hostile(1 << 10), *mutations(seeds, 300, seed=1)]:
        run(data)


@given(name=st.sampled_from(sorted(PARSERS)), data=st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
@example(name="event", data=b'{"uuid":1e400}')
def test_random_bytes_harm_no_parser(name: str, data: bytes) -> None:
    PARSERS[name].run(data)


@pytest.mark.parametrize("field", ["resource_uri", "state", "type", "action", "namespace"])
def test_what_sinks_make_of_long_fields_is_not_kept(field: str) -> None:
    assert kept_bytes(lambda number: sinks(with_field(field, f"/{number}" + "x" * 100_000))) < 2_000_000


def test_what_an_engine_s_labels_become_is_not_kept() -> None:
    body = json.loads(ENGINE)

    def take(number: int) -> None:
        body["Actor"]["Attributes"]["com.docker.compose.project"] = f"{number}" + "x" * 100_000
        engine(json.dumps(body).encode() + b"\n")

    assert kept_bytes(take) < 2_000_000


def kept_bytes(take: Callable[[int], None]) -> int:
    """The memory that is still held after a hundred inputs."""
    sinks(EVENT)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(100):
            take(number)
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
