"""The table says what was wrong, and the evidence is kept."""

import json
import re
from pathlib import Path

from tests.faults.oracle import Oracle
from tests.faults.report import RULES, keep_evidence, summary, table
from tests.faults.rig import SINKS


def test_every_rule_has_its_line_and_every_violation_shows(tmp_path: Path) -> None:
    oracle = Oracle(["stdout"])
    for times, rule in enumerate(RULES, 1):
        for _ in range(times):
            oracle.violate(rule, "stdout", "what was seen")

    lines = table(oracle, {"Kills": 1234}).splitlines()
    kept = [json.loads(line) for line in keep_evidence(oracle, tmp_path).read_text().splitlines()]

    assert lines[:3] == ["| What | Figure |", "| --- | --- |", "| Kills | 1,234 |"]
    assert lines[-len(RULES) :] == [f"| {words} | {times} |" for times, words in enumerate(RULES.values(), 1)]
    assert summary(oracle).splitlines()[1] == "lost at stdout: what was seen"
    assert summary(Oracle(["stdout"])) == ""
    assert len(kept) == sum(range(1, len(RULES) + 1))
    assert kept[0] == {"rule": "lost", "place": "stdout", "evidence": "what was seen"}


def test_dead_letters_are_shown_where_there_are_any() -> None:
    oracle = Oracle(["stdout", "webhook"])
    oracle.tallies["webhook"].dead.add("x")

    assert [line for line in table(oracle, {}).splitlines() if "Dead" in line] == [
        "| Dead letters of webhook, rejected by the receiver | 1 |"
    ]


def test_every_rule_that_the_oracle_states_is_in_the_table() -> None:
    stated = (Path(__file__).with_name("oracle.py")).read_text().partition("An event is in flight")[0]

    assert [line.split()[0] for line in stated.splitlines()[4:] if line] == list(RULES)


def test_the_run_of_record_is_one_in_which_nothing_was_wrong() -> None:
    document = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", document.partition("## The run of record")[2], re.MULTILINE))

    assert {words: rows[words] for words in RULES.values()} == dict.fromkeys(RULES.values(), "0")
    assert {name for name in rows if name.startswith("Arrived at")} == {f"Arrived at {sink}" for sink in SINKS}
    assert rows["Events per second"] == "2000"
