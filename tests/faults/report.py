"""Report of a long run: a table in Markdown, and the evidence of each violation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.figures import SIZES
from benchmarks.machine import machine
from tests.faults.oracle import Oracle

RULES: Final = {
    "lost": "Committed events that were lost",
    "unknown": "Arrivals of what was never sent",
    "uncommitted": "Arrivals of what was not committed",
    "changed": "Payloads that were changed",
    "order": "Violations of the order per resource",
    "repeated": "Duplicates without an explanation",
    "journal": "Faults of the journal's contents",
    "torn": "Lines cut short without a kill",
    "books": "Times that the books did not balance, or went back",
    "progress": "Times that it did not go on",
}
"""Each rule of the oracle, as the table has it."""


def table(oracle: Oracle, facts: Mapping[str, object]) -> str:
    """The run in figures.

    Args:
        oracle: What it knows.
        facts: More to say of the run, before the figures.
    """
    rows = [*facts.items(), ("Events sent", oracle.sent_count), ("Events committed", oracle.committed_count)]
    for sink, tally in oracle.tallies.items():
        words = f"{tally.arrived:,}, and {tally.explained:,} duplicates that were in flight at a fault"
        rows.append((f"Arrived at {sink}", words))
        if tally.dead:
            rows.append((f"Dead letters of {sink}, rejected by the receiver", len(tally.dead)))
    rows.append(("Looks at the books", oracle.checks))
    rows += [(words, oracle.broken[rule]) for rule, words in RULES.items()]
    lines = ["| What | Figure |", "| --- | --- |"]
    return "\n".join(lines + [f"| {name} | {f'{value:,}' if isinstance(value, int) else value} |" for name, value in rows])


def about_this_machine() -> dict[str, object]:
    """Describe the machine."""
    return {figure.what: figure.value for figure in machine(SIZES["quick"])}


def summary(oracle: Oracle) -> str:
    """Return the violations in a few lines; empty if there are none."""
    lines = [f"{violation.rule} at {violation.place}: {violation.evidence[:1000]}" for violation in oracle.violations[:20]]
    return "\n".join([f"{dict(oracle.broken)}", *lines]) if lines else ""


def keep_evidence(oracle: Oracle, directory: Path) -> Path:
    """Write down what is wrong, a line of JSON for each."""
    path = directory / "violations.jsonl"
    path.write_text(
        "".join(json.dumps({"rule": v.rule, "place": v.place, "evidence": v.evidence}) + "\n" for v in oracle.violations)
    )
    return path
