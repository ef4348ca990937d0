"""What trains outside a daemon without being handed a library: it takes the daemon's run, its present and its settings."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import standin_child
from test_learning_loop import HORIZON, START, fill
from version_factory import make_version, promote

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from training import training_runs
from training.pipelines.automated_rl_pipeline import AutomatedRLPipeline, run_automated_rl_pipeline
from training.pipelines.automated_sft_pipeline import AutomatedSFTPipeline, run_automated_sft_pipeline
from training.pipelines.online_learning_loop import OnlineLearningConfig, start_online_learning_loop
from training.pipelines.trigger import SFTPipelineConfig
from utils.settings import ENVIRONMENT

pytestmark = pytest.mark.timeout(120)

RUN = "d" * 32
PRESENT = START + timedelta(days=200 + HORIZON)


@pytest.fixture
def library(
    fresh_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ExperienceLibraryPostgres]:
    """Experiences of a replay that has reached `PRESENT`, in the database that the configuration names."""
    for name in ENVIRONMENT.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", fresh_database)
    monkeypatch.chdir(tmp_path)
    opened = ExperienceLibraryPostgres(dsn=fresh_database)
    fill(opened, range(200), random.Random(5))
    with opened.connection() as connection:
        connection.execute(
            "INSERT INTO runs (run_id, mode, config, data_hashes) VALUES (%s, 'replay', '{}', '{}')", (RUN,)
        )
        connection.execute("UPDATE trajectories SET run_id = %s", (RUN,))
    opened.run_id = RUN
    promote(opened, make_version(opened, tmp_path / "made", 1, agent="news", kind="rl", cutoff=START), PRESENT)
    yield opened
    opened.close()


def configure(folder: Path, text: str) -> None:
    (folder / "config").mkdir()
    (folder / "config" / "system.yaml").write_text(text)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.02)


def column(library: ExperienceLibraryPostgres, training: str) -> dict[str, Any]:
    with library.connection() as connection:
        row = connection.execute("SELECT config FROM training_runs WHERE training_run_id = %s", (training,)).fetchone()
    assert row is not None
    found: dict[str, Any] = row[0]
    return found


def test_a_scheduled_fine_tuning_learns_from_the_daemons_run_as_of_its_present_and_as_configured(
    library: ExperienceLibraryPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(
        tmp_path,
        "data_dir: daemon\nrandom_state: 7\nlearning: {base_model: org/configured, error_budget_per_year: 0.04}\n",
    )
    child = str(Path(standin_child.__file__))
    monkeypatch.setattr(AutomatedSFTPipeline, "_command", lambda self, job: [sys.executable, child, str(job), "skill"])
    result = run_automated_sft_pipeline("technical")
    assert result.get("verdict") == "promote", result
    with library.connection() as connection, connection.cursor() as cursor:
        (run,) = training_runs.of_run(cursor, RUN, "technical", "sft")
    assert (run.started_at, run.ended_at) == (PRESENT, PRESENT)
    assert run.metrics is not None
    assert run.metrics["error_spent"] == pytest.approx(0.4 * 0.04)
    job = column(library, result["run_id"])
    assert (job["base_model"], job["seed"]) == ("org/configured", 7)
    assert Path(job["output_dir"]).is_relative_to(tmp_path / "daemon")


def test_a_scheduled_reinforcement_counts_the_daemons_decisions_against_the_configured_trigger(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    configure(tmp_path, "data_dir: daemon\nrl_min_trajectories: 5000\n")
    with library.connection() as connection:
        changed = connection.execute("UPDATE trajectories SET agent_type = 'strategist'").rowcount
    result = run_automated_rl_pipeline()
    assert result["skipped"] == f"{changed} of 5000 new matured decisions"
    pipeline = AutomatedRLPipeline()
    assert (pipeline.config.agent_type, pipeline.config.min_new_trajectories) == ("strategist", 5000)
    pipeline.close()


def test_a_pipeline_that_opens_its_own_library_sees_the_daemons_run(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    pipeline = AutomatedSFTPipeline(SFTPipelineConfig(data_dir=tmp_path, min_new_trajectories=10_000))
    found = pipeline.run_pipeline()["skipped"]
    pipeline.close()
    assert found.endswith("of 10000 new successes")
    assert int(found.split()[0]) > 100


@pytest.mark.parametrize(
    ("config", "hours"),
    [(None, 3.0), (OnlineLearningConfig(check_interval_hours=2, sft_min_new_trajectories=9999), 2.0)],
)
def test_a_loop_on_its_own_checks_the_daemons_run_at_its_present(
    library: ExperienceLibraryPostgres, tmp_path: Path, config: OnlineLearningConfig | None, hours: float
) -> None:
    configure(
        tmp_path, "data_dir: daemon\nlearning_check_interval_hours: 3\nsft_min_trajectories: 9999\n"
        "learning: {sft_agents: [technical], rl_agents: []}\n",
    )  # fmt: skip
    loop = start_online_learning_loop(config)

    def detail() -> str:
        return str(loop.get_status()["triggers"][0]["detail"])

    try:
        wait_for(lambda: detail() != "not checked yet", "check")
        assert detail().endswith("of 9999 new successes")
        assert int(detail().split()[0]) > 100
        assert datetime.fromisoformat(loop.get_status()["last_check"]) == PRESENT
        assert loop.config.check_interval_hours == hours
    finally:
        loop.close()
