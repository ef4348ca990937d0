"""The daemon with versions in shadow and on watch: nothing leaks, kills change nothing, what is damaged does not serve.

Real databases and processes; the models have random weights, so nothing here shows performance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

pytest.importorskip("llguidance", reason="needs the extra `training`")
pytest.importorskip("openai", reason="needs the extra `hosted`")

from daemon_runner import Daemon, run_to_end, stored
from hosted_daemon_lab import ended, started
from local_model_lab import micro_base, write_adapter
from trial_lab import GATE, add_version, move, moves, prepared_run

from agents.policies.local.engine import Adapter
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from training.model_registry import ModelRegistry
from utils.artifacts import folder_digest
from utils.settings import ENVIRONMENT, OrchestratorConfig

pytestmark = pytest.mark.timeout(280)

BEFORE = datetime(2010, 1, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(base, folder / str(seed), seed) for seed in (1, 2)]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)
    yield


def short(database_url: str, folder: Path, base: Path, **fields: Any) -> OrchestratorConfig:
    """Return the settings of a replay of twenty sessions that learns of local models."""
    learning = {"base_model": str(base), "shadow_decisions": 10_000, **fields.pop("learning", {})}
    return OrchestratorConfig(
        feed="replay", streaming_symbols=["AAPL", "MSFT"], replay_start="2010-03-01", replay_end="2010-03-26",
        local={"device": "cpu", "headlines": 0}, learning=learning, metrics_port=0, database_url=database_url,
        data_dir=folder, **fields,
    )  # fmt: skip


def registered(library: ExperienceLibraryPostgres, base: Path, adapter: Adapter, name: str, **fields: Any) -> Any:
    base_sha256 = folder_digest(base)[1]
    return add_version(library, name, adapter=adapter, base_sha256=base_sha256, base_dir=base, **fields)


NOT_SHADOWS = {
    "decisions": "SELECT trajectory_id, content_hash, actual_return, reward, success, max_drawdown, costs, matured_at "
    "FROM trajectories WHERE NOT shadow ORDER BY trajectory_id",
    "portfolio": "SELECT hash FROM portfolio_events ORDER BY seq",
    "positions": "SELECT symbol, quantity, avg_price, realised_pnl FROM positions ORDER BY symbol",
    "grades": "SELECT evaluation_id::text, trajectory_id, final_score FROM judge_evaluations ORDER BY 1",
    "embeddings": "SELECT trajectory_id, matured_at FROM trajectory_embeddings ORDER BY 1",
    "regimes": "SELECT symbol, as_of, new FROM regime_events ORDER BY as_of, symbol",
    "findings": "SELECT f.trajectory_id, category, severity, pointer FROM error_findings f JOIN trajectories t USING "
    "(trajectory_id) WHERE NOT t.shadow ORDER BY 1, 2, 4",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Left:
    """What a run left, and what its readers make of it."""

    tables: dict[str, list[tuple[Any, ...]]]
    readers: dict[str, Any]
    summary: dict[str, Any]
    shadows: int


def rounded(value: Any) -> Any:
    """Return a value whose means do not tell in which order the database has added."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return round(value, 12) if isinstance(value, float) else value


