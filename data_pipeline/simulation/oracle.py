"""What the best possible policy earns in a scenario, which knows every signal, every regime to come, and what they mean.

The yardstick of studies, and the check that a simulated market is not too good to be true. Averages over independent
markets of the scenario's kind, each conditional expectation by formula, so that the intervals are narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

import numpy as np

from data_pipeline.simulation.paths import simulate
from data_pipeline.simulation.scenario import MAX_ACCURACY, Scenario, generated_symbols
from utils.errors import ConfigError
from utils.schema.market import FloatArray

_LEVEL_95 = 1.96
_CHECK_REPLICATES = 6
_CHECK_SESSIONS = 300
_STUDY_SESSIONS = 500
_ANY_DAY = date(2005, 1, 3)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over independent markets, with its 95 % interval by the normal approximation."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Oracle:
    """The Bayes-optimal policy, a decision of the horizon on every symbol at every close.

    Attributes
    ----------
    accuracy : Estimate
        Share of horizons in which the symbol's return has the more probable sign.
    relative_accuracy : Estimate
        The same of the return against the equally weighted market.
    gross_return : Estimate
        Mean return against the market of always taking the better side, before costs; fraction.
    net_return : Estimate
        Of taking it where it exceeds the costs, after them; a decision without a side earns 0.
    acting : Estimate
        Share of decisions that take one.
    reward : Estimate
        `net_return` in units of volatility·√horizon: the return part of a trajectory's reward.
    """

    accuracy: Estimate
    relative_accuracy: Estimate
    gross_return: Estimate
    net_return: Estimate
    acting: Estimate
    reward: Estimate


def consult(scenario: Scenario, round_trip_cost: float = 0.0016, replicates: int = 24) -> Oracle:
    """Return what the Bayes-optimal policy achieves.

    Parameters
    ----------
    scenario : Scenario
    round_trip_cost : float
        Fraction of the traded value; by default that of the paper broker.
    replicates : int
        Independent markets of up to 500 sessions, at least two.

    Notes
    -----
    P(right) = Φ(|m| / s), m and s mean and standard deviation of the log return given what is known.
    """
    if replicates < 2:
        raise ValueError(f"replicates must be at least 2 for an interval, got {replicates}")
    rows = np.array([_of_one(market, round_trip_cost) for market in _markets(scenario, replicates)])
    spread = _LEVEL_95 * rows.std(axis=0, ddof=1) / math.sqrt(replicates)
    return Oracle(
        *(Estimate(float(v), float(v - s), float(v + s)) for v, s in zip(rows.mean(axis=0), spread, strict=True))
    )


def refuse_predictable(scenario: Scenario) -> None:
    """Refuse a market whose direction even the best policy should not be able to tell so often.

    Raises
    ------
    ConfigError
        If the accuracy exceeds `MAX_ACCURACY` and the scenario does not allow it.
    """
    if scenario.allow_predictable:
        return
    # what does not change the accuracy is left out, so that markets of one kind are examined once
    common: dict[str, Any] = {"seed": 0, "start": _ANY_DAY, "symbols": generated_symbols(len(scenario.symbols))}
    if not _has_fixed_starts(scenario):
        common["sessions"] = _CHECK_SESSIONS
    accuracy = _accuracy(scenario.replaced(**common).model_dump_json())
    if accuracy > MAX_ACCURACY:
        raise ConfigError(
            f"scenario: direction would be predictable in {accuracy:.1%} of horizons, beyond {MAX_ACCURACY:.0%}; lower "
            "edges or drift_bps, raise volatility, or set allow_predictable: true"
        )


@lru_cache(maxsize=64)
def _accuracy(scenario: str) -> float:
    found = consult(Scenario.model_validate_json(scenario), replicates=_CHECK_REPLICATES)
    return max(found.accuracy.value, found.relative_accuracy.value)


def _markets(scenario: Scenario, replicates: int) -> Sequence[Scenario]:
    """Return scenarios that differ in the seed; fixed starts of regimes keep their sessions."""
    sessions = scenario.sessions if _has_fixed_starts(scenario) else min(scenario.sessions, _STUDY_SESSIONS)
    seeds = np.random.SeedSequence(scenario.seed).generate_state(replicates)
    return [scenario.replaced(seed=int(seed), sessions=sessions) for seed in seeds]


def _has_fixed_starts(scenario: Scenario) -> bool:
    return any(regime.starts for regime in scenario.regimes)


def _of_one(scenario: Scenario, round_trip_cost: float) -> tuple[float, ...]:
    paths = simulate(scenario)
    count, horizon = len(scenario.symbols), scenario.horizon_sessions
    deviation = paths.deviation[:, None]
    median = np.log1p(paths.expected) - 0.5 * deviation**2
    relative = paths.expected - paths.expected.mean(axis=1, keepdims=True)
    own = deviation * math.sqrt((1 - scenario.market_share) * max(count - 1, 1) / count)
    net = np.maximum(np.abs(relative) - round_trip_cost, 0.0)
    volatility = np.array([regime.volatility for regime in scenario.regimes])[paths.regimes][:, None]
    return (
        _mean_normal_cdf(np.abs(median) / deviation),
        _mean_normal_cdf(np.abs(relative) / own),
        float(np.abs(relative).mean()),
        float(net.mean()),
        float((net > 0).mean()),
        float((net / (volatility * math.sqrt(horizon))).mean()),
    )


def _mean_normal_cdf(values: FloatArray) -> float:
    return math.fsum(0.5 * (1 + math.erf(value / math.sqrt(2))) for value in values.ravel().tolist()) / values.size
