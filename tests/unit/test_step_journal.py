"""Answers of models outlive a crash until their decision is durable, and nothing damaged is taken for an answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from output_factory import news_output, technical_output

from orchestration.step_journal import COMPACT_AFTER, StepJournal, step_key


def test_an_answer_is_found_after_a_restart_until_its_decision_is_durable(tmp_path: Path) -> None:
    path = tmp_path / "state" / "steps.jsonl"
    journal = StepJournal(path)
    journal.add("k1", "d1", news_output())
    journal.add("k2", "d2", technical_output())
    again = StepJournal(path)  # the first was never closed
    assert (again.find("k1"), again.find("k2"), again.find("k3")) == (news_output(), technical_output(), None)
    again.forget(["d1", "unknown"])
    assert (again.find("k1"), len(again)) == (None, 1)
    again.forget(["d2"])
    assert path.read_bytes() == b""


@pytest.mark.parametrize("cut", [1, 20, 400])
def test_a_torn_line_is_dropped_and_the_next_one_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "steps.jsonl"
    journal = StepJournal(path)
    journal.add("k1", "d1", news_output())
    journal.add("k2", "d1", technical_output())
    journal.close()
    path.write_bytes(path.read_bytes()[:-cut])
    torn = StepJournal(path)
    assert torn.find("k1") == news_output()
    torn.add("k3", "d1", news_output(confidence=0.5))
    torn.close()
    found = StepJournal(path).find("k3")
    assert found is not None
    assert found.confidence == 0.5


def test_a_changed_answer_is_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    journal = StepJournal(path)
    journal.add("k1", "d1", news_output(confidence=0.66))
    journal.close()
    path.write_bytes(path.read_bytes().replace(b"0.66", b"0.99"))
    assert StepJournal(path).find("k1") is None


def test_the_file_does_not_grow_without_end(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    journal = StepJournal(path)
    journal.add("kept", "waiting", news_output())
    one = path.stat().st_size
    for number in range(COMPACT_AFTER):
        journal.add(f"k{number}", f"d{number}", news_output())
        journal.forget([f"d{number}"])
    assert path.stat().st_size == one
    assert StepJournal(path).find("kept") == news_output()


def test_whatever_an_answer_may_depend_on_is_part_of_its_question() -> None:
    base = ("s", "news", "p", "h", {"a": 1})
    others = [("t", *base[1:]), ("s", "x", *base[2:]), ("s", "news", "q", *base[3:]), (*base[:3], "i", {"a": 1})]
    keys = {step_key(*base), *(step_key(*other) for other in others), step_key("s", "news", "p", "h", {"a": 2})}
    assert len(keys) == 6


def test_a_full_disk_costs_no_answer_and_spoils_no_later_line(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from output_factory import news_output
from orchestration.step_journal import StepJournal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
journal = StepJournal(path)
journal.add("k1", "d1", news_output())
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
journal.add("k2", "d2", news_output())
assert journal.find("k2") == news_output()
journal.add("k3", "d3", news_output())
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
journal.add("k4", "d4", news_output())
journal.close()
"""
    path = tmp_path / "steps.jsonl"
    here = os.pathsep.join((str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    subprocess.run(
        [sys.executable, "-c", code, str(path)], env={**os.environ, "PYTHONPATH": here}, check=True, timeout=60
    )
    again = StepJournal(path)
    assert [again.find(key) is not None for key in ("k1", "k2", "k3", "k4")] == [True, False, False, True]
