"""The arithmetic of live trials: the CUSUM and its calibration, and the other reasons for which a version falls."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from numpy.typing import NDArray

from training.live_trial import (
    FALLBACK_DEVIATION,
    REFERENCE_VALUE,
    SESSIONS_PER_YEAR,
    LiveTrial,
    SessionDifference,
    alarm_threshold,
    challenger_verdict,
    deviation_of,
    too_many_fatal,
    too_slow,
)

START = datetime(2014, 1, 6, 21, tzinfo=UTC)
YEARS = 10.0
SYMBOLS = 4
HORIZON = 5


def session(number: int, difference: float, decisions: int = 10, valid: int = 10) -> SessionDifference:
    at = START + timedelta(days=number)
    return SessionDifference(at.date(), at, difference, decisions, valid)


def fed(differences: list[float], deviation: float = 1.0, years: float = YEARS) -> LiveTrial:
    trial = LiveTrial(deviation, years)
    for number, difference in enumerate(differences):
        trial.add(session(number, difference))
    return trial


def overlapping(rng: np.random.Generator, sessions: int, horizon: int) -> NDArray[np.float64]:
    """Session means of symbols that share half of their variance, each a sum over `horizon` days; long-run deviation 1."""
    days = sessions + horizon - 1
    market = rng.standard_normal((days, 1))
    own = rng.standard_normal((days, SYMBOLS))
    daily = (np.sqrt(0.5) * market + np.sqrt(0.5) * own).mean(axis=1)
    sums = np.convolve(daily, np.ones(horizon), "valid")
    return np.asarray(sums / (horizon * math.sqrt(0.5 + 0.5 / SYMBOLS)))


def run_lengths(shift: float, horizon: int, runs: int, seed: int, longest: int) -> NDArray[np.float64]:
    """Return the sessions until the alarm of each run, `longest` where there was none."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(runs):
        trial, length = LiveTrial(1.0, YEARS), longest
        for number, difference in enumerate(overlapping(rng, longest, horizon) - shift):
            trial.add(SessionDifference(date.min, START, float(difference), SYMBOLS, SYMBOLS))
            if trial.alarmed_on is not None:
                length = number + 1
                break
        found.append(length)
    return np.array(found, dtype=float)


