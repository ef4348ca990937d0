"""The split of experiences by time: what is held out, and what lies between it and the training part."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.library.outcomes import SessionTally
from training.pipelines.holdout import split_by_time, usable_calls
from training.pipelines.trigger import SFTPipelineConfig

START = datetime(2014, 1, 1, 21, tzinfo=UTC)
HORIZON = 5


def tallies(counts: list[int]) -> list[SessionTally]:
    return [
        SessionTally(START + timedelta(days=day), count, count // 2, START + timedelta(days=day + HORIZON))
        for day, count in enumerate(counts)
    ]


def test_the_latest_sessions_are_held_out_and_training_ends_two_horizons_before() -> None:
    rows = tallies([4] * 100)
    split = split_by_time(rows, 60, 200, HORIZON)
    assert split.holdout_start == rows[40].as_of
    assert (split.holdout_sessions, split.holdout_decisions) == (60, 240)
    assert split.train_end == rows[35].as_of
    # decisions of day 29 matured on day 34, those of day 30 on day 35: too late
    assert usable_calls(rows, split, None, SFTPipelineConfig.count) == 30 * 2


def test_few_decisions_a_session_hold_out_more_sessions() -> None:
    split = split_by_time(tallies([2] * 150), 60, 200, HORIZON)
    assert (split.holdout_sessions, split.holdout_decisions) == (100, 200)


def test_a_short_history_leaves_nothing_to_train_on() -> None:
    rows = tallies([4] * 62)
    split = split_by_time(rows, 60, 200, HORIZON)
    assert split.train_end is None
    assert usable_calls(rows, split, None, SFTPipelineConfig.count) == 0
    assert split_by_time([], 60, 200, HORIZON).holdout_sessions == 0


def test_successes_before_the_last_cutoff_are_not_new() -> None:
    rows = tallies([4] * 100)
    split = split_by_time(rows, 60, 200, HORIZON)
    assert usable_calls(rows, split, rows[20].matured_at, SFTPipelineConfig.count) == 10 * 2


@given(st.lists(st.integers(1, 45), min_size=1, max_size=200), st.integers(1, 80), st.integers(1, 400))
def test_no_training_outcome_matures_within_a_horizon_of_the_held_out_part(
    counts: list[int], min_sessions: int, min_decisions: int
) -> None:
    rows = tallies(counts)
    split = split_by_time(rows, min_sessions, min_decisions, HORIZON)
    trained = [row for row in rows if split.train_end is not None and row.matured_at < split.train_end]
    held_out = [row for row in rows if split.holdout_start is not None and row.as_of >= split.holdout_start]
    assert len(held_out) == split.holdout_sessions
    assert sum(row.decisions for row in held_out) == split.holdout_decisions
    assert all(row.matured_at + timedelta(days=HORIZON) < held_out[0].as_of for row in trained)
