"""What a call was worth, once its outcome is known: the shaped reward that training, the bandit and the gate use.

The outcome tracker calls `RewardCalculator.calculate_reward` for every matured opinion, `trajectory_reward` mixes in the
judges' grade. Pure arithmetic: nothing here reads a price, a clock or a library, and no result is ever NaN or infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from utils.schema import RECOMMENDATIONS, direction

HOLD_BAND = 0.02
"""A hold was right where the instrument moved by less than this (fraction)."""

SIZE_LIMIT = 0.15
DRAWDOWN_LIMIT = 0.10
MISSING_STOP_PENALTY = 0.1
RETURN_CLAMP = 3.0
CONSISTENCY_WINDOW = 20
CONSISTENCY_MINIMUM = 10
BASE_RATE_WINDOW = 200
"""Calls of one side that the trailing base rate looks back on: the number that calibration needs as well."""
VOLATILITY_FLOOR = 0.001
"""A halted or pegged share must not earn unbounded rewards: below 0.1 % a day scaling stops."""
TYPICAL_VOLATILITY = 0.02
"""Daily volatility assumed for scaling where too few bars exist to measure one: that of an ordinary US share."""
SESSIONS_A_YEAR = 252
LARGEST = 1e12
"""Magnitude beyond which no return, size, cost or weight has a meaning; within it no reward overflows."""

_FLAT = 1e-12


@dataclass(frozen=True, slots=True)
class TradingOutcome:
    """A call and what became of it. Returns, drawdown, size, costs and volatility are fractions.

    Attributes
    ----------
    entry_price, exit_price : float or None
        USD; give the instrument's return where `actual_return` is None.
    actual_return : float or None
        The instrument's return, whatever side was taken.
    max_drawdown : float or None
        Worst loss of the position on the way; read by its magnitude.
    holding_period : float or None
        Sessions; one where None.
    predicted_confidence, p_correct : float
        0..1; the calibrated `p_correct` goes before the stated confidence.
    costs : float
        Of the round trip.
    volatility : float or None
        Daily standard deviation of returns at decision time.

    Raises
    ------
    ValueError
        On an unknown recommendation, a number that is not finite or beyond `LARGEST`, a price that is not positive, a
        probability outside 0..1, or a negative size, cost, volatility or holding period.
    """

    symbol: str
    recommendation: str
    entry_price: float | None = None
    exit_price: float | None = None
    position_size: float = 0.0
    stop_loss: float | None = None
    take_profit: float | None = None
    actual_return: float | None = None
    max_drawdown: float | None = None
    holding_period: float | None = None
    predicted_confidence: float = 0.5
    predicted_return: float | None = None
    costs: float = 0.0
    volatility: float | None = None
    p_correct: float | None = None

    def __post_init__(self) -> None:
        if self.recommendation not in RECOMMENDATIONS:
            raise ValueError(f"recommendation {self.recommendation!r} is none of {', '.join(RECOMMENDATIONS)}")
        for name in ("entry_price", "exit_price", "stop_loss", "take_profit"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive price, not {value!r}")
        for name in ("actual_return", "max_drawdown", "predicted_return"):
            value = getattr(self, name)
            if value is not None and not abs(value) <= LARGEST:
                raise ValueError(f"{name} must be finite (up to {LARGEST:g}) or None, not {value!r}")
        for name in ("position_size", "costs", "volatility", "holding_period"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= LARGEST:
                raise ValueError(f"{name} must not be negative and must be finite (up to {LARGEST:g}), not {value!r}")
        for name in ("predicted_confidence", "p_correct"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is a probability 0..1, not {value!r}")
        moved = self.instrument_return
        if moved is not None and not abs(moved) <= LARGEST:
            raise ValueError(f"entry_price and exit_price give a return of {moved:g}; at least one of them is wrong")

    @property
    def instrument_return(self) -> float | None:
        """The instrument's return: as given, else from the prices, else None."""
        if self.actual_return is not None:
            return self.actual_return
        if self.entry_price is None or self.exit_price is None:
            return None
        return self.exit_price / self.entry_price - 1