def left_by(config: OrchestratorConfig, url: str) -> Left:
    with started(config) as orchestrator:
        said = ended(orchestrator)
        library = orchestrator.get_component("experience_library")
        at = datetime(2010, 4, 30, tzinfo=UTC)
        query = library.embed({"inputs": {"volatility": 0.4}})
        pipeline = orchestrator.pipeline
        readers = {
            "statistics": rounded(library.get_statistics()),
            "size": library.count_trajectories(),
            "gate and data sets": [
                row.trajectory_id for row in library.get_matured_trajectories("technical", as_of=at)
            ],
            "successes": [row.trajectory_id for row in library.get_successful_trajectories(limit=1000, as_of=at)],
            "triggers": library.tally_by_session("technical", as_of=at),
            "retrieval": [
                (row.trajectory_id, found)
                for row, found in library.find_similar_trajectories(query, limit=500, as_of=at)
            ],
            "judges": orchestrator.judging.backlog().items,
            "findings": dict(pipeline.progress.findings),
            "progress": (pipeline.progress.decisions, pipeline.progress.outcomes, pipeline.progress.abstentions),
            "equity": pipeline.ledger.portfolio.equity,
            "stored": {k: v for k, v in said.metrics.items() if k.startswith(("trajectories_", "error_findings"))},
        }
    with psycopg.connect(url) as connection:
        tables = {name: connection.execute(sql).fetchall() for name, sql in NOT_SHADOWS.items()}
        ((shadows,),) = connection.execute("SELECT count(*) FROM trajectories WHERE shadow").fetchall()
    summary = {name: value for name, value in said.summary.items() if name not in ("database", "duration_s", "models")}
    return Left(tables, readers, summary, shadows)


def test_shadows_change_no_decision_and_reach_no_reader(
    new_database: Any, tmp_path: Path, base: Path, adapters: list[Adapter]
) -> None:
    alone, beside = new_database(), new_database()
    without = left_by(short(alone, tmp_path / "alone", base), alone)
    config = short(beside, tmp_path / "beside", base)
    with prepared_run(config) as library:
        for name in ("technical@1", "strategist@1"):
            move(library, "challenge", registered(library, base, adapters[0], name), BEFORE)
    with_shadows = left_by(config, beside)
    assert without.shadows == 0
    assert with_shadows.shadows > 60
    for name, rows in without.tables.items():
        assert with_shadows.tables[name] == rows, name
    for name, read in without.readers.items():
        assert with_shadows.readers[name] == read, name
    assert with_shadows.summary.keys() == without.summary.keys()
    with psycopg.connect(beside) as connection:
        ((settled, embedded, graded),) = connection.execute(
            "SELECT count(*) FILTER (WHERE t.matured_at IS NOT NULL), count(e.trajectory_id), count(j.trajectory_id) "
            "FROM trajectories t LEFT JOIN trajectory_embeddings e USING (trajectory_id) "
            "LEFT JOIN judge_evaluations j USING (trajectory_id) WHERE t.shadow AND NOT t.abstained"
        ).fetchall()
    assert (settled > 40, embedded, graded) == (True, 0, 0)


def test_what_serves_follows_the_aliases_and_a_damaged_champion_leaves_its_place_to_the_previous_version(
    fresh_database: str, tmp_path: Path, base: Path, adapters: list[Adapter], caplog: pytest.LogCaptureFixture
) -> None:
    config = short(fresh_database, tmp_path, base)
    with prepared_run(config) as library:
        move(library, "promote", registered(library, base, adapters[0], "technical@1"), BEFORE)
        damaged = dataclasses.replace(adapters[1], sha256="f" * 64)
        move(library, "promote", registered(library, base, damaged, "technical@2"), BEFORE + timedelta(days=1))
        move(library, "promote", registered(library, base, damaged, "news@2"), BEFORE)
        move(library, "promote", registered(library, base, adapters[1], "strategist@1"), BEFORE)
    with started(config) as orchestrator:
        models = orchestrator.get_status()["models"]
        state = orchestrator.states["learning_loop"]
        said = ended(orchestrator)
    assert (models["technical"], models["news"]) == ("local:technical@1", "rules")
    assert models["strategist"] == "local:strategist@1"
    assert state.startswith("degraded: ")
    assert "champion technical@2 cannot be loaded: local:technical@1 serves in its place" in caplog.text
    versions = {shown["agent_type"]: shown for shown in said.status["learning_loop"]["versions"]}
    assert versions["technical"]["champion"] == "technical@2"
    assert versions["strategist"]["champion_trial"]["against"] == "rules"
    assert versions["strategist"]["champion_trial"]["decisions"] > 10
    assert "model_trial_alarm_ratio" in said.pages


