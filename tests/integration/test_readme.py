"""The Python snippets of README.md run as written, in a fresh interpreter each, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="readme-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def run(snippet: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_the_readme_has_the_six_snippets_that_are_checked_here() -> None:
    assert len(SNIPPETS) == 6


def test_the_daemon_runs_from_a_notebook_as_documented(folder: Path) -> None:
    printed = run(SNIPPETS[0], folder)
    assert "Overall healthy: True" in printed
    equity, decisions = printed.splitlines()[0].split()
    assert float(equity) > 0
    assert (
        int(decisions) == 3 * 103
    )  # sessions from 2012-10-01 to 2013-03-01; the exchange was closed for a storm on two days


def test_one_decision_is_analysed_without_a_daemon_as_documented(folder: Path) -> None:
    printed = run(SNIPPETS[1], folder)
    assert re.match(r"(strong_)?(buy|sell)|hold", printed)
    assert "RSI" in printed


def test_a_library_of_ones_own_works_as_documented(folder: Path) -> None:
    printed = run(SNIPPETS[2], folder).splitlines()
    assert "'total': 1, 'successful': 1" in printed[0]
    assert printed[1] == "0.07"


def test_an_error_in_an_output_is_found_where_it_stands_as_documented(folder: Path) -> None:
    printed = run(SNIPPETS[5], folder)
    assert "('indicator_calculation_error', 'high', '/indicators/rsi_14')" in printed
    assert "/indicators/rsi_14: indicator_calculation_error, high." in printed


def test_a_panel_grades_an_output_as_documented(folder: Path) -> None:
    status, score, *reasoning = run(SNIPPETS[3], folder).split()
    assert status == "ok"
    assert 0 <= float(score) <= 100
    assert reasoning


def test_a_workflow_runs_by_hand_as_documented(folder: Path) -> None:
    printed = run(SNIPPETS[4], folder)
    assert re.match(r"(buy|sell|hold) \['validator added", printed)
