"""The decision thread dies and is started again, the daemon around it lives on: the run ends as if nothing had been.

Without learning, so that commits overlap the decisions. Faults strike at fixed instants: while an instant is published,
while the next is decided upon, after a commit that nobody heard of. Judging is slowed down, so that grades come late.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from daemon_runner import new_home

import monitoring.production_orchestrator as production
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library.cycle import CycleBatch
from monitoring.decision_log import DecisionLog
from monitoring.production_orchestrator import OrchestratorConfig, ProductionOrchestrator
from monitoring.supervision import SupervisedThread
from orchestration.coordinator import Coordinator
from orchestration.judging import Judging
from utils.setting_sections import DecisionSettings

pytestmark = pytest.mark.timeout(180)

STRIKES = (7, 8, 15, 21)
"""Calls, counted over the whole run, at which a fault strikes."""


class Struck(Exception):
    """The injected fault."""


@dataclass(frozen=True)
class Left:
    """What a run leaves behind."""

    decisions: bytes
    events: list[Any]
    outcomes: list[Any]
    grades: list[Any]


def striking(work: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
    """Return `work` failing at its STRIKES-th calls, before or after it is done."""
    calls = 0
    lock = threading.Lock()

    @functools.wraps(work)
    def struck(*arguments: Any) -> Any:
        nonlocal calls
        with lock:
            calls += 1
            now = calls in STRIKES
        if now and not after:
            raise Struck(f"call {calls}")
        result = work(*arguments)
        if now:
            raise Struck(f"after call {calls}")
        return result

    return struck


def run(home: Path, horizon: str) -> tuple[Left, int]:
    """Replay two months; returns what it left, and how often the decision thread was started again."""
    orchestrator = ProductionOrchestrator(
        OrchestratorConfig(
            data_dir=home / "data",
            decisions_jsonl=home / "decisions.jsonl",
            replay_start="2012-03-01",
            replay_end="2012-04-30",
            enable_learning_loop=False,
            enable_monitoring=False,
            decision=DecisionSettings(horizon=horizon),
        )
    )
    orchestrator.start()
    try:
        assert orchestrator.finished.wait(120), orchestrator.status
        library = orchestrator.get_component("experience_library")
        with library.connection() as connection:
            left = Left(
                (home / "decisions.jsonl").read_bytes(),
                connection.execute("SELECT hash FROM portfolio_events ORDER BY seq").fetchall(),
                connection.execute(
                    "SELECT trajectory_id, content_hash, actual_return, reward, success FROM trajectories ORDER BY 1"
                ).fetchall(),
                connection.execute("SELECT trajectory_id, final_score FROM judge_evaluations ORDER BY 1").fetchall(),
            )
        return left, orchestrator._streaming.restarts
    finally:
        orchestrator.stop()


@pytest.fixture(scope="module", params=["1d", "2d", "3d", "5d"])
def undisturbed(request: pytest.FixtureRequest) -> tuple[str, Left]:
    with new_home() as home:
        left, restarts = run(home, request.param)
        assert restarts == 0
        return request.param, left


def slow_judging(process: Callable[..., None]) -> Callable[..., None]:
    def late(self: Judging, items: Any) -> None:
        time.sleep(0.03)
        process(self, items)

    return late


FAULTS: dict[str, tuple[type, str, bool]] = {
    "while an instant is published": (DecisionLog, "append", False),
    "while the next instant is decided": (Coordinator, "analyze", False),
    "after a commit whose answer was lost": (ExperienceLibraryPostgres, "commit_cycle", True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_restarted_decision_thread_ends_where_an_undisturbed_one_does(
    home: Path, undisturbed: tuple[str, Left], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    horizon, expected = undisturbed
    owner, name, after = FAULTS[fault]
    monkeypatch.setattr(owner, name, striking(getattr(owner, name), after=after))
    monkeypatch.setattr(Judging, "process", slow_judging(Judging.process))
    monkeypatch.setattr(production, "SupervisedThread", functools.partial(SupervisedThread, first_backoff_s=0.01))
    left, restarts = run(home, horizon)
    assert restarts >= 2
    assert left == expected


def test_the_overlap_is_there_to_be_tested(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_commits: list[bool] = []
    committing = threading.Event()

    def commit(self: ExperienceLibraryPostgres, batch: CycleBatch) -> None:
        committing.set()
        time.sleep(0.1)
        original(self, batch)
        committing.clear()

    def analyze(self: Coordinator, *arguments: Any) -> Any:
        open_commits.append(committing.is_set())
        return decide(self, *arguments)

    original, decide = ExperienceLibraryPostgres.commit_cycle, Coordinator.analyze
    monkeypatch.setattr(ExperienceLibraryPostgres, "commit_cycle", commit)
    monkeypatch.setattr(Coordinator, "analyze", analyze)
    run(home, "5d")
    assert sum(open_commits) > len(open_commits) / 2
