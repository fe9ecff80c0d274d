"""Fixtures of the tests of the forwarder and the supervisor."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.forwarding import Bench, Make
from tests.support.supervision import Diary, Watched


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    benches: list[Bench] = []

    def make_(options: dict[str, Any] | None = None, **sink_settings: Any) -> Bench:
        benches.append(Bench(tmp_path, options or {}, sink_settings))
        return benches[-1]

    yield make_
    for bench in benches:
        bench.journal.close()


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
def journal(tmp_path: Path, diary: Diary) -> Iterator[Watched]:
    opened = Watched(tmp_path / "journal.db", diary)
    yield opened
    opened.close()


@pytest.fixture
def _quick_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.pipeline.supervisor._LAST_SECONDS", 0.05)