@dataclass(frozen=True, slots=True)
class RewardHistory:
    """What the earlier calls of one agent say about the next: base rates by side, and consistency.

    Made once and extended with every matured call, so that no statistic is computed anew for a reward.

    Attributes
    ----------
    successes : tuple of three tuples of bool
        Was the call right, for sells, holds and buys, the last 200 of each, oldest first.
    signed_returns : tuple of float
        The last 20 net returns of calls with a side, oldest first.
    base_rates : tuple of three floats
        Share of right calls for sells, holds and buys; .5 where there is none yet.
    consistency : float
        -.5..+.5; 0 below 10 returns.
    """

    successes: tuple[tuple[bool, ...], tuple[bool, ...], tuple[bool, ...]] = ((), (), ())
    signed_returns: tuple[float, ...] = ()
    base_rates: tuple[float, float, float] = (0.5, 0.5, 0.5)
    consistency: float = 0.0

    def base_rate(self, recommendation: str) -> float:
        """Return the share of right calls on the side of `recommendation`, .5 without any."""
        return self.base_rates[direction(recommendation) + 1]

    def extended(self, recommendation: str, signed_return: float, success: bool) -> RewardHistory:
        """Return the history after one more matured call; the return of a hold says nothing and is left out."""
        side = direction(recommendation)
        calls, rates = list(self.successes), list(self.base_rates)
        window = (*calls[side + 1], success)[-BASE_RATE_WINDOW:]
        calls[side + 1] = window
        rates[side + 1] = sum(window) / len(window)
        returns, consistency = self.signed_returns, self.consistency
        if side:
            returns = (*returns, signed_return)[-CONSISTENCY_WINDOW:]
            consistency = consistency_of(returns)
        return RewardHistory((calls[0], calls[1], calls[2]), returns, (rates[0], rates[1], rates[2]), consistency)

    @classmethod
    def of(cls, outcomes: Iterable[TradingOutcome | float]) -> RewardHistory:
        """Return the history of outcomes, oldest first; a bare number is a signed net return of any side.

        Outcomes whose return is unknown are left out.
        """
        sides: tuple[list[bool], list[bool], list[bool]] = ([], [], [])
        returns: list[float] = []
        for item in outcomes:
            if isinstance(item, TradingOutcome):
                value = item.instrument_return
                if value is None:
                    continue
                side = direction(item.recommendation)
                sides[side + 1].append(_is_right(side, value, item.costs))
                if side:
                    returns.append(side * value - item.costs)
                continue
            if not abs(item) <= LARGEST:
                raise ValueError(f"a return in the history must be finite (up to {LARGEST:g}), not {item!r}")
            for column in sides:
                column.append(item > 0)
            returns.append(item)
        windows = [tuple(column[-BASE_RATE_WINDOW:]) for column in sides]
        rates = [sum(window) / len(window) if window else 0.5 for window in windows]
        recent = tuple(returns[-CONSISTENCY_WINDOW:])
        return cls((windows[0], windows[1], windows[2]), recent, (rates[0], rates[1], rates[2]), consistency_of(recent))


_NO_HISTORY = RewardHistory()


@dataclass(frozen=True, slots=True)
class RewardComponents:
    """The parts of a reward and their weighted sum.

    `success` says whether the call was right; None where the return is unknown, and then it must not be trained on.
    """

    return_reward: float
    risk_reward: float
    confidence_reward: float
    consistency_reward: float
    total_reward: float
    success: bool | None


