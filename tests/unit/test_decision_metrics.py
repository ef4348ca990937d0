"""Performance figures: textbook values, honest intervals, and None for what is undefined."""

from __future__ import annotations

import json
import math
from datetime import date, timedelta

import numpy as np
import pytest

from evaluation.decision_metrics import ClosedTrade, Figure, buy_and_hold, sharpe_ratio, summarise_performance


def days(n: int) -> list[date]:
    return [date(2013, 1, 1) + timedelta(days=i) for i in range(n)]


def curve(returns: np.ndarray) -> np.ndarray:
    return 100_000 * np.concatenate(([1.0], np.cumprod(1 + returns)))


def test_return_and_drawdown_of_a_small_curve() -> None:
    summary = summarise_performance(days(5), [100, 120, 90, 99, 110])
    assert summary.strategy.total_return == pytest.approx(0.10)
    assert summary.strategy.max_drawdown == pytest.approx(-0.25)
    assert summary.sessions == 4


def test_the_drawdown_counts_a_loss_from_the_first_point() -> None:
    assert summarise_performance(days(3), [100, 80, 90]).strategy.max_drawdown == pytest.approx(-0.2)


def test_the_sharpe_ratio_is_the_textbook_one_with_bounds_around_it() -> None:
    returns = np.random.default_rng(1).normal(0.001, 0.01, 250)
    sharpe = summarise_performance(days(251), curve(returns)).strategy.sharpe
    assert sharpe.value == pytest.approx(returns.mean() / returns.std(ddof=1) * math.sqrt(252))
    assert sharpe.low < sharpe.value < sharpe.high


def test_a_short_run_has_figures_without_bounds() -> None:
    returns = np.random.default_rng(2).normal(0.001, 0.01, 59)
    summary = summarise_performance(days(60), curve(returns), [ClosedTrade(days(60)[5], "A", 0.1)])
    assert summary.strategy.sharpe.value is not None
    assert (summary.strategy.sharpe.low, summary.strategy.mean_daily_return.high) == (None, None)
    assert summary.win_rate.value == 1.0


def test_the_sharpe_ratio_is_that_of_empyrical() -> None:
    import empyrical

    returns = np.random.default_rng(3).normal(4e-4, 0.012, 500)
    assert sharpe_ratio(returns) == pytest.approx(float(empyrical.sharpe_ratio(returns)), rel=1e-12)


def test_a_curve_that_stands_still_has_no_sharpe_ratio() -> None:
    summary = summarise_performance(days(100), np.full(100, 5.0), benchmark_equity=np.full(100, 7.0))
    assert summary.strategy.sharpe == Figure(None)
    assert summary.sharpe_difference == Figure(None)
    assert summary.strategy.total_return == 0.0


def test_no_closed_trade_gives_no_win_rate() -> None:
    assert summarise_performance(days(100), np.arange(1.0, 101)).win_rate == Figure(None)


def test_the_win_rate_counts_net_wins_and_has_bounds() -> None:
    trades = [ClosedTrade(days(100)[i], "AAPL", 0.01 if i % 4 else 0.0) for i in range(100)]
    win_rate = summarise_performance(days(100), np.arange(1.0, 101), trades).win_rate
    assert win_rate.value == 0.75
    assert 0 <= win_rate.low <= 0.75 <= win_rate.high <= 1


def test_a_curve_that_is_its_benchmark_differs_from_it_by_nothing() -> None:
    equity = curve(np.random.default_rng(3).normal(0, 0.01, 120))
    summary = summarise_performance(days(121), equity, benchmark_equity=3 * equity)
    assert summary.daily_difference.value == pytest.approx(0, abs=1e-12)
    assert summary.daily_difference.high == pytest.approx(0, abs=1e-12)
    assert summary.sharpe_difference.value == pytest.approx(0, abs=1e-9)
    assert summary.benchmark.total_return == pytest.approx(summary.strategy.total_return)


def test_a_steady_gain_over_the_benchmark_is_seen_through_the_markets_noise() -> None:
    market = np.random.default_rng(4).normal(0, 0.02, 250)
    summary = summarise_performance(days(251), curve(market + 0.001), benchmark_equity=curve(market))
    assert summary.daily_difference.low > 0
    assert summary.strategy.mean_daily_return.low < 0


def test_buying_and_holding_lets_winners_run() -> None:
    equity = buy_and_hold([[1.0, 0.0], [1.0, 0.0]], initial=100)
    assert equity.tolist() == [100, 150, 250]


def test_a_symbol_that_is_not_yet_traded_is_cash_and_pays_its_cost_later() -> None:
    equity = buy_and_hold([[0.0, math.nan], [0.0, 0.5]], initial=100, one_way_cost=0.01)
    assert equity.tolist() == pytest.approx([100, 99.5, 49.5 + 50 * 1.5 * 0.99])


@pytest.mark.parametrize("returns", [[0.1, 0.2], [[math.inf]], [[-1.5]]])
def test_impossible_returns_are_refused(returns: list[object]) -> None:
    with pytest.raises(ValueError, match="return"):
        buy_and_hold(returns)


def test_the_summary_is_json_and_the_same_for_the_same_seed() -> None:
    equity = curve(np.random.default_rng(5).normal(0, 0.01, 120))
    first = summarise_performance(days(121), equity, benchmark_equity=equity[::-1])
    assert first == summarise_performance(days(121), equity, benchmark_equity=equity[::-1])
    assert json.loads(json.dumps(first.to_dict(), allow_nan=False))["first_session"] == "2013-01-01"


@pytest.mark.parametrize(
    ("sessions", "equity", "trades"),
    [
        (days(3), [1.0, 2.0], []),
        (days(1), [1.0], []),
        (days(2), [1.0, 0.0], []),
        (days(2)[::-1], [1.0, 2.0], []),
        (days(2), [1.0, 2.0], [ClosedTrade(date(2020, 1, 1), "AAPL", 0.1)]),
    ],
)
def test_impossible_curves_are_refused(sessions: list[date], equity: list[float], trades: list[ClosedTrade]) -> None:
    with pytest.raises(ValueError, match=r"session|equity"):
        summarise_performance(sessions, equity, trades)
