"""Failures that a sink returns, in a form that is easily compared."""

from collections.abc import Sequence

from bridge.sink import Failure


def outcomes(failures: Sequence[Failure]) -> dict[int, tuple[str, str]]:
    """Return the outcome and the reason of each event that failed."""
    return {failure.seq: (failure.outcome, failure.reason) for failure in failures}
