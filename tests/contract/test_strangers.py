"""The contract suite runs for a sink that does not come with the bridge, as `docs/sinks.md` says, and finds its faults."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.harness import strangers

ROOT = Path(__file__).parent.parent.parent


def run_suite(folder: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the suite in a process of its own, with the guide's sink and harness in a module `strange`."""
    (folder / "strange.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract/test_sinks.py", *options]
    variables = {"EVENT_BRIDGE_CONTRACT": "strange:AppendHarness", "PYTHONPATH": str(folder)}
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=90
    )


@pytest.fixture(scope="module")
def guide() -> str:
    """The sink and the harness of the guide."""
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "sinks.md").read_text(), re.MULTILINE | re.DOTALL))
    assert "class AppendSink" in code
    assert "class AppendHarness" in code
    return code


def test_the_sink_of_the_guide_keeps_the_contract(tmp_path: Path, guide: str) -> None:
    done = run_suite(tmp_path, guide, "-vv")

    assert done.returncode == 0, done.stdout
    assert "[AppendHarness]" in done.stdout
    assert "[Webhook]" not in done.stdout
    assert "no harness here is able to: withhold" in done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 8


def test_a_sink_that_loses_an_event_is_found_out(tmp_path: Path, guide: str) -> None:
    bad = guide.replace("for entry in entries)", "for entry in entries if not entry.fields.uuid.endswith('7'))")
    assert bad != guide

    done = run_suite(tmp_path, bad)

    assert done.returncode == 1
    assert "FAILED tests/contract/test_sinks.py::test_ten_thousand_events_in_a_row_arrive[AppendHarness]" in done.stdout


@pytest.mark.parametrize("name", ["pathlib:Path", "pathlib:Nothing", "pathlib"])
def test_what_is_no_harness_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("EVENT_BRIDGE_CONTRACT", name)

    with pytest.raises(TypeError, match=f"EVENT_BRIDGE_CONTRACT: {name} is no module:Class"):
        strangers()
