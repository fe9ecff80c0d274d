"""The alerts of `deploy/alerts.yaml`, and promtool, which says whether they fire."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

FILE: Final = Path(__file__).parents[2] / "deploy" / "alerts.yaml"
RULES: Final[list[dict[str, Any]]] = [rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]
ALERTS: Final = {rule["alert"]: rule for rule in RULES if "alert" in rule}


def names_in(expression: str) -> set[str]:
    """Return the names of metrics and of recorded series in an expression."""
    bare = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"\b(?:event_bridge|process|python)[\w:]*|\bup\b", bare))


def firing(alert: str, minute: int, *, expected: bool = True) -> dict[str, Any]:
    """Return a test of promtool: the alert fires at this minute, or it does not."""
    expression = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    samples = [{"labels": "{}", "value": 1}] if expected else []
    return {"expr": expression, "eval_time": f"{minute}m", "exp_samples": samples}


def run_promtool(directory: Path, values: Mapping[str, str], looks: Sequence[dict[str, Any]]) -> str:
    """Let promtool run tests with these series, a value each minute; return its complaints.

    Args:
        directory: For a file.
        values: Values in the notation of promtool, by the name of the series without `event_bridge_`, with its labels.
        looks: See `firing`.
    """
    series = [{"series": _series(name), "values": points} for name, points in values.items()]
    tests = [{"interval": "1m", "input_series": series, "promql_expr_test": list(looks)}]
    path = directory / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(FILE)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", str(path)], check=False, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _series(name: str) -> str:
    """Return a series with the prefix of ours, and with the labels that a scrape adds."""
    bare, _, labels = name.partition("{")
    whole = bare if bare == "up" else f"event_bridge_{bare}"
    all_labels = filter(None, ['job="event-bridge",instance="bridge:9477"', labels.rstrip("}")])
    return f"{whole}{{{','.join(all_labels)}}}"
