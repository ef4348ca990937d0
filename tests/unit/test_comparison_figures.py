"""The figures of a comparison: values worked out by hand, what counts in which, and how often chance is taken for skill."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.bootstrap import Interval, mean_interval, statistic_interval, two_sided_p
from evaluation.comparison import (
    Calls,
    Figure,
    Outcomes,
    PairedFigures,
    Resampling,
    adjusted,
    call_figures,
    direction_figures,
    holm,
    matthews,
    paired_figures,
    random_figures,
    reliability,
    suspicions,
)
from evaluation.report.charts import Curve, IntervalLine, interval_chart, reliability_chart

QUICK = Resampling(block=20, draws=400)
NAN = math.nan


def outcomes_of(actual: list[float], benchmark: float = 0.0, session: list[int] | None = None) -> Outcomes:
    places = list(range(len(actual))) if session is None else session
    return Outcomes(np.array(places), max(places) + 1, np.array(actual), np.full(len(actual), benchmark))


def calls_of(side: list[int], **columns: list[float]) -> Calls:
    n = len(side)
    given_columns = {
        "conviction": np.full(n, 0.5),
        "p_correct": np.full(n, NAN),
        "reward": np.zeros(n),
        "expected_reward": np.full(n, NAN),
        "net_return": np.zeros(n),
        **{name: np.array(values, dtype=float) for name, values in columns.items()},
    }
    abstained = given_columns.pop("abstained", np.zeros(n)).astype(bool)
    success = given_columns.pop("success", np.zeros(n)).astype(bool)
    return Calls(abstained=abstained, side=np.array(side), success=success, **given_columns)


def test_the_correlation_of_matthews_is_that_of_the_table_worked_out_by_hand() -> None:
    # (6·3 - 1·2) / sqrt(7·8·4·5)
    assert matthews(6, 1, 3, 2) == pytest.approx(16 / math.sqrt(1120))
    assert matthews(5, 0, 5, 0) == 1.0
    assert matthews(0, 5, 0, 5) == -1.0


def test_a_table_with_an_empty_margin_has_no_correlation() -> None:
    assert matthews(7, 3, 0, 0) is None
    assert matthews(0, 0, 0, 0) is None


@given(st.lists(st.tuples(st.sampled_from((-1, 1)), st.sampled_from((-1, 1))), min_size=2, max_size=40))
def test_the_correlation_of_matthews_is_pearsons_of_the_signs(pairs: list[tuple[int, int]]) -> None:
    said, came = (np.array(column) for column in zip(*pairs, strict=True))
    figures = direction_figures(calls_of(said.tolist()), outcomes_of([0.0] * len(pairs)), came.astype(float), QUICK)
    constant = len(set(said.tolist())) == 1 or len(set(came.tolist())) == 1
    expected = None if constant else pytest.approx(float(np.corrcoef(said, came)[0, 1]), abs=1e-9)
    assert figures.mcc.value == expected
    assert figures.accuracy.value == pytest.approx(float((said == came).mean()))


def test_direction_leaves_out_holds_abstentions_and_returns_of_zero() -> None:
    calls = calls_of([1, 1, 0, -1, -1, 1], abstained=[0, 0, 0, 0, 1, 0])
    figures = direction_figures(calls, outcomes_of([0.0] * 6), np.array([0.1, -0.1, 0.1, -0.1, -0.1, 0.0]), QUICK)
    assert figures.sides == 3
    assert figures.accuracy == Figure(pytest.approx(2 / 3))


def test_relative_direction_is_against_the_universe_and_plain_direction_against_zero() -> None:
    figures = call_figures(calls_of([1, 1]), outcomes_of([0.01, 0.03], benchmark=0.02), QUICK)
    assert figures.relative.accuracy.value == 0.5
    assert figures.plain.accuracy.value == 1.0


def test_the_calibration_error_is_that_of_the_tenths_worked_out_by_hand() -> None:
    stated = np.array([0.61, 0.69, 0.95, 1.0, 0.0])
    success = np.array([True, False, True, True, True])
    bins, error = reliability(stated, success)
    assert [(b.count, pytest.approx(b.stated), b.observed) for b in bins] == [
        (1, 0.0, 1.0), (2, 0.65, 0.5), (2, 0.975, 1.0)
    ]  # fmt: skip
    assert error == pytest.approx((1 * 1.0 + 2 * 0.15 + 2 * 0.025) / 5)


def test_without_calls_there_is_no_calibration_error() -> None:
    assert reliability(np.array([]), np.array([], dtype=bool)) == ((), None)


def test_the_brier_score_is_the_mean_squared_error_of_the_calls_that_were_made() -> None:
    calls = calls_of([1, 0, -1], conviction=[0.7, 0.6, 0.0], success=[1, 0, 0], abstained=[0, 0, 1])
    figures = call_figures(calls, outcomes_of([0.1, 0.1, 0.1]), QUICK)
    assert figures.conviction.calls == 2
    assert figures.conviction.brier.value == pytest.approx((0.09 + 0.36) / 2)
    assert figures.p_correct is None


def test_calibrated_probabilities_are_judged_where_they_are_known() -> None:
    calls = calls_of([1, 1], p_correct=[0.8, NAN], success=[1, 0])
    figures = call_figures(calls, outcomes_of([0.1, 0.1]), QUICK)
    assert figures.p_correct is not None
    assert (figures.p_correct.calls, figures.p_correct.brier.value) == (1, pytest.approx(0.04))


def test_an_abstention_counts_in_its_share_and_nowhere_else() -> None:
    calls = calls_of([0, 1, 0, -1], abstained=[1, 0, 0, 0], reward=[NAN, 0.4, -0.1, 0.3], net_return=[9, 0.02, 0, 0.01])
    figures = call_figures(calls, outcomes_of([0.1] * 4), QUICK)
    assert figures.abstention_share == 0.25
    assert figures.hold_share == pytest.approx(1 / 3)
    assert figures.reward.value == pytest.approx(0.2)
    assert figures.net_return.value == pytest.approx(0.01)
    assert figures.expected_reward is None


def test_an_agent_that_always_abstains_has_undefined_figures_and_no_zeros() -> None:
    figures = call_figures(calls_of([0, 0], abstained=[1, 1]), outcomes_of([0.1, 0.2]), QUICK)
    assert figures.abstention_share == 1.0
    assert figures.hold_share is None
    assert figures.reward.value is figures.net_return.value is figures.relative.accuracy.value is None


def test_a_pair_is_held_on_the_decisions_on_which_neither_abstains() -> None:
    outcomes = outcomes_of([0.1, -0.1, 0.1, 0.1])
    first = calls_of([1, 1, 1, -1], reward=[1.0, -1.0, 5.0, NAN], abstained=[0, 0, 0, 1])
    second = calls_of([1, -1, 1, 1], reward=[0.5, 1.0, NAN, 1.0], abstained=[0, 0, 1, 0])
    pair = paired_figures(first, second, outcomes, QUICK)
    assert pair.decisions == 2
    assert pair.reward.value.value == pytest.approx((0.5 - 2.0) / 2)
    assert pair.accuracy.value.value == pytest.approx(0.5 - 1.0)
    assert pair.reward.p is None


def test_an_arm_does_not_differ_from_itself() -> None:
    rng = np.random.default_rng(3)
    moves = rng.normal(0, 0.02, 200)
    calls = calls_of(rng.choice([-1, 0, 1], 200).tolist(), reward=rng.normal(0, 1, 200).tolist())
    pair = paired_figures(calls, calls, outcomes_of(moves.tolist()), QUICK)
    assert (pair.reward.value.value, pair.reward.p, pair.accuracy.p) == (0.0, 1.0, 1.0)


def test_holms_p_values_are_those_worked_out_by_hand_and_the_unknown_stays_out() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(values: list[float]) -> None:
    found = holm(values)
    assert all(after is not None and before <= after <= 1 for before, after in zip(values, found, strict=True))
    by_value = [after for _, after in sorted(zip(values, found, strict=True))]
    assert by_value == sorted(by_value)


def test_the_family_holds_reward_and_accuracy_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    outcomes = outcomes_of(rng.normal(0, 0.02, 120).tolist())
    calls = [calls_of(rng.choice([-1, 1], 120).tolist(), reward=rng.normal(0, 1, 120).tolist()) for _ in range(3)]
    pairs = [paired_figures(one, calls[0], outcomes, QUICK) for one in calls[1:]]
    found = adjusted(pairs)
    raw = [p for pair in pairs for p in (pair.reward.p, pair.accuracy.p)]
    assert [p for pair in found for p in (pair.reward.p_holm, pair.accuracy.p_holm)] == holm(raw)


def test_a_p_value_is_students_of_estimate_over_standard_error() -> None:
    interval = Interval(2.228, 0, 0, 1.0, 0.95, n=220, block=30, draws=1, seed=1)  # 1.5·220/30 - 1 = 10 degrees
    assert two_sided_p(interval) == pytest.approx(0.05, abs=1e-4)
    flat = Interval(0.0, 0, 0, 0.0, 0.95, 60, 20, 1, 1)
    assert two_sided_p(flat) == 1.0
    assert two_sided_p(replace(flat, estimate=0.1)) == 0.0


def test_the_interval_of_a_ratio_to_a_constant_is_the_interval_of_the_mean() -> None:
    values = np.random.default_rng(5).normal(0, 1, 150)
    table = np.column_stack((values, np.ones(150)))
    ratio = statistic_interval(table, lambda means: means[:, 0] / means[:, 1], 20, seed=7)
    mean = mean_interval(values, 20, seed=7)
    assert (ratio.low, ratio.high) == (pytest.approx(mean.low), pytest.approx(mean.high))


def test_a_statistic_that_is_undefined_on_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="undefined"):
        statistic_interval(np.zeros((60, 1)), lambda means: means[:, 0] * NAN, 20)


def pair_of_policies(seed: int, edge: float) -> PairedFigures:
    """Compare two coins on 120 sessions of 6 symbols that share their market; the first earns `edge` more a decision."""
    rng = np.random.default_rng(seed)
    session = np.repeat(np.arange(120), 6)
    market = np.convolve(rng.normal(0, 0.01, 124), np.ones(5), "valid")
    moves = market[session] + rng.normal(0, 0.02, len(session))
    outcomes = outcomes_of(moves.tolist(), session=session.tolist())
    sides = [rng.choice([-1, 1], len(session)) for _ in range(2)]
    rewards = [side * moves + extra for side, extra in zip(sides, (edge, 0.0), strict=True)]
    first, second = (
        calls_of(side.tolist(), reward=reward.tolist()) for side, reward in zip(sides, rewards, strict=True)
    )
    return paired_figures(first, second, outcomes, QUICK)


def test_of_two_coins_hardly_any_is_called_better_and_a_clear_edge_nearly_always() -> None:
    p_values = [pair_of_policies(seed, 0.0).reward.p for seed in range(150)]
    false_alarms = sum(p is not None and p < 0.05 for p in p_values)
    assert false_alarms <= 16  # 5 % of 150 and three standard deviations
    found = sum(p is not None and p < 0.05 for p in (pair_of_policies(seed, 0.01).reward.p for seed in range(40)))
    assert found >= 34


def test_a_coin_of_an_agent_that_always_buys_always_buys() -> None:
    outcomes = outcomes_of([0.02, -0.01, 0.03, 0.04])
    coin = random_figures(calls_of([1, 1, 1, 1]), outcomes, cost=0.001, seed=1, draws=50)
    assert coin.accuracy == Figure(0.75, 0.75, 0.75)
    assert coin.net_return.value == pytest.approx(0.02 - 0.001)
    assert coin.mcc == Figure(None)


def test_a_coin_is_as_active_as_the_agent_and_right_half_of_the_time() -> None:
    rng = np.random.default_rng(2)
    moves = rng.choice([-0.01, 0.01], 2000)
    calls = calls_of(np.sign(moves).astype(int).tolist())
    coin = random_figures(calls, outcomes_of(moves.tolist()), cost=0.0, seed=3, draws=200)
    assert coin.accuracy.value == pytest.approx(0.5, abs=0.01)
    assert coin.accuracy.low is not None
    assert 0.45 < coin.accuracy.low < 0.5
    again = random_figures(calls, outcomes_of(moves.tolist()), cost=0.0, seed=3, draws=200)
    assert again == coin


def test_what_is_too_good_is_called_suspicious_and_what_is_merely_good_is_not() -> None:
    moves = np.where(np.arange(100) % 2, 0.01, -0.01)
    for right, suspected in ((100, True), (59, False), (60, True)):
        side = np.sign(moves) * np.where(np.arange(100) < right, 1, -1)
        figures = call_figures(calls_of(side.astype(int).tolist()), outcomes_of(moves.tolist()), QUICK)
        accuracy_named = [text for text in suspicions(figures) if "accuracy" in text]
        assert bool(accuracy_named) is suspected


def test_no_bound_lies_where_the_figure_cannot() -> None:
    wrong = {5, 11, 60}
    moves = [-0.01 if number in wrong else 0.01 for number in range(120)]
    side = [-1 if number in {11} else 1 for number in range(120)]
    came_true = [float((move > 0) == (way > 0)) for move, way in zip(moves, side, strict=True)]
    sessions = [number // 2 for number in range(120)]
    calls = calls_of(side, conviction=[0.99] * 120, success=came_true)
    figures = call_figures(calls, outcomes_of(moves, session=sessions), Resampling(15, draws=500))
    assert figures.plain.accuracy.high == 1.0
    assert figures.plain.mcc.high == 1.0
    assert figures.conviction.brier.low == 0.0
    assert figures.plain.accuracy.low is not None
    assert 0.9 < figures.plain.accuracy.low < 0.99


def test_a_chart_shows_every_known_line_and_escapes_names() -> None:
    lines = [
        IntervalLine("a<b>", Figure(0.1, -0.2, 0.4)), IntervalLine("unknown", Figure(None)), IntervalLine("short", Figure(0.2))
    ]  # fmt: skip
    chart = interval_chart(lines, "difference")
    assert chart.count("<circle") == 2
    assert chart.count('class="interval') == 1
    assert "a&lt;b&gt;" in chart
    assert "unknown" not in chart
    assert interval_chart([IntervalLine("none", Figure(None))], "difference") == ""


def test_a_reliability_chart_places_what_was_stated_and_came_true_on_its_diagonal() -> None:
    bins, _ = reliability(np.array([0.5, 0.5]), np.array([True, False]))
    chart = reliability_chart([Curve("rules", bins, 0)], "technical")
    assert 'cx="154.0" cy="126.0"' in chart
