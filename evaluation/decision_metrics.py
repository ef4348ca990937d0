"""What a run earned and how sure one may be of it: the figures of an equity curve beside buying and holding.

The run's summary, the status page and the reports call `summarise_performance`. Every figure that rests on resampling
carries its interval, or none where the run is too short to have one; what is undefined is None, never zero.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.bootstrap import (
    DEFAULT_BLOCK,
    DEFAULT_DRAWS,
    MIN_BLOCKS,
    Interval,
    mean_interval,
    paired_difference,
    sharpe_difference,
    sharpe_interval,
    win_rate_interval,
)

SESSIONS_A_YEAR = 252
_FLAT = 1e-12


@dataclass(frozen=True, slots=True)
class ClosedTrade:
    """A position that was closed in `session`; `net_return` is its return after costs (fraction)."""

    session: date
    symbol: str
    net_return: float


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its bounds; `low` and `high` are None where the run is too short for an interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class CurveFigures:
    """Figures of one equity curve.

    Attributes
    ----------
    total_return, max_drawdown : float
        Fractions; the drawdown is ≤ 0.
    mean_daily_return, sharpe : Figure
        The Sharpe ratio is annualised by √252 without a risk-free rate.
    """

    total_return: float
    max_drawdown: float
    mean_daily_return: Figure
    sharpe: Figure


@dataclass(frozen=True, slots=True)
class PerformanceSummary:
    """A run's performance; `to_dict` gives JSON values.

    Attributes
    ----------
    sessions, trades : int
        Sessions with a return (one less than points of the curve), closed trades.
    win_rate : Figure
        Share of closed trades with a net return above zero.
    benchmark : CurveFigures or None
        Buying and holding the universe in equal parts.
    daily_difference, sharpe_difference : Figure or None
        Strategy minus benchmark, paired by session.
    level : float
        Coverage of all intervals.
    block, draws, seed : int
        Of the bootstrap.
    """

    first_session: date
    last_session: date
    sessions: int
    strategy: CurveFigures
    trades: int
    win_rate: Figure
    benchmark: CurveFigures | None
    daily_difference: Figure | None
    sharpe_difference: Figure | None
    level: float
    block: int
    draws: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON values: no NaN, dates in ISO form."""
        values = dataclasses.asdict(self)
        values["first_session"] = self.first_session.isoformat()
        values["last_session"] = self.last_session.isoformat()
        return values


def summarise_performance(
    sessions: Sequence[date],
    equity: ArrayLike,
    trades: Sequence[ClosedTrade] = (),
    benchmark_equity: ArrayLike | None = None,
    *,
    level: float = 0.95,
    block: int = DEFAULT_BLOCK,
    draws: int = DEFAULT_DRAWS,
    seed: int = 42,
) -> PerformanceSummary:
    """Summarise an equity curve.

    Parameters
    ----------
    sessions : sequence of date, length n ≥ 2
        Ascending.
    equity : array-like of shape (n,)
        Value of the portfolio at the close of each session, USD, > 0; the first point is where the run starts.
    trades : sequence of ClosedTrade
        Closed within the sessions.
    benchmark_equity : array-like of shape (n,), optional
        As `equity`, for example from `buy_and_hold`.
    level, block, draws, seed
        Of the intervals; a run with fewer than three blocks of sessions has none.

    Raises
    ------
    ValueError
        If lengths differ, sessions do not ascend, a value is not positive, or a trade lies outside the sessions.
    """
    days = list(sessions)
    if any(later <= earlier for earlier, later in pairwise(days)):
        raise ValueError("sessions must ascend, each once")
    returns = _returns(equity, len(days), "equity")
    bootstrap = _Bootstrap(level, block, draws, seed)
    benchmark = difference = sharpe_gap = None
    if benchmark_equity is not None:
        reference = _returns(benchmark_equity, len(days), "benchmark_equity")
        benchmark = _curve(reference, bootstrap)
        difference = bootstrap.figure(float((returns - reference).mean()), paired_difference, returns, reference)
        pair = (sharpe_ratio(returns), sharpe_ratio(reference))
        gap = None if pair[0] is None or pair[1] is None else pair[0] - pair[1]
        sharpe_gap = bootstrap.figure(gap, sharpe_difference, returns, reference)
    return PerformanceSummary(
        first_session=days[0],
        last_session=days[-1],
        sessions=len(returns),
        strategy=_curve(returns, bootstrap),
        trades=len(trades),
        win_rate=_win_rate(days, trades, bootstrap),
        benchmark=benchmark,
        daily_difference=difference,
        sharpe_difference=sharpe_gap,
        level=level,
        block=block,
        draws=draws,
        seed=seed,
    )


