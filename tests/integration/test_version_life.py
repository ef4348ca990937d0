"""The life of versions on a real database: what gates spend, cards, expiry, retention, and trainings that are blocked.

The trainings are those of a child that trains nothing and answers by a rule; what is said of it is decided by the real gate.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import standin_child
from test_learning_loop import HORIZON, START, fill
from version_factory import CUTOFF, Made, make_version, promote

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from evaluation.gate import GateEvidence, evaluate_gate
from training import error_budget, model_card, training_runs, version_retention
from training.model_expiry import ModelExpiry, StaleModels
from training.model_registry import ModelRegistry, ModelVersion
from training.pipelines import by_hand, one_at_a_time
from training.pipelines.automated_sft_pipeline import AutomatedSFTPipeline
from training.pipelines.conclusion import conclude
from training.pipelines.online_learning_loop import OnlineLearningConfig, OnlineLearningLoop
from training.pipelines.trigger import SFTPipelineConfig
from training.trials import NothingServed, Trials
from utils.clock import VirtualClock
from utils.errors import LibraryUnavailable, TrainingFailed
from utils.settings import OrchestratorConfig

AGENTS = {"technical": 365.0}


class StandIn(AutomatedSFTPipeline):
    """Fine-tuning whose child is the stand-in."""

    answers = "skill"

    def _command(self, job_path: Path) -> list[str]:
        return [sys.executable, str(Path(standin_child.__file__)), str(job_path), self.answers]


@pytest.fixture
def library(fresh_database: str) -> Iterator[ExperienceLibraryPostgres]:
    opened = ExperienceLibraryPostgres(dsn=fresh_database)
    yield opened
    opened.close()


def make_loop(library: ExperienceLibraryPostgres, tmp_path: Path, **changes: Any) -> tuple[OnlineLearningLoop, StandIn]:
    config = SFTPipelineConfig(data_dir=tmp_path, derived_ids=True, shadow_stage=False, **changes)
    pipeline = StandIn(config, library, clock=VirtualClock(START))
    trials = Trials(library, OrchestratorConfig(), NothingServed())
    return OnlineLearningLoop(OnlineLearningConfig(), library, [pipeline], VirtualClock(START), trials=trials), pipeline


def after(sessions: int) -> datetime:
    return START + timedelta(days=sessions + HORIZON)


def trainings(library: ExperienceLibraryPostgres) -> list[training_runs.TrainingRun]:
    """Oldest first."""
    with library.connection() as connection, connection.cursor() as cursor:
        return training_runs.of_run(cursor, library.run_id)[::-1]


def config_of(library: ExperienceLibraryPostgres, training: uuid.UUID) -> dict[str, Any]:
    with library.connection() as connection:
        row = connection.execute("SELECT config FROM training_runs WHERE training_run_id = %s", (training,)).fetchone()
    assert row is not None
    found: dict[str, Any] = row[0]
    return found


def detail(loop: OnlineLearningLoop) -> str:
    return str(loop.snapshot()["triggers"][0]["detail"])


def test_a_training_after_a_gate_waits_until_the_error_budget_allows_another_also_after_a_restart(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    fill(library, range(300), random.Random(5))
    loop, pipeline = make_loop(library, tmp_path)
    pipeline.answers = "none"
    loop.check(after(200))
    (first,) = trainings(library)
    assert first.state == "completed", first.error
    assert first.metrics is not None
    assert first.metrics["verdict"] == "reject"
    assert first.metrics["error_spent"] == pytest.approx(0.02)
    assert first.metrics["level"] == pytest.approx(0.98)
    restarted, pipeline = make_loop(library, tmp_path)
    restarted.check(after(240))
    assert len(trainings(library)) == 1
    assert "new successes" in detail(restarted)
    assert "the error budget of 0.05 a year allows the next gate on 2014-" in detail(restarted)
    assert pipeline.run_pipeline(force_retrain=True, at=after(240))["run_id"] is None  # force is no way around it
    restarted.check(after(262))
    second = trainings(library)[1]
    assert second.metrics is not None
    assert second.metrics["error_spent"] == pytest.approx(0.05 * (0.4 + 0.6 * 62 / 365) - 0.02)
    champion = ModelRegistry(library).newest_of_kind("technical", "sft")
    assert champion is not None
    assert champion.gate is not None
    assert champion.gate["settings"]["level"] == pytest.approx(1 - second.metrics["error_spent"])
    assert second.metrics["verdict"] == "promote", champion.gate["reasons"]


def test_a_training_that_gives_the_bytes_of_the_champion_again_changes_neither_its_state_nor_its_verdict(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    made = make_version(library, tmp_path, 1)
    promote(library, made)
    registry = ModelRegistry(library)
    again = replace(made.model, training_run_id=uuid.UUID(int=2), path=tmp_path / "again")
    nothing = evaluate_gate(GateEvidence(()))
    with library.connection() as connection, connection.cursor() as cursor:
        before = registry.get(cursor, again.version)
        state = conclude(registry, cursor, again, nothing, CUTOFF)
        after_it = registry.get(cursor, again.version)
    assert state == "champion"
    assert before is not None
    assert after_it is not None
    assert (after_it.state, after_it.gate) == (before.state, before.gate) == ("champion", made.model.gate)
    assert after_it.path == again.path
    assert len(registry.events()) == 1


def test_a_reservation_is_kept_by_a_training_that_goes_on_and_counts_for_every_other(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    made = [make_version(library, tmp_path, seed, training_state="running") for seed in (1, 2)]
    ids = [one.model.training_run_id for one in made]

    def reserve(training: uuid.UUID) -> float:
        with library.connection() as connection, connection.cursor() as cursor:
            return error_budget.reserve(cursor, training, library.run_id, "technical", 0.05, CUTOFF)

    assert reserve(ids[0]) == pytest.approx(0.02)
    assert reserve(ids[0]) == pytest.approx(0.02)
    with pytest.raises(TrainingFailed, match="another training has spent"):
        reserve(ids[1])
    with library.connection() as connection, connection.cursor() as cursor:
        metrics = error_budget.settled(0.02, "insufficient_evidence")
        training_runs.end(cursor, ids[0], "completed", CUTOFF, metrics=metrics)
        assert error_budget.spendings(cursor, library.run_id, "technical") == []
    assert reserve(ids[1]) == pytest.approx(0.02)
    with library.connection() as connection, connection.cursor() as cursor:
        training_runs.record_failure(cursor, ids[1], library.run_id, "technical", "sft", CUTOFF, "killed at the gate")
        (spent,) = error_budget.spendings(cursor, library.run_id, "technical")
        assert error_budget.spendings(cursor, library.run_id, "news") == []
    assert spent.alpha == pytest.approx(0.02)


def test_a_verdict_writes_the_card_beside_the_sealed_adapter(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    fill(library, range(200), random.Random(5))
    loop, _ = make_loop(library, tmp_path)
    loop.check(after(200))
    champion = ModelRegistry(library).holder("technical", "champion")
    assert champion is not None
    assert champion.gate is not None
    folder = champion.path.parent
    page = (folder / model_card.CARD_HTML).read_text()
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    found = {element.text.strip() for element in root.iter() if element.text}
    assert f"{champion.gate['reward']['lower_bound']:.6g}" in found
    assert f"{champion.gate['net_return']['minimum_detectable_edge']:.6g}" in found
    card = (folder / model_card.CARD_MD).read_text()
    code = config_of(library, champion.training_run_id)["code_version"]
    for words in (champion.version, "fine-tuning", code, "champion", "2 to 1", "0.02", champion.gate["reasons"][0]):
        assert words in card
    assert not (champion.path / model_card.CARD_MD).exists()
    (folder / model_card.CARD_MD).unlink()
    loop.check(after(201))
    assert (folder / model_card.CARD_MD).read_text() == card
    with library.connection() as connection, connection.cursor() as cursor:
        ModelRegistry(library).withdraw(cursor, "technical", after(201), "it fell ill")
    loop.check(after(202))
    assert "it fell ill" in (folder / model_card.CARD_MD).read_text()


def test_the_version_that_reinforcement_began_with_is_its_parent_unless_it_lay_on_another_base(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    tuned = make_version(library, tmp_path, 1).model
    grown = make_version(library, tmp_path, 2, kind="rl", config={"parent_version": tuned.version}).model
    registry = ModelRegistry(library)
    with library.connection() as connection, connection.cursor() as cursor:
        assert registry.version_at(cursor, tuned.path) == tuned.version
        assert registry.version_at(cursor, None) is None
        card = model_card.read(cursor, registry, grown.version)
        assert card is not None
        assert card.parent == tuned.version
        cursor.execute("UPDATE model_versions SET base_revision = 'other' WHERE version = %s", (tuned.version,))
        card = model_card.read(cursor, registry, grown.version)
        assert card is not None
        assert card.parent is None


def test_missing_base_weights_block_a_training_and_keep_its_trigger(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    fill(library, range(200), random.Random(5))
    loop, pipeline = make_loop(library, tmp_path)
    pipeline.answers = "blocked"
    loop.check(after(200))
    (blocked,) = trainings(library)
    assert blocked.state == "blocked"
    assert "has no *.safetensors weights" in str(blocked.error)
    assert pipeline.run_pipeline(at=after(200) + timedelta(minutes=30))["skipped"].startswith(
        "blocked: the training child"
    )
    pipeline.answers = "skill"
    assert pipeline.run_pipeline(at=after(200) + timedelta(minutes=61))["verdict"] == "promote"


def test_a_failed_training_keeps_its_trigger_and_is_tried_again_after_a_growing_pause(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    fill(library, range(200), random.Random(5))
    _, pipeline = make_loop(library, tmp_path)
    pipeline.answers = "failed"

    def attempt(minutes: float) -> str:
        result = pipeline.run_pipeline(at=after(200) + timedelta(minutes=minutes))
        return str(result.get("error") or result.get("skipped") or result.get("verdict"))

    assert "exited with" in attempt(0)
    assert "1 failed in a row" in attempt(59)
    assert "exited with" in attempt(61)
    assert "2 failed in a row" in attempt(61 + 119)
    assert [run.state for run in trainings(library)] == ["failed", "failed"]
    pipeline.answers = "skill"
    assert attempt(61 + 121) == "promote"


@pytest.mark.parametrize(
    ("changes", "setting"), [({"free_memory_gb": 1e6}, "free_memory_gb"), ({"disk_budget_gb": 1e-9}, "disk_budget_gb")]
)
def test_too_little_disk_or_memory_blocks_live_once_with_a_pause_and_in_a_replay_with_a_word_and_no_trace(
    library: ExperienceLibraryPostgres,
    tmp_path: Path,
    changes: dict[str, float],
    setting: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fill(library, range(200), random.Random(5))
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "old.jsonl").write_text("some bytes\n")
    _, replayed = make_loop(library, tmp_path, **changes)
    result = replayed.run_pipeline(at=after(200))
    assert result["skipped"].startswith("blocked: ")
    assert f"learning.{setting} is" in result["skipped"]
    assert trainings(library) == []
    replayed.run_pipeline(at=after(200))
    assert caplog.text.count("this replay is not the one that a larger machine gives") == 1
    live = StandIn(replace(replayed.config, derived_ids=False), library)
    assert live.run_pipeline(at=after(200))["run_id"] is not None
    (blocked,) = trainings(library)
    assert blocked.state == "blocked"
    assert setting in str(blocked.error)
    waiting = live.run_pipeline(at=after(200) + timedelta(minutes=30))
    assert waiting["run_id"] is None
    assert setting in waiting["skipped"]
    assert "next try" in waiting["skipped"]
    assert len(trainings(library)) == 1
    roomy = StandIn(SFTPipelineConfig(data_dir=tmp_path), library)
    assert roomy.run_pipeline(at=after(200) + timedelta(minutes=61))["verdict"] == "promote"


def test_while_one_process_trains_another_waits_and_leaves_its_record_alone(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    fill(library, range(200), random.Random(5))
    make_version(library, tmp_path, 1, training_state="running")
    pipeline = StandIn(SFTPipelineConfig(data_dir=tmp_path), library)
    with one_at_a_time.alone(tmp_path) as alone:
        assert alone
        result = pipeline.run_pipeline(at=after(200))
    assert (result["run_id"], result["success"]) == (None, False)
    assert "another process is training" in result["skipped"]
    assert [run.state for run in trainings(library)] == ["running"]
    assert pipeline.run_pipeline(at=after(200))["verdict"] == "promote"  # the other has ended without a word
    assert sorted(run.state for run in trainings(library)) == ["completed", "failed"]


class CutOff(StandIn):
    """Fine-tuning whose database goes away before the verdict is stored, once."""

    away = True

    def _conclude(self, *given: Any) -> None:
        if self.away:
            self.away = False
            raise LibraryUnavailable("gone")
        super()._conclude(*given)


def test_a_live_training_that_the_database_cut_off_goes_on_as_itself_and_pays_for_one_look(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    fill(library, range(200), random.Random(5))
    pipeline = CutOff(SFTPipelineConfig(data_dir=tmp_path), library)
    with pytest.raises(LibraryUnavailable):
        pipeline.run_pipeline(at=after(200))
    assert pipeline.run_pipeline(at=after(200))["verdict"] == "promote"
    (run,) = trainings(library)
    assert (run.state, (run.metrics or {})["error_spent"]) == ("completed", 0.02)


def test_a_training_that_goes_on_with_other_parameters_and_data_is_recorded_with_those_that_made_its_weights(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    fill(library, range(250), random.Random(5))
    parameters = tmp_path / "sft.yaml"
    parameters.write_text("defaults: {epochs: 1}\n")
    pipeline = CutOff(SFTPipelineConfig(data_dir=tmp_path, hyper_parameters=parameters), library)
    with pytest.raises(LibraryUnavailable):
        pipeline.run_pipeline(at=after(250))
    (before,) = trainings(library)
    parameters.write_text("defaults: {epochs: 2}\n")
    edited = StandIn(replace(pipeline.config, holdout_sessions=90), library)
    assert edited.run_pipeline(at=after(250))["verdict"] == "promote"
    (run,) = trainings(library)
    job = config_of(library, run.training_run_id)
    asked = json.loads((tmp_path / "training" / str(run.training_run_id) / "job.json").read_text())
    assert asked["hyper_parameters"]["epochs"] == 2
    assert {name: job[name] for name in asked} == asked
    assert Path(job["dataset"]).stem == run.dataset_id != before.dataset_id
    assert run.data_cutoff is not None
    assert before.data_cutoff is not None
    assert run.data_cutoff < before.data_cutoff
    assert run.trigger == before.trigger
    version = ModelRegistry(library).newest_of_kind("technical", "sft")
    assert version is not None
    with library.connection() as connection, connection.cursor() as cursor:
        card = model_card.read(cursor, ModelRegistry(library), version.version)
    assert card is not None
    assert (card.config["hyper_parameters"]["epochs"], card.dataset_id) == (2, run.dataset_id)


def test_a_training_by_hand_has_the_clock_of_its_run(
    library: ExperienceLibraryPostgres, tmp_path: Path, fresh_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(library, range(200), random.Random(5))
    run = "d" * 32
    with library.connection() as connection:
        connection.execute(
            "INSERT INTO runs (run_id, mode, config, data_hashes) VALUES (%s, 'replay', '{}', '{}')", (run,)
        )
        connection.execute("UPDATE trajectories SET run_id = %s", (run,))
    library.run_id = run
    move_at = after(200)
    promote(library, make_version(library, tmp_path, 1, kind="rl", cutoff=START), move_at)
    monkeypatch.setattr(by_hand, "open_library", lambda settings: ExperienceLibraryPostgres(dsn=fresh_database))
    monkeypatch.setattr(by_hand, "AutomatedSFTPipeline", StandIn)
    assert by_hand.main("sft", ["--data_dir", str(tmp_path), "--run", run[:6]]) == 0
    (trained,) = [found for found in trainings(library) if found.kind == "sft"]
    assert (trained.started_at, trained.ended_at) == (move_at, move_at)
    held = ModelRegistry(library).held_by("technical")["challenger"]
    assert held.since == move_at  # the daemon's next decisions are those that it is tried on
    assert by_hand.main("sft", ["--data_dir", str(tmp_path), "--run", "unheard-of"]) == 2


def test_a_champion_that_is_too_old_is_withdrawn_to_the_rules_with_its_reason(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    older, newer = (make_version(library, tmp_path, seed) for seed in (1, 2))
    promote(library, older)
    promote(library, newer)
    expiry, registry = ModelExpiry(library, AGENTS), ModelRegistry(library)
    assert expiry.check(CUTOFF + timedelta(days=365)) == []
    assert registry.holder("technical", "champion") is not None
    assert expiry.check(CUTOFF + timedelta(days=366)) == ["technical"]
    assert registry.holder("technical", "champion") is None
    assert registry.holder("technical", "previous") is None  # as old, or older
    move = registry.events("technical")[-1]
    assert (move.old_version, move.new_version) == (newer.model.version, None)
    assert move.reason.startswith("expired: ")
    assert "learning.max_model_age_days is 365" in move.reason
    assert expiry.check(CUTOFF + timedelta(days=367)) == []


def test_the_learning_loop_withdraws_what_is_too_old_and_its_card_says_why(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    old = make_version(library, tmp_path, 1)
    promote(library, old)
    loop, _ = make_loop(library, tmp_path)
    loop.check(CUTOFF + timedelta(days=364))
    assert ModelRegistry(library).holder("technical", "champion") is not None
    assert "expired" not in (old.folder / model_card.CARD_MD).read_text()
    loop.check(CUTOFF + timedelta(days=366))
    assert ModelRegistry(library).holder("technical", "champion") is None
    assert "expired: " in (old.folder / model_card.CARD_MD).read_text()


def test_a_champion_promoted_by_hand_meanwhile_does_not_expire_in_place_of_the_old_one(
    library: ExperienceLibraryPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, fresh = (make_version(library, tmp_path, seed) for seed in (1, 2))
    promote(library, old)
    read = StaleModels.champion

    def read_and_lose(self: StaleModels, agent_type: str) -> Any:
        found = read(self, agent_type)
        promote(library, fresh)
        return found

    monkeypatch.setattr(StaleModels, "champion", read_and_lose)
    assert ModelExpiry(library, AGENTS).check(CUTOFF + timedelta(days=366)) == []
    champion = ModelRegistry(library).holder("technical", "champion")
    assert champion is not None
    assert champion.version == fresh.model.version


def test_no_limit_of_age_expires_nothing(library: ExperienceLibraryPostgres, tmp_path: Path) -> None:
    promote(library, make_version(library, tmp_path, 1))
    assert ModelExpiry(library, {"technical": None}).check(CUTOFF + timedelta(days=9999)) == []


def test_from_four_fifths_of_the_age_on_there_is_one_warning_a_week(
    library: ExperienceLibraryPostgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    promote(library, make_version(library, tmp_path, 1))
    expiry = ModelExpiry(library, AGENTS)
    with caplog.at_level(logging.WARNING):
        for hours in (291 * 24, 293 * 24, 299 * 24 + 23, 300 * 24):
            expiry.check(CUTOFF + timedelta(hours=hours))
    warnings = [
        record.getMessage() for record in caplog.records if "was trained on nothing after" in record.getMessage()
    ]
    assert len(warnings) == 2
    assert "72 more days (learning.max_model_age_days)" in warnings[0]


def test_a_stale_champion_is_retrained_first_and_without_the_minimum_of_new_experiences(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    fill(library, range(200), random.Random(5))
    stale = make_version(library, tmp_path, 1, cutoff=after(200) - timedelta(days=30))
    promote(library, stale)
    at = after(200)
    patient = SFTPipelineConfig(data_dir=tmp_path, min_new_trajectories=10_000)
    assert not StandIn(patient, library).readiness(at).ready
    old = replace(patient, max_model_age_days=37.0)
    # of what the stale version was trained on nothing is new: the trigger still wants something that is
    assert not StandIn(replace(old, max_model_age_days=38.0), library).readiness(at).ready
    assert StaleModels(library).is_stale("technical", 37.0, at)
    with library.connection() as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE training_runs SET data_cutoff = %s, started_at = %s", (START, START))
    assert StandIn(replace(old, max_model_age_days=220.0), library).readiness(at).ready
    pipelines = [StandIn(replace(old, agent_type=agent), library) for agent in ("news", "technical", "fundamental")]
    expiry = ModelExpiry(library, {pipeline.config.agent_type: 220.0 for pipeline in pipelines})
    ordered = [pipeline.config.agent_type for pipeline in expiry.stale_first(pipelines, at)]
    assert ordered == ["technical", "news", "fundamental"]


def kept(made: list[Made]) -> list[bool]:
    return [model_card.has_bytes(one.model) for one in made]


def test_bytes_stay_for_aliases_parents_and_the_newest_rejected_and_all_else_keeps_row_and_card(
    library: ExperienceLibraryPostgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    days = [CUTOFF + timedelta(days=day) for day in range(8)]
    parent = make_version(library, tmp_path, 1, state="trained", started_at=days[0])
    champion = make_version(
        library, tmp_path, 2, kind="rl", started_at=days[1], config={"parent_version": parent.model.version}
    )
    retired = make_version(library, tmp_path, 3, kind="rl", state="retired", started_at=days[2])
    rejected = [make_version(library, tmp_path, seed, kind="rl", started_at=days[seed]) for seed in (4, 5, 6)]
    promote(library, champion)
    for one in (parent, champion, retired, *rejected):
        model_card.write(library, one.model.version)
    with caplog.at_level(logging.INFO):
        freed = version_retention.tidy(library, tmp_path, keep_rejected=2)
    assert kept([parent, champion, retired, *rejected]) == [True, True, False, False, True, True]
    assert set(freed.versions) == {retired.model.version, rejected[0].model.version}
    assert freed.size > 8000
    assert len([record for record in caplog.records if "retention of versions" in record.getMessage()]) == 1
    assert ModelRegistry(library).newest_of_kind("technical", "rl") is not None
    assert len(ModelRegistry(library).versions()) == 6
    assert (retired.folder / model_card.CARD_MD).is_file()
    assert not version_retention.tidy(library, tmp_path, keep_rejected=2).versions


def test_an_alias_of_any_run_keeps_its_bytes(library: ExperienceLibraryPostgres, tmp_path: Path) -> None:
    made = make_version(library, tmp_path, 1, state="retired", kind="rl")
    with library.connection() as connection, connection.cursor() as cursor:
        other = "f" * 32
        cursor.execute(
            "INSERT INTO runs (run_id, mode, config, data_hashes) VALUES (%s, 'replay', '{}', '{}')", (other,)
        )
        cursor.execute(
            "INSERT INTO model_aliases (run_id, agent_type, alias, version) VALUES (%s, 'technical', 'previous', %s)",
            (other, made.model.version),
        )
    version_retention.tidy(library, tmp_path, keep_rejected=0)
    assert kept([made]) == [True]


def test_the_newest_fine_tuned_version_of_a_run_that_may_be_resumed_stays_for_what_begins_with_it(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    for name in ("d" * 32, "e" * 32):
        with library.connection() as connection, connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO runs (run_id, mode, config, data_hashes) VALUES (%s, 'replay', '{}', '{}')", (name,)
            )
    ours = library.run_id
    made = []
    for seed, run in enumerate(("d" * 32, "d" * 32, "e" * 32), start=1):
        library.run_id = run
        started = CUTOFF + timedelta(days=seed)
        made.append(make_version(library, tmp_path, seed, state="trained", started_at=started))
    library.run_id = ours
    with library.connection() as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE runs SET finished_at = now() WHERE run_id = %s", ("e" * 32,))
    version_retention.tidy(library, tmp_path, keep_rejected=0)
    assert kept(made) == [False, True, False]


def test_what_interrupted_trainings_left_goes_and_what_runs_keeps_all_of_its_own(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    base = make_version(library, tmp_path, 1, kind="rl", state="retired")
    running = make_version(
        library, tmp_path, 2, training_state="running", config={"start_adapter": str(base.model.path)}
    )
    failed = make_version(library, tmp_path, 3, training_state="failed", kind="rl")
    unknown = tmp_path / "training" / str(uuid.uuid4())
    for folder in (running.folder, failed.folder, unknown):
        (folder / "work" / "checkpoint-50").mkdir(parents=True)
        (folder / ".adapter.aside").mkdir()
    with library.connection() as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM model_versions WHERE version = %s", (failed.model.version,))
    freed = version_retention.tidy(library, tmp_path, keep_rejected=0)
    assert freed.leftovers == 3
    assert not any((failed.folder / name).exists() for name in ("work", ".adapter.aside", "adapter"))
    for folder in (running.folder, unknown):
        assert (folder / "work" / "checkpoint-50").is_dir()
        assert (folder / ".adapter.aside").is_dir()
    assert kept([base, running]) == [True, True]


def test_a_removal_that_a_kill_cut_off_is_finished_by_the_next(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    made = make_version(library, tmp_path, 1, kind="rl", state="retired")
    made.model.path.rename(made.folder / version_retention.REMOVED)
    assert not model_card.has_bytes(made.model)
    assert version_retention.tidy(library, tmp_path, keep_rejected=0).leftovers == 1
    assert list(made.folder.iterdir()) == []


def test_adapters_outside_the_data_directory_are_nobodys_to_remove(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    made = make_version(library, tmp_path / "elsewhere", 1, kind="rl", state="retired")
    version_retention.tidy(library, tmp_path / "here", keep_rejected=0)
    assert kept([made]) == [True]


def test_a_version_that_somebody_is_promoting_is_left_alone(library: ExperienceLibraryPostgres, tmp_path: Path) -> None:
    made = make_version(library, tmp_path, 1, kind="rl", state="retired")
    with library.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM model_versions WHERE version = %s FOR SHARE", (made.model.version,))
        version_retention.tidy(library, tmp_path, keep_rejected=0)
        assert kept([made]) == [True]
        ModelRegistry(library).promote(cursor, made.model, CUTOFF, "by hand")
    version_retention.tidy(library, tmp_path, keep_rejected=0)
    assert kept([made]) == [True]


def test_an_adapter_trained_again_after_its_bytes_went_is_found_at_its_new_place(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    made = make_version(library, tmp_path, 1, kind="rl", state="retired")
    version_retention.tidy(library, tmp_path, keep_rejected=0)
    again: ModelVersion = replace(made.model, path=tmp_path / "training" / "again" / "adapter")
    registry = ModelRegistry(library)
    with library.connection() as connection, connection.cursor() as cursor:
        registry.register(cursor, again)
        found = registry.get(cursor, made.model.version)
    assert found is not None
    assert found.path == again.path


def test_bytes_that_an_earlier_run_made_first_are_found_and_kept_for_the_run_that_made_them_again(
    library: ExperienceLibraryPostgres, tmp_path: Path
) -> None:
    made = make_version(library, tmp_path, 1, state="trained")
    again, training = "e" * 32, uuid.UUID(int=2)
    with library.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO runs (run_id, mode, config, data_hashes) VALUES (%s, 'replay', '{}', '{}')", (again,)
        )
        training_runs.record_failure(cursor, training, again, "technical", "sft", CUTOFF, "")
        training_runs.end(cursor, training, "completed", CUTOFF, metrics={"version": made.model.version})
        cursor.execute("UPDATE runs SET finished_at = now() WHERE run_id <> %s", (again,))
        ModelRegistry(library).register(cursor, made.model)
    library.run_id = again
    found = ModelRegistry(library).newest_of_kind("technical", "sft")
    assert found is not None
    assert found.version == made.model.version
    version_retention.tidy(library, tmp_path, keep_rejected=0)
    assert kept([made]) == [True]


def test_the_learning_loop_tidies_after_a_training(library: ExperienceLibraryPostgres, tmp_path: Path) -> None:
    fill(library, range(200), random.Random(5))
    older = make_version(library, tmp_path, 1, kind="rl", started_at=START)
    loop, _ = make_loop(library, tmp_path, keep_rejected=0)
    loop.check(after(200))
    (ours,) = [run for run in trainings(library) if run.kind == "sft"]
    assert ours.state == "completed", ours.error
    folder = tmp_path / "training" / str(ours.training_run_id)
    assert json.loads((folder / "job.json").read_text())["agent_type"] == "technical"
    assert not (folder / "work").exists()
    assert kept([older]) == [False]
