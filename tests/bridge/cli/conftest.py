"""What all tests of commands share."""

import pytest

from bridge import logs


@pytest.fixture(autouse=True)
def _logging_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging belongs to the process of all tests here; loggers keep the first set-up that they see."""
    monkeypatch.setattr(logs, "configure", lambda *_: None)