SETTINGS = """\
streaming_symbols: [AAPL, IBM, MSFT]
feed: replay
replay_start: 2010-03-01
replay_end: 2010-04-09
local: {{device: cpu, headlines: 0}}
learning: {{base_model: {base}, shadow_decisions: 10, shadow_sessions: 4}}
"""


def test_kills_around_a_promotion_and_a_rollback_leave_what_an_uninterrupted_run_leaves(
    home: Path, base: Path, adapters: list[Adapter]
) -> None:
    settings = home / "settings.yaml"
    settings.write_text(SETTINGS.format(base=base))
    narrow = {**GATE, "reward": {"standard_error": 0.005}}  # small differences are large for this champion

    def prepare(data_dir: Path) -> None:
        config = OrchestratorConfig(config_path=settings, data_dir=data_dir)
        with prepared_run(config) as library:
            challenger = registered(library, base, adapters[0], "technical@1", gate=None)
            move(library, "challenge", challenger, BEFORE)
            move(library, "promote", registered(library, base, adapters[1], "strategist@1", gate=narrow), BEFORE)

    def flags(name: str) -> tuple[str, ...]:
        decisions = str(home / f"{name}.jsonl")
        return "--config", str(settings), "--exit_when_done", "--decisions_jsonl", decisions

    def left(data_dir: Path) -> tuple[Any, ...]:
        with prepared_run(OrchestratorConfig(config_path=settings, data_dir=data_dir)) as library:
            found = moves(library)
        return (*dataclasses.astuple(stored(data_dir))[:4], found)

    whole, resumed = home / "whole.jsonl", home / "resumed.jsonl"
    prepare(home / "reference")
    reference = run_to_end(home, *flags("whole"), data_dir=home / "reference")
    assert reference.exit_code == 0, reference.stderr
    prepare(home / "data")
    for decisions in (24, 51):
        with Daemon(home, *flags("resumed")) as daemon:
            daemon.until(
                lambda n=decisions: resumed.exists() and resumed.read_bytes().count(b"\n") >= n, "decisions", 120
            )
            daemon.kill()
    last = run_to_end(home, *flags("resumed"))
    assert last.exit_code == 0, last.stderr
    assert "Traceback" not in last.stderr
    assert resumed.read_bytes() == whole.read_bytes()
    expected, found = left(home / "reference"), left(home / "data")
    for one, other in zip(expected, found, strict=True):
        assert one == other
    promoted = [event for event in expected[-1] if event[1] == "champion" and event[3] == "technical@1"]
    withdrawn = [event for event in expected[-1] if event[1] == "champion" and event[2] == "strategist@1"]
    assert (len(promoted), len(withdrawn)) == (1, 1)
    assert BEFORE < promoted[0][5] < datetime(2010, 4, 9, tzinfo=UTC)
    assert "local:technical@1" in whole.read_text()


def test_a_version_that_is_promoted_by_hand_while_the_daemon_runs_serves_from_the_next_instant_on(
    home: Path, base: Path, adapters: list[Adapter], fresh_database: str
) -> None:
    config = short(fresh_database, home / "data", base)
    with prepared_run(config) as library:
        version = registered(library, base, adapters[0], "technical@1")
        move(library, "challenge", version, BEFORE)
    with started(config) as orchestrator:
        assert orchestrator.get_status()["models"]["technical"] == "rules"
        library = orchestrator.get_component("experience_library")
        with library.connection() as connection, connection.cursor() as cursor:
            ModelRegistry(library).promote(cursor, version, BEFORE, "an operator's word")
        said = ended(orchestrator)
    assert said.status["models"]["technical"] == "local:technical@1"
    with psycopg.connect(fresh_database) as connection:
        served = connection.execute(
            "SELECT DISTINCT policy FROM trajectories WHERE agent_type = 'technical' AND NOT shadow"
        ).fetchall()
    assert ("local:technical@1",) in served
