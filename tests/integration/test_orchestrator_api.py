"""The documented Python calls, in this process: orchestrator, health, coordinator, library, learning loop, rewards.

Against a data directory of the test's own with a real embedded database and the bundled sample; about 30 s. The hosted
judges of the documentation are not part of this version and are not tried.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_runner import new_home, query

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory, generate_trajectory_id
from data_pipeline.library.pool import Database
from judge.reward_calculator import RewardCalculator, TradingOutcome
from monitoring.production_orchestrator import (
    OrchestratorConfig,
    ProductionOrchestrator,
    start_production_orchestrator,
)
from orchestration.coordinator import Coordinator
from training.pipelines.online_learning_loop import OnlineLearningConfig, start_online_learning_loop
from utils.errors import ComponentStartError, ConfigError, LibraryConflict
from utils.settings import ENVIRONMENT

pytestmark = pytest.mark.timeout(120)

ALWAYS = ("experience_library", "broker", "judge", "supervisor", "coordinator", "outcome_tracker")
OPTIONAL = ("metrics", "health_checker", "learning_loop", "streaming")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)


def config(home: Path, **fields: Any) -> OrchestratorConfig:
    """A short replay on a free port."""
    short = {"feed": "replay", "replay_start": "2012-01-03", "replay_end": "2012-01-20"}
    return OrchestratorConfig(**{**short, "data_dir": home / "data", "metrics_port": 0, **fields})


def wait_for(condition: Any, what: str, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {limit_s:g} s"
        time.sleep(0.02)


def left_behind(before: set[threading.Thread]) -> list[str]:
    """Threads that were not there before and are still there after a moment."""
    deadline = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    return sorted(thread.name for thread in left)


def trajectory(number: int, **fields: Any) -> Trajectory:
    given = {
        "trajectory_id": generate_trajectory_id("AAPL", "news", 1_600_000_000.0 + number),
        "timestamp": 1_600_000_000.0 + number,
        "symbol": "AAPL",
        "agent_type": "news",
        "recommendation": "buy",
        "market_regime": "bull_market",
        "market_state": {"volatility": 0.01 * number, "trend_strength": 0.5},
        "agent_inputs": {"articles": number},
        "reasoning": "the news are good",
        "confidence": 0.8,
    }
    return Trajectory(**{**given, **fields})


def test_the_component_by_component_start_of_the_documentation(home: Path) -> None:
    before = set(threading.enumerate())
    settings = OrchestratorConfig(
        enable_streaming=True,
        enable_learning_loop=True,
        enable_monitoring=True,
        streaming_symbols=["AAPL", "MSFT", "GOOGL"],
        finnhub_api_key="your_key",
        polygon_api_key="your_key",
        data_dir=home / "data",
        metrics_port=0,
    )
    orchestrator = ProductionOrchestrator(settings)
    assert (orchestrator.status, orchestrator.running) == ("initialized", False)
    orchestrator.start()
    assert orchestrator.running
    status = orchestrator.get_status()
    assert list(status["components"]) == [*ALWAYS, *OPTIONAL]
    assert set(status["components"].values()) == {"running"}
    assert json.loads(json.dumps(status)) == status
    health = orchestrator.get_component("health_checker").get_system_health()
    assert health["overall_healthy"] is True
    assert health["unhealthy_components"] == []
    assert health["component_count"] == health["healthy_count"] == 10
    assert 0 <= health["system_resources"]["cpu_percent"] <= 100
    assert 0 < health["system_resources"]["memory_percent"] <= 100
    started = time.monotonic()
    orchestrator.stop()  # in the middle of thirteen years
    assert time.monotonic() - started < 30
    assert (orchestrator.status, orchestrator.running) == ("stopped", False)
    assert left_behind(before) == []


def test_when_another_orchestrator_took_the_database_over_this_one_decides_no_more(home: Path) -> None:
    orchestrator = start_production_orchestrator(config(home, replay_speed=86_400))
    try:
        library = orchestrator.get_component("experience_library")
        other = Database(library.database._dsn)
        with contextlib.closing(other):
            orchestrator._guarded_at = math.inf  # the guard does not look until the other has taken over
            with other.connection() as connection:
                connection.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
            other.become_the_orchestrator()
            orchestrator._guarded_at = 0.0
            wait_for(orchestrator.failed.is_set, "failure", 30)
            assert "another orchestrator" in orchestrator.status
            for thread in (orchestrator._streaming, orchestrator._judging.thread, orchestrator._learning.thread):
                wait_for(lambda thread=thread: not thread.alive, f"end of {thread.name}", 10)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"http://127.0.0.1:{orchestrator.metrics_port}/health", timeout=5)
            assert refused.value.code == 503
    finally:
        orchestrator.stop()


def test_every_component_has_its_documented_calls_while_the_orchestrator_runs(home: Path) -> None:
    orchestrator = start_production_orchestrator(config(home, replay_end="2012-03-30"))
    try:
        assert [name for name in (*ALWAYS, *OPTIONAL) if orchestrator.get_component(name) is None] == []
        assert orchestrator.get_component("no such part") is None
        wait_for(orchestrator.finished.is_set, "end of the replay")
        library = orchestrator.get_component("experience_library")
        overall = library.get_statistics()["overall"]
        assert overall["total"] == orchestrator.summary["evaluations"]  # type: ignore[index]
        assert overall["pending"] == orchestrator.summary["pending_outcomes"]  # type: ignore[index]
        similar = library.find_similar_trajectories(library.embed({"trend_strength": 0.5}), limit=5)
        assert [similarity for _, similarity in similar] == sorted((s for _, s in similar), reverse=True)
        assert len(similar) == 5
        learning = orchestrator.get_component("learning_loop").get_status()
        assert {
            "running",
            "last_check",
            "library_stats",
            "training_log_count",
            "recent_trainings",
            "triggers",
        } <= learning.keys()
        assert learning["recent_trainings"] == []
        figures = orchestrator.get_component("metrics").get_current_metrics()
        assert {type(value) for value in figures.values()} <= {int, float}
        assert any(name.startswith("agent_requests_total") and value > 0 for name, value in figures.items())
        answer = orchestrator.get_component("coordinator").analyze_symbol("AAPL")
        assert answer["as_of"].startswith("2012-03-30")
        url = f"http://127.0.0.1:{orchestrator.metrics_port}/ready"
        assert urllib.request.urlopen(url, timeout=5).status == 200
    finally:
        orchestrator.stop()


def test_the_full_pipeline_example_of_the_documentation(home: Path) -> None:
    settings = config(home)
    orchestrator = start_production_orchestrator(settings)
    try:
        library = orchestrator.get_component("experience_library")
        learning_loop = orchestrator.get_component("learning_loop")
        metrics = orchestrator.get_component("metrics")
        result = Coordinator(settings).analyze_symbol("AAPL")
        assert result["recommendation"] in ("strong_buy", "buy", "hold", "sell", "strong_sell")
        stored = trajectory(1, agent_type="news", confidence=result["confidence"])
        assert library.store_trajectory(stored) is True
        assert library.get_trajectory(stored.trajectory_id).symbol == "AAPL"
        assert isinstance(learning_loop.get_status()["recent_trainings"], list)
        assert metrics.get_current_metrics()
    finally:
        orchestrator.stop()


def test_start_and_stop_are_idempotent_and_safe_from_several_threads(home: Path) -> None:
    before = set(threading.enumerate())
    orchestrator = ProductionOrchestrator(config(home))
    orchestrator.stop()  # before any start: nothing to do
    assert orchestrator.status == "initialized"
    orchestrator.start()
    pipeline = orchestrator.pipeline
    orchestrator.start()
    assert orchestrator.pipeline is pipeline
    stoppers = [threading.Thread(target=orchestrator.stop) for _ in range(4)]
    for thread in stoppers:
        thread.start()
    for thread in stoppers:
        thread.join(30)
    orchestrator.stop()
    assert orchestrator.status == "stopped"
    assert left_behind(before) == []


def test_two_cycles_in_one_process_resume_the_run_and_leave_nothing_running(home: Path) -> None:
    before = set(threading.enumerate())
    summaries = []
    for _ in range(2):
        orchestrator = start_production_orchestrator(config(home, enable_learning_loop=False))
        wait_for(orchestrator.finished.is_set, "end of the replay")
        summaries.append(orchestrator.summary)
        orchestrator.stop()
        assert set(orchestrator.states.values()) == {"stopped"}
    assert summaries[0] == summaries[1]
    assert left_behind(before) == []
    assert query(home / "data", "SELECT count(*) FROM runs WHERE run_id <> 'adhoc'") == [(1,)]


def test_a_stopped_orchestrator_can_be_started_again(home: Path) -> None:
    before = set(threading.enumerate())
    orchestrator = ProductionOrchestrator(config(home, replay_end="2012-06-29", enable_learning_loop=False))
    for decisions in (3, 60):
        orchestrator.start()
        assert not orchestrator.finished.is_set()
        pipeline = orchestrator.pipeline
        assert pipeline is not None
        wait_for(lambda p=pipeline, n=decisions: p.progress.decisions >= n, f"{decisions} decisions")
        orchestrator.stop()
        assert orchestrator.status == "stopped"
    orchestrator.start()
    wait_for(orchestrator.finished.is_set, "end of the replay")
    assert orchestrator.summary is not None
    assert orchestrator.summary["decisions"] == 125 * 3
    orchestrator.stop()
    assert left_behind(before) == []


def test_a_finished_run_started_again_in_one_object_ends_as_finished_again(home: Path) -> None:
    orchestrator = ProductionOrchestrator(config(home, enable_learning_loop=False))
    for _ in range(2):  # the second time there is nothing left to decide
        orchestrator.start()
        wait_for(orchestrator.finished.is_set, "end of the replay")
        assert orchestrator.get_status()["status"] == "finished"
        orchestrator.stop()


def test_only_enabled_components_exist(home: Path) -> None:
    only_library = config(home, enable_streaming=False, enable_learning_loop=False, enable_monitoring=False)
    orchestrator = start_production_orchestrator(only_library)
    try:
        assert [name for name in OPTIONAL if orchestrator.get_component(name) is not None] == []
        assert orchestrator.get_component("experience_library") is not None
        assert orchestrator.metrics_port is None
        assert orchestrator.get_status()["status"] == "running"
    finally:
        orchestrator.stop()


def test_a_start_that_fails_leaves_nothing_running_and_says_so_in_the_status(home: Path) -> None:
    before = set(threading.enumerate())
    first = start_production_orchestrator(config(home, enable_learning_loop=False))
    try:
        second = ProductionOrchestrator(config(home, enable_learning_loop=False))
        with pytest.raises(ComponentStartError, match="another orchestrator"):
            second.start()
        assert second.status.startswith("failed: another orchestrator")
        second.stop()
        assert first.running
    finally:
        first.stop()
    wrong = ProductionOrchestrator(config(home, streaming_symbols=["AAPLE"]))
    with pytest.raises(ConfigError, match="AAPL"):
        wrong.start()
    assert left_behind(before) == []


@pytest.fixture(scope="module")
def coordinator() -> Coordinator:
    return Coordinator({"feed": "replay", "replay_start": "2012-01-03", "replay_end": "2012-06-29"})


def test_analyze_symbol_gives_the_documented_answer_without_any_daemon(coordinator: Coordinator) -> None:
    result = coordinator.analyze_symbol("AAPL")
    assert set(result) == {
        "symbol", "decision_id", "as_of", "recommendation", "confidence", "abstained", "reasoning", "position_size", "entry_target",
        "stop_loss", "take_profit", "risk_assessment", "agent_outputs", "strategist_output", "market_data", "regime", "workflow",
        "findings", "cost_usd",
    }  # fmt: skip
    assert result["symbol"] == "AAPL"
    assert result["as_of"] == "2012-06-29T20:00:00Z"
    assert set(result["agent_outputs"]) == {"news", "technical", "fundamental"}
    assert result["agent_outputs"]["news"]["abstained"] is True  # the sample has no news
    assert result["reasoning"]
    assert json.loads(json.dumps(result)) == result
    assert coordinator.analyze_symbol("AAPL") == result


def test_batch_analyze_reports_an_unknown_symbol_and_goes_on(coordinator: Coordinator) -> None:
    results = coordinator.batch_analyze(["AAPL", "APPL", "MSFT"])
    assert list(results) == ["AAPL", "APPL", "MSFT"]
    assert set(results["APPL"]) == {"error"}
    assert "AAPL" in results["APPL"]["error"]
    assert results["MSFT"]["symbol"] == "MSFT"


def test_execute_decision_only_says_what_the_gates_would_let_through(coordinator: Coordinator) -> None:
    decision = {"recommendation": "buy", "entry_target": 100.0, "position_size": 0.5, "stop_loss": 95.0}
    would = coordinator.execute_decision("AAPL", decision)
    assert would["side"] == "buy"
    assert 0 < would["quantity"] * 100.0 <= 0.10 * 100_000
    assert "position_size" in {clamp["gate"] for clamp in would["clamps"]}
    with pytest.raises(ConfigError, match="dry_run"):
        coordinator.execute_decision("AAPL", decision, dry_run=False)
    assert coordinator.get_portfolio_summary()["equity"] == 100_000


@pytest.fixture(scope="module")
def library() -> Iterator[ExperienceLibraryPostgres]:
    with new_home() as home:
        opened = ExperienceLibraryPostgres.embedded(home / "data")
        yield opened
        opened.close()
        opened.close()


def test_the_experience_library_example_of_the_documentation(library: ExperienceLibraryPostgres) -> None:
    for number in range(20):
        assert library.store_trajectory(trajectory(number)) is True
        assert library.update_outcome(trajectory(number).trajectory_id, 0.02, number % 2 == 0, number / 20) is True
    assert library.store_trajectory(trajectory(3)) is True  # the same content again changes nothing
    with pytest.raises(LibraryConflict):
        library.store_trajectory(trajectory(3, reasoning="other words"))
    successful = library.get_successful_trajectories(agent_type="news", min_reward=0.5)
    assert [row.reward for row in successful] == [0.9, 0.8, 0.7, 0.6, 0.5]
    found = library.find_similar_trajectories(library.embed(trajectory(7).market_state), limit=10)
    assert len(found) == 10
    assert found[0][0].trajectory_id == trajectory(7).trajectory_id
    assert found[0][1] == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="384"):
        library.find_similar_trajectories([0.0] * 10)
    assert library.update_outcome("unknown", 0.1, True, 1.0) is False


def test_the_learning_loop_example_of_the_documentation(home: Path) -> None:
    before = set(threading.enumerate())
    loop = start_online_learning_loop(OnlineLearningConfig(check_interval_hours=6, data_dir=home / "data"))
    wait_for(lambda: "not checked yet" not in {t["detail"] for t in loop.get_status()["triggers"]}, "check")
    status = loop.get_status()
    assert status["last_check"] is not None
    assert status["running"] is True
    assert status["library_stats"]["total"] == 0
    assert status["training_log_count"] == 0
    assert "0 of 100 new successes" in {trigger["detail"] for trigger in status["triggers"]}
    loop.close()
    loop.close()
    assert left_behind(before) == []


def test_the_reward_calculator_example_of_the_documentation() -> None:
    calculator = RewardCalculator(return_weight=1.0, risk_weight=0.3)
    gain = calculator.calculate_reward(TradingOutcome(symbol="AAPL", recommendation="buy", actual_return=0.10))
    loss = calculator.calculate_reward(TradingOutcome(symbol="AAPL", recommendation="buy", actual_return=-0.10))
    short = calculator.calculate_reward(TradingOutcome(symbol="AAPL", recommendation="sell", actual_return=-0.10))
    assert gain.success and short.success and not loss.success
    assert gain.return_reward > 0 > loss.return_reward
