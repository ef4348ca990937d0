"""The learning loop on a real database and real training children: triggers, verdicts, promotion, failure, restart.

The experiences are generated: the right side follows the RSI, and what served until now guessed. They show the
mechanics of learning, not performance.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agents.policies.local.decisions import recorded_state
from agents.policies.local.states import LANGUAGE, state_line
from agents.policies.rules import RulesTechnical
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory
from data_pipeline.library import trajectories
from training.local_models import LocalModels
from training.model_registry import ModelRegistry, ModelVersion
from training.pipelines.automated_sft_pipeline import AutomatedSFTPipeline, SFTPipelineConfig
from training.pipelines.online_learning_loop import OnlineLearningConfig, OnlineLearningLoop
from training.trials import NothingServed, Trials
from utils.clock import VirtualClock
from utils.errors import ProviderError
from utils.settings import OrchestratorConfig

pytestmark = pytest.mark.timeout(600)

START = datetime(2014, 1, 6, 21, tzinfo=UTC)
HORIZON = 5
SYMBOLS = tuple(f"S{number:02d}" for number in range(10))


def experience(session: int, symbol: str, rng: random.Random) -> Trajectory:
    """One matured call: the serving policy guesses, the instrument rises where the RSI is above 50."""
    rsi = rng.uniform(20, 80)
    drift = (rsi - 50) / 15
    actual = 0.03 if rsi >= 50 else -0.03
    recommendation = rng.choice(["buy", "sell"])
    correct = (recommendation == "buy") == (actual > 0)
    as_of = START + timedelta(days=session)
    trend = "up" if drift > 0.5 else "down" if drift < -0.5 else "flat"
    values = {
        "rsi": rsi,
        "macd": 1.5 * drift,
        "sma20": drift,
        "sma50": 2 * drift,
        "stoch": 50 + 25 * drift,
        "mfi": 50,
        "adx": 25,
    }
    state = state_line("technical", {**values, "bb": 0.5, "vol": 2.0, "trend": trend, "regime": "neutral"})
    return Trajectory(
        trajectory_id=f"{symbol}-{session}",
        timestamp=as_of.timestamp(),
        as_of=as_of,
        symbol=symbol,
        agent_type="technical",
        recommendation=recommendation,
        market_regime="neutral",
        market_state={"inputs": {"daily_volatility": 0.015}},
        agent_inputs={"state": recorded_state(state)},
        reasoning="a guess",
        confidence=0.7,
        policy="rules",
        actual_return=actual,
        benchmark_return=0.0,
        reward=1.0 if correct else -1.0,
        success=correct,
        costs=0.0016,
        matured_at=as_of + timedelta(days=HORIZON),
    )


class Aligned(NothingServed):
    """Keeps the champion at each alignment that changed it."""

    def __init__(self, library: ExperienceLibraryPostgres) -> None:
        self._registry = ModelRegistry(library)
        self.champions: list[ModelVersion] = []

    def align(self, agent_type: str) -> None:
        held = self._registry.held_by(agent_type).get("champion")
        self.champions.extend([held.model] if held is not None and held.model not in self.champions else [])


def fill(
    library: ExperienceLibraryPostgres, sessions: range, rng: random.Random, symbols: tuple[str, ...] = SYMBOLS
) -> None:
    rows = [experience(session, symbol, rng) for session in sessions for symbol in symbols]
    with library.connection() as connection, connection.cursor() as cursor:
        trajectories.copy_rows(cursor, map(trajectories.as_row, rows))


@pytest.fixture
def library(fresh_database: str) -> Iterator[ExperienceLibraryPostgres]:
    opened = ExperienceLibraryPostgres(dsn=fresh_database)
    yield opened
    opened.close()


@pytest.fixture
def make_loop(
    library: ExperienceLibraryPostgres, tmp_path: Path, model_cache: Path
) -> Callable[..., tuple[OnlineLearningLoop, list[ModelVersion]]]:
    def make(check_interval_hours: float = 6.0, **changes: object) -> tuple[OnlineLearningLoop, list[ModelVersion]]:
        deployed = Aligned(library)
        config = SFTPipelineConfig(
            data_dir=tmp_path,
            cache_dir=model_cache,
            derived_ids=True,
            timeout_s=400,
            shadow_stage=False,
            **changes,  # type: ignore[arg-type]
        )
        pipeline = AutomatedSFTPipeline(config, library, clock=VirtualClock(START))
        triggers = OnlineLearningConfig(check_interval_hours=check_interval_hours)
        trials = Trials(library, OrchestratorConfig(), deployed)
        return OnlineLearningLoop(triggers, library, [pipeline], VirtualClock(START), trials=trials), deployed.champions

    return make


def detail(loop: OnlineLearningLoop) -> str:
    return next(t["detail"] for t in loop.get_status()["triggers"] if t["kind"] == "sft")


def test_successes_that_no_data_set_can_hold_start_no_training(
    library: ExperienceLibraryPostgres,
    make_loop: Callable[..., tuple[OnlineLearningLoop, list[ModelVersion]]],
) -> None:
    """A database that began before states were stored, or in another language of theirs, has plenty of the kind."""
    rows = [experience(session, symbol, random.Random(session)) for session in range(200) for symbol in SYMBOLS]
    foreign = {"state": {"language": LANGUAGE - 1, "text": "rsi:50"}}
    unreadable = [replace(row, agent_inputs={} if number % 2 else foreign) for number, row in enumerate(rows)]
    with library.connection() as connection, connection.cursor() as cursor:
        trajectories.copy_rows(cursor, map(trajectories.as_row, unreadable))
    at = START + timedelta(days=200 + HORIZON)
    loop, _ = make_loop()
    loop.check(at)
    assert detail(loop) == "0 of 100 new successes"
    assert loop.get_status()["training_log_count"] == 0
    assert len(library.tally_by_session("technical", as_of=at)) == 200


def test_a_better_model_is_promoted_deployed_and_restored_after_a_restart(
    library: ExperienceLibraryPostgres,
    make_loop: Callable[..., tuple[OnlineLearningLoop, list[ModelVersion]]],
) -> None:
    fill(library, range(200), random.Random(5))
    at = START + timedelta(days=200 + HORIZON)
    loop, deployed = make_loop()
    loop.check(at)
    (training,) = loop.get_status()["recent_trainings"]
    gate = training["gate"]
    assert training["state"] == "completed"
    assert gate["verdict"] == "promote", gate["reasons"]
    assert gate["sessions"] >= 60
    assert gate["reward"]["lower_bound"] > 0
    assert gate["validity"] >= 0.9
    champion = ModelRegistry(library).holder("technical", "champion")
    assert champion is not None
    assert champion.state == "champion"
    assert [version.version for version in deployed] == [champion.version]
    loop.check(at)
    assert loop.get_status()["training_log_count"] == 1
    restarted, restored = make_loop()
    restarted.restore()
    assert [version.version for version in restored] == [champion.version]
    assert [version.sha256 for version in restored] == [champion.sha256]
    # what is trained next is compared with the champion's answers, not with the guesses stored before it served
    fill(library, range(205, 290), random.Random(6))
    loop.check(START + timedelta(days=290 + HORIZON))
    second = loop.get_status()["recent_trainings"][0]["gate"]
    assert second["reward"]["champion_mean"] > gate["reward"]["champion_mean"] + 0.5
    assert second["verdict"] == "reject", second["reasons"]
    assert ModelRegistry(library).holder("technical", "champion") == champion


def test_too_little_history_trains_nothing_and_says_what_is_missing(
    library: ExperienceLibraryPostgres, make_loop: Callable[..., tuple[OnlineLearningLoop, list[ModelVersion]]]
) -> None:
    loop, _ = make_loop()
    loop.check(START)
    assert detail(loop) == "0 of 100 new successes"
    fill(library, range(50), random.Random(1))
    loop.check(START + timedelta(days=80))
    assert "60 held-out sessions" in detail(loop)
    assert loop.get_status()["training_log_count"] == 0


def test_a_blocked_training_is_recorded_keeps_its_trigger_and_is_tried_again_after_a_growing_pause(
    library: ExperienceLibraryPostgres,
    make_loop: Callable[..., tuple[OnlineLearningLoop, list[ModelVersion]]],
    tmp_path: Path,
) -> None:
    fill(library, range(200), random.Random(5), SYMBOLS[:4])
    broken = tmp_path / "no_model"
    broken.mkdir()
    loop, deployed = make_loop(check_interval_hours=0.25, base_model=str(broken))
    first = START + timedelta(days=206)
    loop.check(first)
    (training,) = loop.get_status()["recent_trainings"]
    assert training["state"] == "blocked"
    assert str(broken) in training["error"]
    loop.check(first + timedelta(minutes=45))
    assert loop.get_status()["training_log_count"] == 1
    loop.check(first + timedelta(minutes=65))
    assert loop.get_status()["training_log_count"] == 2
    loop.check(first + timedelta(minutes=65 + 105))
    assert loop.get_status()["training_log_count"] == 2
    assert detail(loop).startswith("blocked: ")
    assert "next try" in detail(loop)
    assert deployed == []
    assert ModelRegistry(library).holder("technical", "champion") is None


def test_a_disk_that_cannot_be_written_fails_the_training_and_not_the_loop(
    library: ExperienceLibraryPostgres,
    make_loop: Callable[..., tuple[OnlineLearningLoop, list[ModelVersion]]],
    tmp_path: Path,
) -> None:
    fill(library, range(200), random.Random(5), SYMBOLS[:4])
    (tmp_path / "datasets").write_text("a file where a folder belongs")
    loop, _ = make_loop(check_interval_hours=0.25)
    first = START + timedelta(days=206)
    loop.check(first)
    (training,) = loop.get_status()["recent_trainings"]
    assert training["state"] == "failed"
    assert str(tmp_path / "datasets") in training["error"]
    loop.check(first + timedelta(minutes=30))
    assert loop.get_status()["training_log_count"] == 1  # it waits, as after any failure
    assert "next try" in detail(loop)


def test_a_lock_that_cannot_be_opened_blocks_the_training_and_names_the_file(
    library: ExperienceLibraryPostgres,
    make_loop: Callable[..., tuple[OnlineLearningLoop, list[ModelVersion]]],
    tmp_path: Path,
) -> None:
    fill(library, range(200), random.Random(5), SYMBOLS[:4])
    lock = tmp_path / "training" / ".lock"
    lock.mkdir(parents=True)
    loop, _ = make_loop()
    loop.check(START + timedelta(days=206))
    assert detail(loop).startswith("blocked: ")
    assert str(lock) in detail(loop)
    assert loop.get_status()["training_log_count"] == 0


def test_a_damaged_champion_is_refused_and_names_the_version(
    library: ExperienceLibraryPostgres,
    make_loop: Callable[..., tuple[OnlineLearningLoop, list[ModelVersion]]],
    model_cache: Path,
) -> None:
    fill(library, range(200), random.Random(5))
    loop, deployed = make_loop()
    loop.check(START + timedelta(days=205))
    (version,) = deployed
    weights = version.path / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with LocalModels(OrchestratorConfig(model_cache_dir=model_cache)) as models:
        with pytest.raises(ProviderError, match=version.version):
            models.version_policy(version, "technical", RulesTechnical())
        shutil.rmtree(version.path)
        with pytest.raises(ProviderError, match=version.version):
            models.version_policy(version, "technical", RulesTechnical())


def test_a_daemon_whose_champion_is_damaged_starts_with_rules_and_says_so(data_dir: Path, model_cache: Path) -> None:
    import uuid

    from monitoring.production_orchestrator import ProductionOrchestrator
    from training import training_runs

    config = OrchestratorConfig(
        streaming_symbols=["MSFT"],
        feed="replay",
        replay_start="2013-02-01",
        data_dir=data_dir,
        metrics_port=0,
        model_cache_dir=model_cache,
    )
    first = ProductionOrchestrator(config)
    first.start()
    try:
        assert first.finished.wait(120)
        library = first.get_component("experience_library")
        assert library is not None
        adapter = data_dir / "adapter"
        adapter.mkdir()
        training = uuid.uuid4()
        model = ModelVersion(
            "technical@0", "technical", training, adapter, "0" * 64, "builtin:tiny", "0" * 64, adapter, None, "champion"
        )
        with library.connection() as connection, connection.cursor() as cursor:
            training_runs.register_dataset(cursor, "0" * 64, "sft", "technical", adapter, 1, (None, None), {}, ())
            training_runs.start(
                cursor, training, library.run_id, "technical", "sft", trigger={}, config={}, data_cutoff=START,
                dataset_id="0" * 64, started_at=START,
            )  # fmt: skip
            training_runs.end(cursor, training, "completed", START)
            ModelRegistry(library).register(cursor, model)
            ModelRegistry(library).promote(cursor, model, START, "for this test")
    finally:
        first.stop()
    second = ProductionOrchestrator(config)
    second.start()
    try:
        assert second.states["learning_loop"] == "degraded: technical@0 cannot be loaded"
        assert second.get_status()["models"]["technical"] == "rules"
        assert second.finished.wait(120)
    finally:
        second.stop()