def mean_with_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean and half of its 95 % interval."""
    return float(values.mean()), float(1.96 * values.std(ddof=1) / math.sqrt(len(values)))


def test_the_statistic_adds_what_is_lost_beyond_the_reference_value_and_never_falls_below_zero() -> None:
    trial = fed([-1.0, -0.5, 3.0, -1.0], deviation=0.5)
    # 2 - .25, + 1 - .25, - 6 - .25 and so 0, 2 - .25
    assert trial.statistic == pytest.approx(1.75)
    assert fed([-1.0, -0.5], deviation=0.5).statistic == pytest.approx(2.5)
    assert (trial.sessions, trial.decisions, trial.mean) == (4, 40, pytest.approx(0.125))


def test_an_alarm_names_its_session_and_the_statistic_then_stands_still() -> None:
    trial = fed([-3.0] * 10)
    needed = math.floor(trial.threshold / (3.0 - REFERENCE_VALUE)) + 1
    assert trial.alarmed_on == (START + timedelta(days=needed - 1)).date()
    assert trial.share == pytest.approx(needed * 2.75 / trial.threshold)
    assert trial.sessions == 10


@pytest.mark.parametrize("mean_sessions", [252.0, 2520.0, 25_200.0])
def test_the_threshold_solves_siegmunds_approximation(mean_sessions: float) -> None:
    x = 2 * REFERENCE_VALUE * (alarm_threshold(mean_sessions) + 1.166)
    assert (math.exp(x) - x - 1) / (2 * REFERENCE_VALUE**2) == pytest.approx(mean_sessions, rel=1e-9)


def test_false_alarms_of_independent_sessions_are_as_rare_as_the_setting_says() -> None:
    mean, half = mean_with_interval(run_lengths(0.0, 1, 250, seed=1, longest=12_000))
    nominal = YEARS * SESSIONS_PER_YEAR
    assert mean - half < nominal < mean + half
    assert half < 0.16 * nominal


def test_overlapping_horizons_make_false_alarms_rarer_never_more_frequent() -> None:
    lengths = run_lengths(0.0, HORIZON, 150, seed=2, longest=6000)  # cut off there, which only lowers the mean
    mean, half = mean_with_interval(lengths)
    assert mean - half > YEARS * SESSIONS_PER_YEAR
    assert (lengths <= SESSIONS_PER_YEAR).mean() < 0.10


@pytest.mark.parametrize(("shift", "low", "high"), [(0.5, 37, 49), (1.0, 13.5, 17.0)])
def test_a_drop_is_found_within_the_stated_number_of_sessions(shift: float, low: float, high: float) -> None:
    for horizon in (1, HORIZON):
        mean, half = mean_with_interval(run_lengths(shift, horizon, 300, seed=3, longest=1000))
        assert low < mean < high
        assert half < 4


def test_a_deviation_that_a_gate_of_sixty_sessions_has_estimated_leaves_a_false_alarm_in_a_tenth_of_first_years() -> (
    None
):
    from evaluation.bootstrap import few_blocks_factor, lower_bound

    rng, alarms, runs = np.random.default_rng(4), 0, 400
    for _ in range(runs):
        series = overlapping(rng, 60 + SESSIONS_PER_YEAR, HORIZON)
        held_out, live = series[:60], series[60:]
        bound = lower_bound(held_out, 20, 0.98, 300, 1)
        verdict = {
            "reward": {"standard_error": bound.standard_error},
            "sessions": 60,
            "block": 20,
            "few_blocks_factor": few_blocks_factor(60, 20, 0.98),
            "settings": {"level": 0.98},
        }
        alarms += fed(list(live), deviation=deviation_of(verdict)).alarmed_on is not None
    share, half = alarms / runs, 1.96 * math.sqrt(0.1 * 0.9 / runs)
    assert share - half < 0.10
    assert share + half > 0.05


def test_the_deviation_is_the_gates_standard_error_over_all_its_sessions_widened_for_few_blocks() -> None:
    verdict = {"reward": {"standard_error": 0.02}, "sessions": 250, "block": 1, "settings": {"level": 0.98}}
    assert deviation_of(verdict) == pytest.approx(0.02 * math.sqrt(250), rel=0.01)
    few = {"reward": {"standard_error": 0.02}, "sessions": 60, "block": 20, "settings": {"level": 0.98}}
    assert deviation_of(few) == pytest.approx(1.55 * 0.02 * math.sqrt(60), rel=0.01)


@pytest.mark.parametrize(
    "gate",
    [
        None,
        {},
        {"reward": None, "sessions": 30, "block": 20},
        {"reward": {"standard_error": None}, "sessions": 30, "block": 20},
        {"reward": {"standard_error": 0.0}, "sessions": 60, "block": 20},
        {"reward": {"standard_error": 0.1}, "sessions": 20, "block": 20},
    ],
)
def test_without_a_verdict_that_tells_of_the_spread_the_fallback_is_taken(gate: dict[str, object] | None) -> None:
    assert deviation_of(gate) == FALLBACK_DEVIATION


def test_a_challenger_waits_for_both_decisions_and_sessions() -> None:
    trial = fed([0.0] * 4)
    assert challenger_verdict(trial, 40, 5) is None
    assert challenger_verdict(trial, 41, 4) is None
    promoted, reason = challenger_verdict(trial, 40, 4) or (False, "")
    assert promoted
    assert "not below its bound" in reason


def test_a_challenger_that_alarms_is_turned_down_before_its_trial_is_over() -> None:
    trial = fed([-2.0] * 8)
    promoted, reason = challenger_verdict(trial, 1000, 1000) or (True, "")
    assert not promoted
    assert "-2.000 a session over 8 sessions" in reason


def test_a_challenger_without_opinions_is_turned_down_at_the_end_of_its_trial() -> None:
    trial = LiveTrial(1.0, YEARS)
    for number in range(5):
        trial.add(session(number, 0.0, decisions=10, valid=8))
    assert challenger_verdict(trial, 50, 5) == (False, "only 80% of its 50 answers were valid; 90% are needed")


@pytest.mark.parametrize(
    ("version", "reference", "expected"),
    [(4, 0, False), (13, 0, False), (14, 0, True), (20, 10, False), (40, 10, False), (60, 10, True), (0, 50, False)],
)
def test_fatal_findings_count_against_a_version_once_more_than_twice_as_many_are_shown(
    version: int, reference: int, expected: bool
) -> None:
    assert too_many_fatal(version, reference) is expected


def test_twice_as_many_fatal_findings_fell_a_version_in_at_most_two_of_a_hundred_runs_however_often_one_looks() -> None:
    rng = np.random.default_rng(5)
    felled = 0
    for _ in range(300):
        of_version = rng.random(150) < 2 / 3
        counts = zip(of_version.cumsum(), (~of_version).cumsum(), strict=True)
        felled += any(too_many_fatal(int(version), int(reference)) for version, reference in counts)
    assert felled / 300 <= 0.02


def test_slow_answers_are_told_by_their_95th_percentile_and_only_from_a_hundred_on() -> None:
    assert too_slow([0.9] * 99) is None
    assert too_slow([0.9] * 100) == pytest.approx(0.9)
    assert too_slow([0.1] * 96 + [5.0] * 4) is None
    assert too_slow([0.1] * 90 + [0.6] * 10) == pytest.approx(0.6)


@pytest.mark.parametrize(("call", "other"), [("buy", "sell"), ("hold", "buy"), ("strong_sell", "hold"), ("buy", "buy")])
def test_a_trial_and_the_gate_make_the_same_difference_of_the_same_calls(call: str, other: str) -> None:
    from data_pipeline.library.shadow_pairs import ShadowPair, Side
    from data_pipeline.library.trajectories import Trajectory
    from training.pipelines.gate_evidence import Call, pair
    from training.trial_evidence import session_differences

    at = START
    row = Trajectory(
        trajectory_id="a", timestamp=at.timestamp(), as_of=at, symbol="AAPL", agent_type="technical",
        market_state={"inputs": {"daily_volatility": 0.015}}, agent_inputs={}, reasoning="", confidence=0.7,
        actual_return=0.02, benchmark_return=0.01, matured_at=at + timedelta(days=7),
    )  # fmt: skip
    calls = {"a": Call(other, 0.8)}, {"a": Call(call, 0.6)}
    (decision,) = pair([row], *calls, horizon_sessions=5, round_trip_cost=0.0016).decisions
    said = Side(other, 0.8, False), Side(call, 0.6, False)
    found = ShadowPair("a", "AAPL", at, at + timedelta(days=7), 0.02, 0.01, 0.015, *said)
    (of_shadow,) = session_differences([found], "shadow", horizon_sessions=5, round_trip_cost=0.0016)
    (of_serving,) = session_differences([found], "serving", horizon_sessions=5, round_trip_cost=0.0016)
    assert of_shadow.difference == decision.challenger_reward - decision.champion_reward
    assert of_serving.difference == -of_shadow.difference
