"""What all tests of commands share."""

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from bridge import logs


@pytest.fixture(autouse=True)
def _logging_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logging belongs to the process of all tests here; loggers keep the first set-up that they see."""
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    with capture_logs():
        yield