class RewardCalculator:
    """Computes rewards.

    Parameters
    ----------
    return_weight, risk_weight, confidence_weight, consistency_weight : float
        Weights of the parts in the total.
    risk_free_rate : float
        A year's, used by the metrics of a batch only.
    volatility_scaling : bool
        Divide the return by what the instrument's volatility makes ordinary over the holding period.
    """

    hold_band = HOLD_BAND

    def __init__(
        self,
        return_weight: float = 1.0,
        risk_weight: float = 0.3,
        confidence_weight: float = 0.2,
        consistency_weight: float = 0.1,
        risk_free_rate: float = 0.02,
        volatility_scaling: bool = False,
    ) -> None:
        weights = (return_weight, risk_weight, confidence_weight, consistency_weight)
        if not all(0 <= weight <= LARGEST for weight in weights):
            raise ValueError(f"weights must be finite (up to {LARGEST:g}) and not negative, not {weights}")
        self.return_weight, self.risk_weight, self.confidence_weight, self.consistency_weight = weights
        self.risk_free_rate = risk_free_rate
        self.volatility_scaling = volatility_scaling

    def calculate_reward(
        self,
        outcome: TradingOutcome,
        benchmark_return: float | None = None,
        history: RewardHistory | Sequence[TradingOutcome | float] | None = None,
        *,
        apply_risk: bool = True,
    ) -> RewardComponents:
        """Return the reward of one matured call.

        Parameters
        ----------
        outcome : TradingOutcome
        benchmark_return : float, optional
            Of the same period, taken off the instrument's return; 0 where None.
        history : RewardHistory or sequence, optional
            Earlier matured calls of the same agent, oldest first. A sequence is summarised on each call; hold a
            `RewardHistory` where rewards are many.
        apply_risk : bool
            False for agents that set no size and no stop.

        Raises
        ------
        ValueError
            If the benchmark's return or a return in the history is not finite.
        """
        if history is None:
            past = _NO_HISTORY
        else:
            past = history if isinstance(history, RewardHistory) else RewardHistory.of(history)
        benchmark = benchmark_return or 0.0
        if not abs(benchmark) <= LARGEST:
            raise ValueError(f"benchmark_return must be finite (up to {LARGEST:g}) or None, not {benchmark_return!r}")
        side = direction(outcome.recommendation)
        value = outcome.instrument_return
        risk = _risk(outcome, side) if apply_risk else 0.0
        gained = confidence = 0.0
        success: bool | None = None
        if value is not None:
            success = _is_right(side, value, outcome.costs)
            gained = side * (value - benchmark) - outcome.costs
            if self.volatility_scaling:
                gained /= ordinary_move(outcome.volatility, outcome.holding_period)
            gained = max(-RETURN_CLAMP, min(RETURN_CLAMP, gained))
            stated = outcome.predicted_confidence if outcome.p_correct is None else outcome.p_correct
            confidence = 4 * ((past.base_rate(outcome.recommendation) - success) ** 2 - (stated - success) ** 2)
        total = (
            self.return_weight * gained
            + self.risk_weight * risk
            + self.confidence_weight * confidence
            + self.consistency_weight * past.consistency
        )
        return RewardComponents(gained, risk, confidence, past.consistency, total, success)

    def calculate_batch_rewards(
        self, outcomes: Sequence[TradingOutcome], benchmark_returns: Sequence[float] | None = None
    ) -> tuple[list[RewardComponents], dict[str, float | None]]:
        """Return the rewards of outcomes in order of time, and metrics of the whole.

        Each call is rewarded against those before it, so the order matters. Metrics look at the net returns of calls
        with a side and a known return; what is undefined is None. The Sharpe and Sortino ratios are annualised by √252
        as if a return spanned one session: with longer horizons they are too large by √horizon.

        Returns
        -------
        rewards : list of RewardComponents
        metrics : dict
            mean_return, std_return (sample), sharpe_ratio, sortino_ratio, max_drawdown (≤ 0), win_rate, mean_reward.

        Raises
        ------
        ValueError
            If there are not as many benchmark returns as outcomes.
        """
        if benchmark_returns is not None and len(benchmark_returns) != len(outcomes):
            raise ValueError(f"{len(outcomes)} outcomes need as many benchmark returns, not {len(benchmark_returns)}")
        history = _NO_HISTORY
        rewards: list[RewardComponents] = []
        returns: list[float] = []
        for index, outcome in enumerate(outcomes):
            reward = self.calculate_reward(outcome, benchmark_returns[index] if benchmark_returns else None, history)
            rewards.append(reward)
            value = outcome.instrument_return
            if value is None or reward.success is None:
                continue
            side = direction(outcome.recommendation)
            signed = side * value - outcome.costs
            history = history.extended(outcome.recommendation, signed, reward.success)
            if side:
                returns.append(signed)
        known = [reward.total_reward for reward in rewards if reward.success is not None]
        metrics = _metrics(returns, self.risk_free_rate)
        metrics["mean_reward"] = math.fsum(known) / len(known) if known else None
        return rewards, metrics


