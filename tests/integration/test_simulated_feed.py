"""The daemon on a simulated market, from outside: a run to its end, a kill and a resume, a replay of the exported market.

Real processes and a real embedded database, about a minute.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from daemon_runner import Daemon, Ended, Stored, lines, new_home, query, run_to_end, stored

from data_pipeline.simulation.__main__ import main

pytestmark = pytest.mark.timeout(280)

SYMBOLS = ("SIMA", "SIMB", "SIMC")
SESSIONS = 120
SETTINGS = f"simulation:\n  sessions: {SESSIONS}\n  seed: 11\n  symbols: [{', '.join(SYMBOLS)}]\n"
NO_LEARNING = ("--enable_streaming", "--enable_monitoring", "--exit_when_done")


def flags(home: Path, name: str = "", feed: str = "simulated") -> tuple[str, ...]:
    settings = home / "settings.yaml"
    settings.write_text(SETTINGS)
    return (
        "--feed", feed, "--config", str(settings), *NO_LEARNING,
        "--decisions_jsonl", str(home / f"decisions{name}.jsonl"),
        "--summary_json", str(home / f"summary{name}.json"),
    )  # fmt: skip


@dataclass(frozen=True)
class Reference:
    home: Path
    ended: Ended
    summary: dict[str, Any]
    decisions: bytes
    stored: Stored


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    with new_home() as home:
        ended = run_to_end(home, *flags(home))
        assert ended.exit_code == 0, ended.stderr
        summary = json.loads((home / "summary.json").read_text())
        yield Reference(home, ended, summary, (home / "decisions.jsonl").read_bytes(), stored(home / "data"))


def test_a_simulated_run_decides_on_every_session_and_symbol_and_settles_what_has_passed(reference: Reference) -> None:
    decided = lines(reference.home / "decisions.jsonl")
    assert len(decided) == SESSIONS * len(SYMBOLS)
    assert reference.summary["decisions"] == SESSIONS * len(SYMBOLS)
    assert reference.summary["symbols"] == list(SYMBOLS)
    assert reference.summary["rejected_records"] == {}
    assert reference.summary["fills"] > 0
    by_agent = {name for line in decided for name, agent in line["agents"].items() if not agent["abstained"]}
    assert by_agent >= {"news", "technical", "fundamental"}
    assert any(outcome[3] is not None for outcome in reference.stored.outcomes)


def test_its_figures_are_said_to_be_of_generated_data_and_never_called_performance(reference: Reference) -> None:
    assert reference.summary["kind_of_result"] == "generated data: mechanics, not performance"
    assert reference.summary["performance"] is None
    assert reference.summary["figures_on_generated_data"]["strategy"]["total_return"] is not None
    assert "of generated data: they show that the mechanism works, nothing about real shares" in reference.ended.stdout
    assert "generated data" in reference.ended.stderr


def test_its_run_is_of_simulated_mode_with_the_scenario_among_its_hashes(reference: Reference) -> None:
    ((mode, hashes),) = query(
        reference.home / "data", "SELECT mode, data_hashes FROM runs WHERE run_id = %s", (reference.summary["run_id"],)
    )
    assert mode == "simulated"
    assert len(hashes["data_hashes"]["scenario"]) == 64


def test_the_status_says_what_kind_of_result_it_is() -> None:
    with new_home() as home, Daemon(home, *flags(home)[:-5], "--enable_streaming", "--enable_monitoring") as daemon:
        feed = daemon.until(lambda: daemon.status().get("feed"), "the feed in the status")
        assert feed["mode"] == "simulated"
        assert feed["kind_of_result"] == "generated data: mechanics, not performance"
        daemon.terminate()


def test_a_killed_run_goes_on_to_the_same_end(reference: Reference) -> None:
    with new_home() as home:
        with Daemon(home, *flags(home)) as daemon:
            path = home / "decisions.jsonl"
            daemon.until(lambda: path.is_file() and path.read_bytes().count(b"\n") > 150, "150 decisions")
            os.kill(daemon.process.pid, signal.SIGKILL)
            daemon.process.wait(10)
        ended = run_to_end(home, *flags(home))
        assert ended.exit_code == 0, ended.stderr
        assert path.read_bytes() == reference.decisions
        assert stored(home / "data") == reference.stored


def test_another_start_of_a_finished_run_reports_it_without_deciding_again(reference: Reference) -> None:
    ended = run_to_end(reference.home, *flags(reference.home, "_again"))
    assert ended.exit_code == 0, ended.stderr
    assert json.loads((reference.home / "summary_again.json").read_text()) == reference.summary


def test_a_replay_of_the_exported_market_takes_the_same_decisions(reference: Reference) -> None:
    with new_home() as home:
        folder = home / "market"
        command = ["--output", str(folder), "--sessions", str(SESSIONS), "--seed", "11", "--symbols", *SYMBOLS]
        assert main(command) == 0
        folder.chmod(0o755)
        ended = run_to_end(home, *flags(home, feed="replay"), "--replay_dir", str(folder))
        assert ended.exit_code == 0, ended.stderr
        assert (home / "decisions.jsonl").read_bytes() == reference.decisions
        summary = json.loads((home / "summary.json").read_text())
        assert summary["run_id"] != reference.summary["run_id"]
