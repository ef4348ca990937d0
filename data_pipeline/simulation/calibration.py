"""How strongly a signal must move prices so that acting on it earns the stated edge, for every agent and regime at once.

The three cannot be set apart from each other: a drift after news or a filing moves the averages that the technical signal
is made of, and that signal answers it. The system is linear, so its moments follow from its impulse response; no draw is
looked at, and equal scenarios give equal coefficients.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product

import numpy as np

from data_pipeline.simulation.scenario import AGENTS, MEAN_ARTICLES, NEWS_SESSIONS, Regime, Scenario
from data_pipeline.simulation.signals import FAST_DECAY, SLOW_DECAY, SLOW_WEIGHT, UNIT_DEVIATION
from utils.errors import ConfigError
from utils.schema.market import FloatArray

QUARTER = 63
"""Sessions between two filings of a company."""

SURPRISE_LEAST = 0.5
"""Smallest size of a surprise in a filing; sizes are uniform from here to 1."""

_MEAN_SIZE = (1 + SURPRISE_LEAST) / 2
_MEAN_SQUARE_SIZE = (1 - SURPRISE_LEAST**3) / (3 * (1 - SURPRISE_LEAST))
_MEAN_ABSOLUTE_NORMAL = math.sqrt(2 / math.pi)
_MEMORY_QUARTERS = 3
"""What moved the price earlier has left the slow average: 0.96^189 is below one in a thousand."""

_DECAYS = np.array([FAST_DECAY, SLOW_DECAY])
_CONTRAST = np.array([-1.0, SLOW_WEIGHT])
_STEPS = 12
_PROBE = 1e-4
_TOLERANCE = 1e-6


def calibrate(scenario: Scenario) -> FloatArray:
    """Return the coefficients of news, technical and fundamental signals, an array of shape (regimes, 3).

    Per session: news for each unit of each of the last three sessions' shocks, filing for each unit of surprise; the
    technical one for each deviation of the contrast over the horizon.

    Raises
    ------
    ConfigError
        If no strength of the signals makes them earn what is stated.

    Notes
    -----
    Each regime is solved as if it had always been and would stay, by Newton's method. Against the equally weighted mean of
    n symbols a part that is independent between symbols keeps (n - 1)/n of itself, the market's noise nothing. A policy
    on the side of the technical signal z earns √(2/π)·Cov(z, m)/sd(z), z taken to be normal, m the expected return.
    """
    shared = len(scenario.symbols), scenario.market_share, scenario.horizon_sessions
    return np.array(
        [
            _solved(regime, tuple(scenario.edge(agent, regime.name) for agent in AGENTS), *shared)
            for regime in scenario.regimes
        ]
    )


def news_probability(news_rate: float) -> float:
    """Return the probability of a session with any news, half of them with a single article."""
    return news_rate / MEAN_ARTICLES


def geometric_sum(decay: float, terms: int) -> float:
    """Return 1 + d + ... + d^(terms - 1)."""
    return (1 - decay**terms) / (1 - decay)


@lru_cache(maxsize=256)
def _solved(
    regime: Regime, edges: tuple[float, ...], symbols: int, market_share: float, horizon: int
) -> tuple[float, ...]:
    wanted, found = np.array(edges), np.zeros(len(AGENTS))
    if not wanted.any():
        return tuple(found.tolist())

    def earned(coefficients: FloatArray) -> FloatArray:
        return _earned(regime, coefficients, symbols, market_share, horizon)

    with np.errstate(over="ignore", invalid="ignore"):  # where the system blows up there is no solution
        for _ in range(_STEPS):
            missed = wanted - earned(found)
            if regime.news_rate == 0:
                missed[AGENTS.index("news")] = 0.0  # nothing can be earned on news that there are not
            if np.all(np.abs(missed) <= _TOLERANCE):
                return tuple(found.tolist())
            steps = _PROBE * np.eye(len(AGENTS))
            slopes = np.column_stack([(earned(found + step) - earned(found - step)) / (2 * _PROBE) for step in steps])
            slopes += np.diag(np.where(np.abs(np.diag(slopes)) > 0, 0.0, 1.0))
            if not np.all(np.isfinite(slopes)) or not np.all(np.isfinite(missed)):
                break
            found = found + np.linalg.solve(slopes, missed)
    raise ConfigError(f"scenario.edges: the edges in regime {regime.name!r} cannot be had together; lower them")


def _earned(regime: Regime, coefficients: FloatArray, symbols: int, market_share: float, horizon: int) -> FloatArray:
    """Return what acting on the side of each signal earns against the market over the horizon, as a fraction."""
    news, technical, filing = coefficients.tolist()
    variance = regime.volatility**2
    answer = technical / (UNIT_DEVIATION * regime.volatility) * _CONTRAST
    answer = answer / np.array([geometric_sum(decay, horizon) for decay in _DECAYS])
    weights = _horizon_weights(answer, horizon)
    ahead = _future_weights(answer, horizon)
    impulse = _impulse_response(answer, (_MEMORY_QUARTERS + 1) * QUARTER)
    contrast, expected = impulse @ _CONTRAST, impulse @ weights
    # of a shock j sessions ago: planted in the three sessions after it, up to t seen in the averages, later still to come
    length = len(impulse)
    ages = range(1, NEWS_SESSIONS + 1)
    shock_contrast = news * sum(np.concatenate([np.zeros(age), contrast[: length - age]]) for age in ages)
    shock_expected = news * sum(np.concatenate([np.zeros(age), expected[: length - age]]) for age in ages)
    for since in range(NEWS_SESSIONS):
        shock_expected[since] += news * ahead[: NEWS_SESSIONS - since].sum()
    sums = np.concatenate([np.zeros((1, 2)), np.cumsum(impulse, axis=0)])
    age = np.arange(QUARTER)
    coming = np.array([ahead[: min(horizon, QUARTER - since)].sum() for since in range(QUARTER)])
    filed_contrast, filed_expected = filing * (sums[age] @ _CONTRAST), filing * (sums[age] @ weights + coming)
    covariance = np.zeros(2)
    squares = _MEAN_SQUARE_SIZE**2
    covariance += squares * np.array([(filed_contrast**2).mean(), (filed_contrast * filed_expected).mean()])
    for quarter in range(1, _MEMORY_QUARTERS):
        past = filing * (sums[age + quarter * QUARTER] - sums[age + (quarter - 1) * QUARTER])
        covariance += squares * np.array(
            [((past @ _CONTRAST) ** 2).mean(), (past @ _CONTRAST * (past @ weights)).mean()]
        )
    chance = news_probability(regime.news_rate)
    covariance += chance * np.array([shock_contrast @ shock_contrast, shock_contrast @ shock_expected])
    own = 1 - market_share
    deviation = math.sqrt(variance * float(contrast @ contrast) + covariance[0])
    relative = max(symbols - 1, 1) / symbols
    return relative * np.array(
        [
            float(_followed_shocks(chance) @ shock_expected[:NEWS_SESSIONS]),
            _MEAN_ABSOLUTE_NORMAL * (own * variance * float(contrast @ expected) + covariance[1]) / deviation,
            _MEAN_SIZE**2 * float(filed_expected.mean()),
        ]
    )


def _impulse_response(answer: FloatArray, length: int) -> FloatArray:
    """Return the distances from both averages 0, 1, ... sessions after a return of 1, of shape (length, 2)."""
    state = _DECAYS.copy()
    rows = np.empty((length, 2))
    for lag in range(length):
        rows[lag] = state
        state = _DECAYS * (state + answer @ state)
    return rows


def _horizon_weights(answer: FloatArray, horizon: int) -> FloatArray:
    """Return the expected return of the horizon for each unit of the two distances."""
    return np.array([_followed(answer, unit, horizon) for unit in np.eye(2)])


def _future_weights(answer: FloatArray, horizon: int) -> FloatArray:
    """Return the expected return of the horizon for a return of 1 planted in its 1st, 2nd, ... session."""
    return np.array([1.0 + _followed(answer, _DECAYS.copy(), horizon - ahead) for ahead in range(1, horizon + 1)])


def _followed(answer: FloatArray, state: FloatArray, sessions: int) -> float:
    total = 0.0
    for _ in range(sessions):
        moved = float(answer @ state)
        total += moved
        state = _DECAYS * (state + moved)
    return total


def _followed_shocks(chance: float) -> FloatArray:
    """Return E[sign(X)·S_{t-j} | X ≠ 0] for j = 0, 1, 2, with X = 3·S_t + 2·S_{t-1} + S_{t-2}."""
    chances = {-1: chance / 2, 0: 1 - chance, 1: chance / 2}
    followed, acting = np.zeros(NEWS_SESSIONS), 0.0
    for shocks in product(chances, repeat=NEWS_SESSIONS):
        side = np.sign(sum((NEWS_SESSIONS - age) * shock for age, shock in enumerate(shocks)))
        probability = math.prod(chances[shock] for shock in shocks)
        followed += probability * side * np.array(shocks)
        acting += probability * abs(side)
    return followed / acting if acting else followed
