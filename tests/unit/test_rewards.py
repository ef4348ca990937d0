"""Rewards: the documented arithmetic, and properties that hold for whatever happens."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from judge.reward_calculator import (
    LARGEST,
    RewardCalculator,
    RewardHistory,
    TradingOutcome,
    consistency_of,
    trajectory_reward,
)
from utils.schema import RECOMMENDATIONS

CALCULATOR = RewardCalculator()
SCALED = RewardCalculator(volatility_scaling=True)

returns = st.floats(-1, 5)
shares = st.floats(0, 1)


@st.composite
def outcomes(draw: st.DrawFn) -> TradingOutcome:
    return TradingOutcome(
        symbol="AAPL",
        recommendation=draw(st.sampled_from(RECOMMENDATIONS)),
        position_size=draw(shares),
        stop_loss=draw(st.none() | st.floats(1, 100)),
        actual_return=draw(st.none() | returns),
        max_drawdown=draw(st.none() | st.floats(-1, 0)),
        holding_period=draw(st.none() | st.floats(0, 300)),
        predicted_confidence=draw(shares),
        costs=draw(st.floats(0, 0.1)),
        volatility=draw(st.none() | st.floats(0, 1)),
        p_correct=draw(st.none() | shares),
    )


def call(recommendation: str = "buy", actual: float | None = 0.05, **fields: object) -> TradingOutcome:
    return TradingOutcome("AAPL", recommendation, actual_return=actual, **{"stop_loss": 95.0, **fields})  # type: ignore[arg-type]


def test_the_documented_example_is_the_return_less_the_weighted_penalty_for_a_missing_stop() -> None:
    reward = CALCULATOR.calculate_reward(TradingOutcome(symbol="AAPL", recommendation="buy", actual_return=0.10))
    # 1.0·0.10 + 0.3·(-0.1: a side without a stop) + 0.2·0 (confidence = base rate = .5) + 0.1·0 (no history)
    assert (reward.return_reward, reward.risk_reward) == (0.10, -0.1)
    assert (reward.confidence_reward, reward.consistency_reward) == (0, 0)
    assert reward.total_reward == pytest.approx(0.07)


def test_a_profitable_short_is_rewarded() -> None:
    reward = CALCULATOR.calculate_reward(call("sell", -0.08))
    assert reward.return_reward == pytest.approx(0.08)
    assert reward.success is True


def test_the_benchmark_is_taken_off_before_the_side() -> None:
    assert CALCULATOR.calculate_reward(call("buy", 0.05), 0.03).return_reward == pytest.approx(0.02)
    assert CALCULATOR.calculate_reward(call("sell", 0.01), 0.03).return_reward == pytest.approx(0.02)


def test_the_return_follows_from_prices_where_it_is_not_given() -> None:
    outcome = TradingOutcome("AAPL", "buy", entry_price=50, exit_price=55, stop_loss=48)
    assert CALCULATOR.calculate_reward(outcome).return_reward == pytest.approx(0.1)


def test_an_unknown_return_earns_nothing_and_is_no_success_and_no_failure() -> None:
    reward = CALCULATOR.calculate_reward(call(actual=None, predicted_confidence=0.9))
    assert (reward.return_reward, reward.confidence_reward, reward.success) == (0, 0, None)


def test_scaling_divides_by_the_move_that_the_holding_period_makes_ordinary() -> None:
    outcome = call(actual=0.06, volatility=0.02, holding_period=9)
    assert SCALED.calculate_reward(outcome).return_reward == pytest.approx(1.0)
    assert SCALED.calculate_reward(dataclasses.replace(outcome, actual_return=0.9)).return_reward == 3.0
    assert SCALED.calculate_reward(dataclasses.replace(outcome, actual_return=-0.9)).return_reward == -3.0


def test_scaling_without_a_measured_volatility_takes_that_of_an_ordinary_share() -> None:
    assert SCALED.calculate_reward(call(actual=0.02)).return_reward == pytest.approx(1.0)
    assert SCALED.calculate_reward(call(actual=0.0005, volatility=0.0)).return_reward == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"position_size": 0.15}, 0.0),
        ({"position_size": 0.25}, -0.2),
        ({"max_drawdown": -0.10}, 0.0),
        ({"max_drawdown": -0.20}, -0.4),
        ({"max_drawdown": 0.20}, -0.4),
        ({"stop_loss": None}, -0.1),
        ({"stop_loss": None, "position_size": 0.25, "max_drawdown": -0.2}, -0.7),
    ],
)
def test_the_risk_part_adds_up(fields: dict[str, float | None], expected: float) -> None:
    assert CALCULATOR.calculate_reward(call(**fields)).risk_reward == pytest.approx(expected)


def test_a_hold_needs_no_stop_and_juniors_have_no_risk_part() -> None:
    assert CALCULATOR.calculate_reward(call("hold", 0.0, stop_loss=None)).risk_reward == 0
    assert CALCULATOR.calculate_reward(call(stop_loss=None), apply_risk=False).risk_reward == 0


@pytest.mark.parametrize(("actual", "right"), [(0.019, True), (-0.019, True), (0.02, False), (-0.3, False)])
def test_a_hold_is_right_within_two_percent(actual: float, right: bool) -> None:
    assert CALCULATOR.calculate_reward(call("hold", actual)).success is right


def test_costs_decide_whether_a_small_gain_is_a_success() -> None:
    assert CALCULATOR.calculate_reward(call(actual=0.001, costs=0.002)).success is False


def test_the_calibrated_probability_goes_before_the_stated_confidence() -> None:
    stated = CALCULATOR.calculate_reward(call(predicted_confidence=0.9)).confidence_reward
    assert stated == pytest.approx(4 * (0.25 - 0.01))
    calibrated = CALCULATOR.calculate_reward(call(predicted_confidence=0.9, p_correct=0.5)).confidence_reward
    assert calibrated == 0.0


def test_stating_the_base_rate_earns_nothing_whatever_happens() -> None:
    history = RewardHistory()
    for index in range(50):
        history = history.extended("buy", 0.01, index % 5 < 3)
    assert history.base_rate("strong_buy") == pytest.approx(0.6)
    for actual in (0.05, -0.05):
        reward = CALCULATOR.calculate_reward(call(actual=actual, predicted_confidence=0.6), history=history)
        assert reward.confidence_reward == pytest.approx(0.0)


def test_the_base_rate_is_that_of_calls_on_the_same_side() -> None:
    history = RewardHistory.of([call("sell", 0.1), call("sell", 0.1), call("buy", 0.1)])
    assert [history.base_rate(side) for side in ("sell", "hold", "buy")] == [0.0, 0.5, 1.0]


def test_a_history_extended_call_by_call_equals_one_made_at_once() -> None:
    calls = [call(("buy", "sell", "hold")[i % 3], 0.03 * math.sin(i), costs=0.001) for i in range(700)]
    grown = RewardHistory()
    for item in calls:
        reward = CALCULATOR.calculate_reward(item)
        side = {"buy": 1, "sell": -1, "hold": 0}[item.recommendation]
        grown = grown.extended(item.recommendation, side * item.actual_return - item.costs, bool(reward.success))
    assert grown == RewardHistory.of(calls)
    assert [len(column) for column in grown.successes] == [200, 200, 200]


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ([0.01] * 9, 0.0),
        ([0.01] * 10, 0.5),
        ([-0.01] * 10, -0.5),
        ([0.01, -0.01] * 10, -0.5),
        ([-1.0] * 30 + [0.02] * 20, 0.5),
        ([0.04, 0.0] * 10, 0.5 - (math.sqrt(20 / 19) - 0.5) / 1.5),
    ],
)
def test_consistency_follows_the_variation_of_the_last_twenty(series: list[float], expected: float) -> None:
    assert consistency_of(series) == pytest.approx(expected)


@settings(max_examples=300)
@given(outcomes(), st.none() | returns, st.lists(returns, max_size=30), st.booleans())
def test_a_reward_is_always_finite_and_the_weighted_sum_of_its_parts(
    outcome: TradingOutcome, benchmark: float | None, history: list[float], scaled: bool
) -> None:
    reward = (SCALED if scaled else CALCULATOR).calculate_reward(outcome, benchmark, history)
    parts = (reward.return_reward, reward.risk_reward, reward.confidence_reward, reward.consistency_reward)
    assert all(map(math.isfinite, (*parts, reward.total_reward)))
    assert reward.total_reward == pytest.approx(sum(w * p for w, p in zip((1, 0.3, 0.2, 0.1), parts, strict=True)))
    assert abs(reward.return_reward) <= 3
    assert reward.risk_reward <= 0


@settings(max_examples=200)
@given(outcomes(), st.floats(0, 0.1))
def test_higher_costs_never_raise_the_return_part(outcome: TradingOutcome, extra: float) -> None:
    dearer = dataclasses.replace(outcome, costs=outcome.costs + extra)
    for calculator in (CALCULATOR, SCALED):
        cheap, dear = calculator.calculate_reward(outcome), calculator.calculate_reward(dearer)
        assert dear.return_reward <= cheap.return_reward
        assert dear.success in (cheap.success, False)


@settings(max_examples=300)
@given(outcomes(), st.floats(0, 0.1), st.none() | returns, st.lists(returns, max_size=25))
def test_higher_costs_never_raise_the_reward_of_a_call_that_stays_right_or_wrong(
    outcome: TradingOutcome, extra: float, benchmark: float | None, history: list[float]
) -> None:
    # costs that turn a right call into a wrong one may pay an agent that doubted it: that is the confidence part's purpose
    dearer = dataclasses.replace(outcome, costs=outcome.costs + extra)
    for calculator in (CALCULATOR, SCALED):
        cheap = calculator.calculate_reward(outcome, benchmark, history)
        dear = calculator.calculate_reward(dearer, benchmark, history)
        turned = cheap.success is not dear.success
        assert turned or dear.total_reward <= cheap.total_reward
        assert dear.return_reward <= cheap.return_reward


@settings(max_examples=200)
@given(outcomes(), st.floats(1e-6, 1), st.floats(0, 0.9), st.sampled_from(("sell", "strong_sell")))
def test_a_short_that_gains_after_costs_is_a_success_and_earns(
    outcome: TradingOutcome, fall: float, share: float, side: str
) -> None:
    short = dataclasses.replace(outcome, recommendation=side, actual_return=-fall, costs=share * fall)
    for calculator in (CALCULATOR, SCALED):
        reward = calculator.calculate_reward(short)
        assert reward.return_reward > 0
        assert reward.success is True


_WIDE = st.floats(-LARGEST, LARGEST)
_WIDE_UP = st.floats(0, LARGEST)
_PRICE = st.floats(0, exclude_min=True, allow_infinity=False)


@st.composite
def extreme_outcomes(draw: st.DrawFn) -> TradingOutcome:
    """Draw any outcome that is accepted, sizes and prices of any magnitude among them."""
    fields = {
        "recommendation": draw(st.sampled_from(RECOMMENDATIONS)),
        "entry_price": draw(st.none() | _PRICE),
        "exit_price": draw(st.none() | _PRICE),
        "position_size": draw(_WIDE_UP),
        "stop_loss": draw(st.none() | _PRICE),
        "actual_return": draw(st.none() | _WIDE),
        "max_drawdown": draw(st.none() | _WIDE),
        "holding_period": draw(st.none() | _WIDE_UP),
        "predicted_confidence": draw(shares),
        "predicted_return": draw(st.none() | _WIDE),
        "costs": draw(_WIDE_UP),
        "volatility": draw(st.none() | _WIDE_UP),
        "p_correct": draw(st.none() | shares),
    }
    try:
        return TradingOutcome("AAPL", **fields)
    except ValueError:
        reject()


@settings(max_examples=400, suppress_health_check=[HealthCheck.filter_too_much])
@given(extreme_outcomes(), st.none() | _WIDE, st.lists(extreme_outcomes() | _WIDE, max_size=25), st.booleans())
def test_no_accepted_input_gives_a_number_that_is_not_finite(
    outcome: TradingOutcome, benchmark: float | None, history: list[TradingOutcome | float], scaled: bool
) -> None:
    calculator = SCALED if scaled else CALCULATOR
    reward = calculator.calculate_reward(outcome, benchmark, history)
    assert all(math.isfinite(value) for value in dataclasses.astuple(reward) if value is not None)
    again = calculator.calculate_reward(outcome, benchmark, history)
    assert again == reward


def test_prices_that_give_no_finite_return_are_refused() -> None:
    with pytest.raises(ValueError, match="entry_price and exit_price give a return of inf"):
        TradingOutcome("AAPL", "hold", entry_price=5e-324, exit_price=1e300)


@settings(max_examples=200)
@given(outcomes(), returns, returns)
def test_a_better_move_never_lowers_the_return_part_of_its_side(outcome: TradingOutcome, a: float, b: float) -> None:
    low, high = sorted((a, b))
    buy = dataclasses.replace(outcome, recommendation="buy")
    sell = dataclasses.replace(outcome, recommendation="sell")

    def part(item: TradingOutcome, actual: float) -> float:
        return CALCULATOR.calculate_reward(dataclasses.replace(item, actual_return=actual)).return_reward

    assert part(buy, low) <= part(buy, high)
    assert part(sell, low) >= part(sell, high)


@pytest.mark.parametrize(
    "fields",
    [
        {"actual_return": math.nan},
        {"entry_price": 0.0},
        {"predicted_confidence": 1.2},
        {"p_correct": -0.1},
        {"costs": -0.001},
        {"position_size": math.inf},
        {"volatility": -0.1},
        {"recommendation": "long"},
    ],
)
def test_impossible_outcomes_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        TradingOutcome(**{"symbol": "AAPL", "recommendation": "buy", **fields})  # type: ignore[arg-type]


def test_the_judges_grade_is_mixed_in_by_its_weight() -> None:
    components = CALCULATOR.calculate_reward(call(actual=0.10))
    assert trajectory_reward(components, None, 0.2) == components.total_reward
    assert trajectory_reward(components, 75, 0.2) == pytest.approx(0.8 * components.total_reward + 0.2 * 0.5)
    for score, weight in ((101, 0.2), (math.nan, 0.2), (50, 1.5)):
        with pytest.raises(ValueError, match="not"):
            trajectory_reward(components, score, weight)


def test_a_batch_gives_rewards_in_order_and_metrics() -> None:
    batch = [call("buy", 0.02), call("sell", 0.01), call("hold", 0.0), call(actual=None), call("buy", 0.03)]
    rewards, metrics = CALCULATOR.calculate_batch_rewards(batch)
    assert [reward.success for reward in rewards] == [True, False, True, None, True]
    assert metrics["mean_return"] == pytest.approx(0.04 / 3)
    assert metrics["win_rate"] == pytest.approx(2 / 3)
    assert metrics["max_drawdown"] == pytest.approx(-0.01)
    assert metrics["std_return"] == pytest.approx(0.0208166599)
    daily = 1.02 ** (1 / 252) - 1
    assert metrics["sharpe_ratio"] == pytest.approx((0.04 / 3 - daily) / 0.0208166599 * math.sqrt(252))
    downside = math.sqrt((0.01 + daily) ** 2 / 3)
    assert metrics["sortino_ratio"] == pytest.approx((0.04 / 3 - daily) / downside * math.sqrt(252))
    known = [reward.total_reward for reward in rewards if reward.success is not None]
    assert metrics["mean_reward"] == pytest.approx(sum(known) / 4)


def test_a_batch_rewards_each_call_against_those_before_it_only() -> None:
    batch = [call("buy", 0.02, predicted_confidence=0.9) for _ in range(12)]
    rewards, _ = CALCULATOR.calculate_batch_rewards(batch)
    assert rewards[0].confidence_reward == pytest.approx(0.96)
    assert rewards[1].confidence_reward == pytest.approx(-0.04)
    assert [rewards[i].consistency_reward for i in (9, 10)] == [0, 0.5]
    assert CALCULATOR.calculate_batch_rewards(batch[:3])[0] == rewards[:3]


@pytest.mark.parametrize("batch", [[], [call(actual=None)], [call("hold", 0.0)]])
def test_undefined_metrics_are_none(batch: list[TradingOutcome]) -> None:
    _, metrics = CALCULATOR.calculate_batch_rewards(batch)
    assert {name: value for name, value in metrics.items() if name != "mean_reward"} == dict.fromkeys(
        ("mean_return", "std_return", "sharpe_ratio", "sortino_ratio", "max_drawdown", "win_rate")
    )


def test_returns_that_do_not_vary_have_no_sharpe_ratio() -> None:
    _, metrics = CALCULATOR.calculate_batch_rewards([call(actual=0.1)] * 5)
    assert (metrics["sharpe_ratio"], metrics["sortino_ratio"]) == (None, None)
    assert metrics["std_return"] == pytest.approx(0)


def test_a_batch_needs_as_many_benchmark_returns_as_outcomes() -> None:
    with pytest.raises(ValueError, match="2 outcomes need"):
        CALCULATOR.calculate_batch_rewards([call(), call()], [0.1])


def test_single_rewards_do_not_load_the_metrics_library() -> None:
    code = "import sys, judge.reward_calculator, evaluation.decision_metrics; print('empyrical' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