def buy_and_hold(returns: ArrayLike, initial: float = 1.0, one_way_cost: float = 0.0) -> NDArray[np.float64]:
    """Return the equity of buying a universe in equal parts once and holding it.

    Parameters
    ----------
    returns : array-like of shape (n, symbols)
        Total return of each symbol over each session (fraction); NaN while it is not traded, and its part is then cash.
    initial : float
        Equity before the purchase.
    one_way_cost : float
        Cost of the purchase as a fraction of its value.

    Returns
    -------
    array of shape (n + 1,)
        Equity before the first session and after each. Nothing is rebalanced, so winners grow in weight.
    """
    panel = np.asarray(returns, dtype=float)
    if panel.ndim != 2 or panel.shape[1] == 0:
        raise ValueError("returns need the shape (sessions, symbols), with at least one symbol")
    if np.isinf(panel).any() or (panel[np.isfinite(panel)] < -1).any():
        raise ValueError("a return must be finite and at least -1")
    traded = np.logical_or.accumulate(np.isfinite(panel), axis=0)
    growth = np.cumprod(1 + np.nan_to_num(panel, nan=0.0), axis=0) * np.where(traded, 1 - one_way_cost, 1.0)
    return np.concatenate(([initial], initial * growth.mean(axis=1)))


@dataclass(frozen=True, slots=True)
class _Bootstrap:
    level: float
    block: int
    draws: int
    seed: int

    def figure(self, value: float | None, method: Callable[..., Interval], *series: NDArray[np.float64]) -> Figure:
        """Return a value with the bounds that `method` gives, without them where the series is too short."""
        if value is None or len(series[0]) < MIN_BLOCKS * self.block:
            return Figure(value)
        found = method(*series, self.block, self.level, self.draws, self.seed)
        return Figure(value, found.low, found.high)


def _returns(equity: ArrayLike, n: int, name: str) -> NDArray[np.float64]:
    values = np.asarray(equity, dtype=float)
    if values.shape != (n,) or n < 2:
        raise ValueError(f"{name} needs one value a session and at least two sessions, not {values.shape} for {n}")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"{name} must be positive and finite throughout")
    return np.asarray(values[1:] / values[:-1] - 1)


def _curve(returns: NDArray[np.float64], bootstrap: _Bootstrap) -> CurveFigures:
    growth = np.concatenate(([1.0], np.cumprod(1 + returns)))
    return CurveFigures(
        total_return=float(growth[-1] - 1),
        max_drawdown=float((growth / np.maximum.accumulate(growth)).min() - 1),
        mean_daily_return=bootstrap.figure(float(returns.mean()), mean_interval, returns),
        sharpe=bootstrap.figure(sharpe_ratio(returns), sharpe_interval, returns),
    )


def sharpe_ratio(returns: ArrayLike) -> float | None:
    """Return the annualised Sharpe ratio of daily returns: mean / sd · √252, no risk-free rate, sd with n - 1.

    None below two returns or where they do not vary: there is no ratio to a spread of rounding errors. Computed here,
    and held against empyrical by a test, because importing that would more than double the memory of the daemon, which
    shows this figure all day.
    """
    values = np.asarray(returns, dtype=float)
    if len(values) < 2 or (spread := float(values.std(ddof=1))) < _FLAT:
        return None
    return float(values.mean() / spread * math.sqrt(SESSIONS_A_YEAR))


def _win_rate(days: Sequence[date], trades: Sequence[ClosedTrade], bootstrap: _Bootstrap) -> Figure:
    if not trades:
        return Figure(None)
    place = {day: index for index, day in enumerate(days)}
    won, closed = np.zeros(len(days)), np.zeros(len(days))
    for trade in trades:
        if trade.session not in place:
            raise ValueError(f"the trade in {trade.symbol} closed on {trade.session}, which is none of the sessions")
        closed[place[trade.session]] += 1
        won[place[trade.session]] += trade.net_return > 0
    return bootstrap.figure(float(won.sum() / closed.sum()), win_rate_interval, won, closed)
