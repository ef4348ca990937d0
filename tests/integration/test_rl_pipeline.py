"""Reinforcement learning on a real database with a real child: trigger, data set, verdict, lineage, and the command line.

The experiences are generated: the instrument goes where the strategist's vote points, and what served until now guessed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from version_factory import Made, make_version, promote

pytest.importorskip("trl", reason="needs the extra `training`")

from agents.policies.local.decisions import recorded_state
from agents.policies.local.states import state_line
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory
from data_pipeline.library import trajectories
from training.model_registry import ModelRegistry
from training.pipelines import by_hand
from training.pipelines.automated_rl_pipeline import AutomatedRLPipeline
from training.pipelines.automated_sft_pipeline import AutomatedSFTPipeline
from training.pipelines.online_learning_loop import OnlineLearningConfig, OnlineLearningLoop
from training.pipelines.trigger import RLPipelineConfig, SFTPipelineConfig
from training.trials import NothingServed, Trials
from utils.artifacts import folder_digest, verify
from utils.clock import VirtualClock
from utils.settings import OrchestratorConfig

pytestmark = pytest.mark.timeout(600)

START = datetime(2014, 1, 6, 21, tzinfo=UTC)
HORIZON = 5
SYMBOLS = tuple(f"S{number:02d}" for number in range(8))


def experience(session: int, symbol: str, rng: random.Random) -> Trajectory:
    """One matured decision: the serving policy guesses."""
    vote = rng.choice([-0.8, -0.5, 0.5, 0.8])
    actual = 0.06 if vote > 0 else -0.06
    recommendation = rng.choice(["buy", "sell", "hold"])
    side = {"buy": 1, "sell": -1, "hold": 0}[recommendation]
    as_of = START + timedelta(days=session)
    values: dict[str, Any] = {"vote": vote, "tech": "buy" if vote > 0 else "sell", "tconf": 0.7, "held": 10, "cash": 50}
    state = state_line("strategist", {**values, "vol": 2.0, "regime": "neutral"})
    return Trajectory(
        trajectory_id=f"{symbol}-{session}",
        timestamp=as_of.timestamp(),
        as_of=as_of,
        symbol=symbol,
        agent_type="strategist",
        recommendation=recommendation,
        market_regime="neutral",
        market_state={"inputs": {"daily_volatility": 0.02}},
        agent_inputs={"state": recorded_state(state)},
        reasoning="a guess",
        confidence=0.7,
        policy="rules",
        actual_return=actual,
        benchmark_return=0.0,
        reward=side * actual,
        success=side * actual > 0,
        costs=0.0016 if side else 0.0,
        matured_at=as_of + timedelta(days=HORIZON),
    )


def fill(library: ExperienceLibraryPostgres, sessions: range, seed: int = 5) -> None:
    rng = random.Random(seed)
    rows = [experience(session, symbol, rng) for session in sessions for symbol in SYMBOLS]
    with library.connection() as connection, connection.cursor() as cursor:
        trajectories.copy_rows(cursor, map(trajectories.as_row, rows))


@pytest.fixture
def library(fresh_database: str) -> Iterator[ExperienceLibraryPostgres]:
    opened = ExperienceLibraryPostgres(dsn=fresh_database)
    yield opened
    opened.close()


@pytest.fixture
def hyper_parameters(tmp_path: Path) -> Path:
    """A training that is short enough for a test."""
    path = tmp_path / "short.yaml"
    path.write_text(
        "profiles: {'builtin:tiny': {learning_rate: 2.0e-3, beta: 0.02, max_steps: 6, batch_size: 32, save_steps: 6, "
        "max_completion_length: 40, use_cpu: true}}\n"
    )
    return path


def config(tmp_path: Path, model_cache: Path, **changes: Any) -> RLPipelineConfig:
    return RLPipelineConfig(data_dir=tmp_path, cache_dir=model_cache, derived_ids=True, timeout_s=500, **changes)


def column(library: ExperienceLibraryPostgres, query: str) -> list[Any]:
    with library.connection() as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def test_matured_decisions_train_a_strategist_whose_verdict_and_lineage_are_stored(
    library: ExperienceLibraryPostgres, tmp_path: Path, model_cache: Path, hyper_parameters: Path
) -> None:
    fill(library, range(135))
    clock = VirtualClock(START)
    pipeline = AutomatedRLPipeline(
        config(tmp_path, model_cache, hyper_parameters=hyper_parameters, shadow_stage=False), library, clock=clock
    )
    tuning = AutomatedSFTPipeline(SFTPipelineConfig(data_dir=tmp_path, cache_dir=model_cache), library, clock=clock)
    trials = Trials(library, OrchestratorConfig(), NothingServed())
    loop = OnlineLearningLoop(OnlineLearningConfig(), library, [tuning, pipeline], clock, trials=trials)
    at = START + timedelta(days=135 + HORIZON)
    loop.check(at)
    triggers = {trigger["kind"]: trigger for trigger in loop.get_status()["triggers"]}
    assert triggers["sft"]["detail"] == "0 of 100 new successes"
    assert (triggers["rl"]["agent_type"], triggers["rl"]["needed"]) == ("strategist", 500)
    (training,) = loop.get_status()["recent_trainings"]
    assert (training["kind"], training["state"]) == ("rl", "completed"), training["error"]
    gate = training["gate"]
    assert gate["verdict"] == "promote", gate["reasons"]
    assert gate["sessions"] >= 60
    champion = ModelRegistry(library).holder("strategist", "champion")
    assert champion is not None
    assert verify(champion.path, champion.sha256).meta["agent_type"] == "strategist"

    ((dataset_id, kind, rows),) = column(library, "SELECT dataset_id, kind, rows FROM datasets")
    path = tmp_path / "datasets" / f"{dataset_id}.jsonl"
    examples = [json.loads(line) for line in path.read_text().splitlines()]
    assert (kind, rows) == ("rl", len(examples))
    assert column(library, "SELECT count(*) FROM dataset_items") == [(rows,)]
    ((cutoff, first),) = column(library, "SELECT data_cutoff, config->>'algorithm' FROM training_runs")
    assert first.startswith("GRPO")
    assert max(datetime.fromisoformat(row["metadata"]["matured_at"]) for row in examples) < cutoff
    assert cutoff + timedelta(days=HORIZON) <= datetime.combine(
        datetime.fromisoformat(gate["first_session"]), START.timetz()
    )
    # as many as the outcomes before the cutoff: losers are learned from as well
    assert rows == 135 * len(SYMBOLS) - gate["decisions"] - 2 * HORIZON * len(SYMBOLS)

    assert "next after 48 h" in pipeline.readiness(at + timedelta(hours=47)).detail
    assert "of 500 new matured decisions" in pipeline.readiness(at + timedelta(hours=48)).detail
    assert pipeline.get_training_history()[0]["state"] == "completed"


def test_training_goes_on_from_the_champion_else_from_the_newest_fine_tuned_adapter_that_knows_nothing_held_out(
    library: ExperienceLibraryPostgres, tmp_path: Path, model_cache: Path
) -> None:
    pipeline = AutomatedRLPipeline(config(tmp_path, tmp_path / "nothing_built"), library)
    assert pipeline._start("builtin:tiny", START) is None
    first, second = (
        make_version(
            library, tmp_path, 1 + day, agent="strategist", cutoff=START + timedelta(days=day),
            started_at=START + timedelta(days=90 + day),
        )
        for day in range(2)
    )  # fmt: skip
    train_end = START + timedelta(days=1)
    assert pipeline._start("builtin:tiny", train_end) == second.model.path
    assert pipeline._start("builtin:tiny", train_end - timedelta(hours=1)) == first.model.path
    assert pipeline._start("builtin:tiny", START - timedelta(hours=1)) is None
    assert pipeline._start("org/name", train_end) is None
    champion = make_version(library, tmp_path, 3, agent="strategist", kind="rl", cutoff=START + timedelta(days=9))
    promote(library, champion)
    assert pipeline._start("builtin:tiny", START) == champion.model.path


def test_after_a_change_of_base_reinforcement_begins_with_what_was_fine_tuned_on_the_new_one(
    library: ExperienceLibraryPostgres, tmp_path: Path, model_cache: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    pipeline = AutomatedRLPipeline(config(tmp_path, model_cache, base_model=str(base)), library)
    train_end = START + timedelta(days=9)

    def tuned(seed: int, name: str, base_sha256: str) -> Made:
        at = START + timedelta(days=seed)
        made = make_version(library, tmp_path, seed, agent="strategist", cutoff=START, started_at=at, base_model=name)
        with library.connection() as connection:
            connection.execute(
                "UPDATE model_versions SET base_revision = %s WHERE version = %s", (base_sha256, made.model.version)
            )
        return made

    on_this = tuned(1, str(base), folder_digest(base)[1])
    former_content = tuned(2, str(base), "c" * 64)
    tuned(3, "builtin:tiny", "b" * 64)
    promote(library, former_content)
    job = pipeline._job(
        {
            "job_id": "j", "agent_type": "strategist", "cache_dir": model_cache, "dataset": tmp_path, "output_dir": tmp_path,
            "champion_adapter": former_content.model.path,
        },
        train_end,
    )  # fmt: skip
    assert job.starts_from == on_this.model.path
    assert job.champion_adapter == former_content.model.path  # examined all the same, where it can be
    promote(library, on_this)
    assert pipeline._start(str(base), train_end) == on_this.model.path
    (base / "config.json").write_text('{"changed": true}')
    assert pipeline._start(str(base), train_end) is None


def test_a_base_model_that_is_not_there_blocks_and_is_tried_again_after_a_growing_pause(
    library: ExperienceLibraryPostgres, tmp_path: Path, model_cache: Path
) -> None:
    fill(library, range(135))
    broken = tmp_path / "no_model"
    broken.mkdir()
    pipeline = AutomatedRLPipeline(config(tmp_path, model_cache, base_model=str(broken)), library)
    at = START + timedelta(days=135 + HORIZON)
    result = pipeline.run_pipeline(at=at)
    assert str(broken) in result["error"]
    assert result["success"] is False
    assert [run["state"] for run in pipeline.get_training_history()] == ["blocked"]
    assert pipeline.readiness(at + timedelta(minutes=59)).detail.startswith("blocked: ")
    assert pipeline.readiness(at + timedelta(hours=1)).ready


def test_the_command_line_says_what_it_waits_for_and_refuses_a_folder_that_is_not_there(
    library: ExperienceLibraryPostgres,
    fresh_database: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert by_hand.main("rl", ["--data_dir", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    monkeypatch.setenv("DATABASE_URL", fresh_database)
    assert by_hand.main("rl", ["--data_dir", str(tmp_path), "--run", "adhoc"]) == 3
    assert "0 of 500 new matured decisions" in capsys.readouterr().out
    assert by_hand.main("sft", ["--data_dir", str(tmp_path), "--agent", "news", "--force"]) == 3
    assert "the gate needs 60 held-out sessions" in capsys.readouterr().out


def test_the_command_line_trains_shows_progress_and_prints_the_verdict(
    library: ExperienceLibraryPostgres,
    fresh_database: str,
    tmp_path: Path,
    model_cache: Path,
    hyper_parameters: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(library, range(100))
    hyper_parameters.write_text(hyper_parameters.read_text().replace("max_steps: 6", "max_steps: 1"))
    monkeypatch.setenv("DATABASE_URL", fresh_database)
    monkeypatch.setenv("MODEL_CACHE_DIR", str(model_cache))
    flags = ["--data_dir", str(tmp_path), "--force", "--hyper_parameters", str(hyper_parameters)]
    assert by_hand.main("rl", flags) == 0
    shown = capsys.readouterr()
    assert shown.out.split()[0] in ("promote", "reject")
    assert "reward" in shown.out
    assert "decision" in shown.err