def trajectory_reward(components: RewardComponents, score: float | None, weight: float) -> float:
    """Return the reward of a trajectory: (1 - w)·total + w·(score/50 - 1), the total alone without a grade.

    Parameters
    ----------
    components : RewardComponents
    score : float or None
        The panel's final score 0..100; None while there is none.
    weight : float
        0..1, ``judge.weight``.

    Raises
    ------
    ValueError
        If score or weight is out of range.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"the judges' weight is a share 0..1, not {weight!r}")
    if score is None:
        return components.total_reward
    if not 0 <= score <= 100:
        raise ValueError(f"a score lies within 0..100, not {score!r}")
    return (1 - weight) * components.total_reward + weight * (score / 50 - 1)


def consistency_of(returns: Sequence[float]) -> float:
    """Return -.5..+.5 from the coefficient of variation of the last 20 signed returns; 0 below 10 of them."""
    recent = returns[-CONSISTENCY_WINDOW:]
    n = len(recent)
    if n < CONSISTENCY_MINIMUM:
        return 0.0
    mean = math.fsum(recent) / n
    if mean <= 0:
        return -0.5
    variance = math.fsum([(value - mean) ** 2 for value in recent]) / (n - 1)
    variation = math.sqrt(variance) / mean
    return max(-0.5, min(0.5, 0.5 - (variation - 0.5) / 1.5))


def _is_right(side: int, value: float, costs: float) -> bool:
    return side * value - costs > 0 if side else abs(value) < HOLD_BAND


def _risk(outcome: TradingOutcome, side: int) -> float:
    risk = 0.0
    if outcome.position_size > SIZE_LIMIT:
        risk -= 2 * (outcome.position_size - SIZE_LIMIT)
    if outcome.max_drawdown is not None and abs(outcome.max_drawdown) > DRAWDOWN_LIMIT:
        risk -= 2 * abs(outcome.max_drawdown)
    if side and outcome.stop_loss is None:
        risk -= MISSING_STOP_PENALTY
    return risk


def ordinary_move(volatility: float | None, sessions: float | None) -> float:
    """Return one standard deviation of an instrument over some sessions (at least one): volatility·√sessions.

    `volatility` is the daily one (fraction); that of a typical instrument where it is None.
    """
    daily = TYPICAL_VOLATILITY if volatility is None else max(volatility, VOLATILITY_FLOOR)
    return daily * math.sqrt(max(sessions or 1.0, 1.0))


def relative_move(
    actual_return: float, benchmark_return: float | None, volatility: float | None, sessions: float | None
) -> float:
    """Return what an instrument did against the market, in ordinary moves, clamped as rewards are."""
    move = (actual_return - (benchmark_return or 0.0)) / ordinary_move(volatility, sessions)
    return max(-RETURN_CLAMP, min(RETURN_CLAMP, move))


def right_calls(actual_return: float, costs: float) -> tuple[bool, bool, bool]:
    """Return whether a sell, a hold, a buy was right, where a side costs `costs` (fraction) and a hold nothing."""
    return _is_right(-1, actual_return, costs), _is_right(0, actual_return, 0.0), _is_right(1, actual_return, costs)


def _metrics(returns: Sequence[float], risk_free_rate: float) -> dict[str, float | None]:
    names = ("mean_return", "std_return", "sharpe_ratio", "sortino_ratio", "max_drawdown", "win_rate")
    metrics: dict[str, float | None] = dict.fromkeys(names)
    if not returns:
        return metrics
    import empyrical  # brings pandas and scipy, 60 MB that a daemon computing single rewards does not need
    import numpy as np

    values = np.asarray(returns, dtype=float)
    daily_rate = (1 + risk_free_rate) ** (1 / SESSIONS_A_YEAR) - 1
    metrics["mean_return"] = float(values.mean())
    metrics["win_rate"] = sum(value > 0 for value in returns) / len(returns)
    metrics["max_drawdown"] = _finite(empyrical.max_drawdown(values))
    if len(values) > 1:
        spread = float(values.std(ddof=1))
        metrics["std_return"] = spread
        if spread > _FLAT:
            metrics["sharpe_ratio"] = _finite(empyrical.sharpe_ratio(values, risk_free=daily_rate))
        if (values < daily_rate).any():
            metrics["sortino_ratio"] = _finite(empyrical.sortino_ratio(values, required_return=daily_rate))
    return metrics


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
