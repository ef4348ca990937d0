from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.features import (
    HALF_LIFE_BARS,
    RETURNS_USED,
    NewsActivity,
    news_activity,
    news_impact,
    regime_inputs,
    trend_and_volatility,
    volatility_rank,
)
from data_pipeline.sentiment import score_text
from utils.schema import BarWindow, NewsItem

T = datetime(2014, 3, 3, 21, tzinfo=UTC)
HOUR = timedelta(hours=1)


def window_of(closes: np.ndarray) -> BarWindow:
    sessions = np.datetime64("2014-01-01") + np.arange(len(closes))
    return BarWindow(sessions, closes, closes * 1.01, closes * 0.99, closes, np.full(len(closes), 1e6))


def walk(count: int, seed: int = 42, scale: float = 0.01) -> np.ndarray:
    return 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, scale, count)))


def items_at(ages: list[timedelta], text: str = "beats estimates") -> tuple[list[NewsItem], list[datetime]]:
    times = sorted(T - age for age in ages)
    return [NewsItem(str(number), "AAA", text, at, at, "test") for number, at in enumerate(times)], times


def test_the_rank_is_that_of_a_plain_recursion() -> None:
    returns = np.diff(np.log(walk(300)))
    decay = 0.5 ** (1 / HALF_LIFE_BARS)
    numerator = denominator = 0.0
    variances = []
    for value in returns:
        numerator = numerator * decay + value * value
        denominator = denominator * decay + 1
        variances.append(numerator / denominator)
    ranked = variances[-252:]
    expected = (sum(value < ranked[-1] for value in ranked) + 0.5) / 252
    assert volatility_rank(returns) == pytest.approx(expected, abs=1e-12)


def test_volatility_that_rises_ranks_high_and_that_falls_low() -> None:
    calm, wild = np.random.default_rng(1).normal(0, 0.005, 200), np.random.default_rng(2).normal(0, 0.04, 40)
    rising, falling = np.concatenate([calm, wild]), np.concatenate([wild, calm, calm[:100] * 0.1])
    assert (volatility_rank(rising) or 0) > 0.85
    assert (volatility_rank(falling) or 1) < 0.15


def test_a_price_that_never_moved_ranks_in_the_middle() -> None:
    inputs = regime_inputs(window_of(np.full(100, 50.0)))
    assert inputs.volatility == 0.5
    assert inputs.trend_strength == 0.0
    assert inputs.daily_volatility == 0.0
    assert inputs.flags == ("news_impact",)


@pytest.mark.parametrize(
    ("bars", "flags"),
    [
        (0, {"volatility", "trend_strength"}),
        (1, {"volatility", "trend_strength"}),
        (20, {"volatility", "trend_strength"}),
        (21, {"volatility"}),
        (59, {"volatility"}),
        (60, set()),
    ],
)
def test_too_few_bars_are_flagged_and_hold_the_default(bars: int, flags: set[str]) -> None:
    inputs = regime_inputs(window_of(walk(bars)), NewsActivity(0, (0,) * 20, 0.0))
    assert set(inputs.flags) == flags
    assert (inputs.trend_strength == 0.0) == ("trend_strength" in flags)
    assert (inputs.daily_volatility == 0.0) == ("trend_strength" in flags)


def test_the_rank_without_enough_bars_is_the_middle() -> None:
    assert regime_inputs(window_of(walk(59))).volatility == 0.5


def test_trend_strength_is_tanh_of_half_the_t_statistic() -> None:
    returns = np.random.default_rng(3).normal(0.004, 0.01, 60)
    last = returns[-20:]
    tau = math.sqrt(20) * last.mean() / last.std(ddof=1)
    strength, deviation = trend_and_volatility(returns) or (math.nan, math.nan)
    assert strength == pytest.approx(math.tanh(tau / 2))
    assert deviation == pytest.approx(last.std(ddof=1))


@pytest.mark.parametrize(("growth", "expected"), [(1.01, 1.0), (0.99, -1.0)])
def test_a_steady_price_has_the_strongest_trend(growth: float, expected: float) -> None:
    assert regime_inputs(window_of(100 * growth ** np.arange(80.0))).trend_strength == pytest.approx(expected)


def test_a_longer_history_changes_nothing() -> None:
    closes = walk(900)
    exact = regime_inputs(window_of(closes[-(RETURNS_USED + 1) :]))
    assert regime_inputs(window_of(closes)) == exact
    assert regime_inputs(window_of(closes[-400:])) == exact


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 400), scale=st.floats(1e-4, 0.2), factor=st.floats(0.01, 1000))
def test_inputs_stay_in_range_and_are_free_of_scale(seed: int, count: int, scale: float, factor: float) -> None:
    closes = walk(count, seed, scale)
    inputs, scaled = regime_inputs(window_of(closes)), regime_inputs(window_of(closes * factor))
    assert 0 <= inputs.volatility <= 1
    assert -1 <= inputs.trend_strength <= 1
    assert scaled.trend_strength == pytest.approx(inputs.trend_strength, abs=1e-6)
    assert scaled.volatility == pytest.approx(inputs.volatility, abs=0.02)


def test_activity_counts_the_last_day_and_each_of_the_twenty_before() -> None:
    ages = [HOUR * 1, HOUR * 23.9, HOUR * 24, HOUR * 47, HOUR * 24 * 20, HOUR * 24 * 21.5]
    activity = news_activity(*items_at(ages), T)
    assert activity is not None
    assert activity.count == 2
    assert activity.baseline == (2, *(0,) * 18, 1)
    assert activity.mean_sentiment == pytest.approx(score_text("beats estimates"))


def test_activity_looks_at_nothing_after_t() -> None:
    items, times = items_at([HOUR * 24 * 30, HOUR * 3, -HOUR, -HOUR * 24])
    assert news_activity(items, times, T) == news_activity(items[:2], times[:2], T)


def test_a_source_seen_for_less_than_twenty_days_is_none_yet() -> None:
    assert news_activity([], [], T) is None
    assert news_activity(*items_at([HOUR * 24 * 20.9]), T) is None
    assert news_activity(*items_at([HOUR * 24 * 21]), T) is not None


def test_impact_follows_its_formula() -> None:
    baseline = (1, 3) * 10
    deviation = math.sqrt(20 / 19)
    z = (5 - 2) / deviation
    expected = 2 * (1 - math.exp(-z / 2)) * 0.3
    assert news_impact(NewsActivity(5, baseline, -0.3)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("activity", "impact"),
    [
        (NewsActivity(0, (5,) * 20, 0.0), 0.0),
        (NewsActivity(3, (5,) * 20, 0.9), 0.0),
        (NewsActivity(50, (5,) * 20, 0.0), 0.0),
        (NewsActivity(50, (5,) * 20, 0.9), 1.0),
        (NewsActivity(1, (0,) * 20, 1.0), 2 * (1 - math.exp(-0.5))),
    ],
)
def test_impact_needs_more_news_than_usual_with_a_direction(activity: NewsActivity, impact: float) -> None:
    assert news_impact(activity) == pytest.approx(impact)


def test_no_news_source_is_flagged_and_a_silent_one_is_not() -> None:
    assert "news_impact" in regime_inputs(window_of(walk(100))).flags
    silent = regime_inputs(window_of(walk(100)), NewsActivity(0, (1,) * 20, 0.0))
    assert silent.news_impact == 0.0
    assert silent.flags == ()
