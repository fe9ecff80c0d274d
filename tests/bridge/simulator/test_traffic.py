from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import frames
from bridge.frames import FrameReader
from bridge.simulator.settings import SimulatorSettings
from bridge.simulator.traffic import Channel, Traffic, read_replay

NOW = datetime(2016, 2, 1, 16, 47, 28, tzinfo=UTC)


def settings(**options: Any) -> SimulatorSettings:
    return SimulatorSettings(**{"rate": 0, "seed": 1, **options})


@pytest.mark.parametrize("rate", [0, 100])
def test_the_same_seed_and_time_give_the_same_bytes(rate: float) -> None:
    options = settings(rate=rate, duplicates=0.2, malformed=0.2, fragmented=0.2)
    first, second = (Traffic(options).take(1000, ["acme", ""], NOW, options) for _ in range(2))

    assert [item.frame for batch in first for item in batch.items] == [item.frame for batch in second for item in batch.items]
    assert b'"datetime":"2016-02-01T16:47:28Z"' in first[0].items[0].payload


def test_without_a_seed_every_simulator_tells_another_story() -> None:
    options = settings(seed=None)
    first, second = (Traffic(options).take(1, ["acme"], NOW, options)[0].items[0] for _ in range(2))

    assert first.uuid != second.uuid


@given(st.binary(min_size=1, max_size=300), st.integers())
def test_a_fragmented_message_is_whole_in_the_end(payload: bytes, seed: int) -> None:
    [item] = Channel(iter([(b"", payload)]), str(seed)).take(1, settings(fragmented=1))
    taken = FrameReader(1000).feed(item.frame)

    assert (taken.messages, taken.error) == ([payload], None)
    assert [control.opcode for control in taken.controls] == [frames.PING]


def test_a_list_to_replay_is_checked_like_a_file() -> None:
    with pytest.raises(ValueError, match="replay:2: not a JSON object"):
        list(read_replay(["{}", "no"]))


@pytest.mark.parametrize("line", ["{", "[1]", '"text"', "\udc80", '{"a":1} {"a":2}'])
def test_a_replay_with_a_line_that_is_no_object_is_refused_with_its_place(tmp_path: Path, line: str) -> None:
    path = tmp_path / "captured.jsonl"
    path.write_text(f'{{"type":"a"}}\n\n{line}\n', encoding="utf-8", errors="surrogateescape")

    with pytest.raises(ValueError, match=r"captured\.jsonl:3: not a JSON object"):
        Traffic(settings(replay=path))
