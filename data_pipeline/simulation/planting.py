"""How large the planted part of a return is for a stated edge, session by session, and the expectation that follows.

The path generator calls it. All is linear in what has happened, so that the expectation of a horizon's return given what
is known at its start is computed, not estimated; it never looks at a draw that lies after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.simulation.calibration import calibrate, geometric_sum
from data_pipeline.simulation.scenario import NEWS_SESSIONS, Scenario
from data_pipeline.simulation.schedule import IntArray
from data_pipeline.simulation.signals import (
    FAST_DECAY,
    SLOW_DECAY,
    SLOW_WEIGHT,
    contrast_deviation,
    stationary_moments,
)
from utils.schema.market import FloatArray

OVERNIGHT_SHARE = 0.2
"""Of a session's variance, that falls between the close before and the open."""


@dataclass(frozen=True, slots=True)
class Planting:
    """Coefficients by session, arrays of shape (sessions,).

    Attributes
    ----------
    drift, variance : array
        Expected return of a symbol, and the variance of its log return.
    fast, slow : array
        Return planted in the session for each unit of the distances from the averages at the close before.
    news : array
        For each unit of the shocks of the three sessions before, each.
    filing : array
        For each unit of the surprise of the filing in force.
    """

    drift: FloatArray
    variance: FloatArray
    fast: FloatArray
    slow: FloatArray
    news: FloatArray
    filing: FloatArray


def plant(scenario: Scenario, schedule: IntArray) -> Planting:
    """Return the coefficients under which each agent's signal earns its edge in each regime; see `calibrate`.

    The technical one is per deviation of the contrast that the volatilities so far make usual, so that the edge holds
    from a regime's first session on.
    """
    variance = np.array([regime.volatility**2 for regime in scenario.regimes])[schedule]
    news, technical, filing = calibrate(scenario)[schedule].T
    technical = technical / _deviations(variance)
    horizon = scenario.horizon_sessions
    return Planting(
        drift=np.array([regime.drift_bps / 1e4 for regime in scenario.regimes])[schedule],
        variance=variance,
        fast=-technical / geometric_sum(FAST_DECAY, horizon),
        slow=technical * SLOW_WEIGHT / geometric_sum(SLOW_DECAY, horizon),
        news=news,
        filing=filing,
    )


def expected_log_returns(
    planting: Planting,
    horizon: int,
    distances: tuple[FloatArray, FloatArray],
    shocks: FloatArray,
    filings: tuple[FloatArray, IntArray],
) -> FloatArray:
    """Return drift and planted parts of the sessions t + 1 .. t + horizon as expected at the close of each t.

    Parameters
    ----------
    planting : Planting
        Of `horizon` sessions more than the rest.
    distances : two arrays of shape (sessions, symbols)
        Of the log close from its fast and its slow average.
    shocks : array of shape (sessions, symbols)
        Of the news; what is yet to come is worth 0 on average.
    filings : two arrays of shape (sessions + horizon, symbols)
        Surprise and number of the filing in force in a session. The one in force in t + 1 is known at t, the next is
        worth 0 on average.
    """
    sessions = len(shocks)
    fast, slow = distances
    surprise, number = filings
    known = number[1 : sessions + 1]
    earlier = np.concatenate([np.zeros((NEWS_SESSIONS, shocks.shape[1])), shocks])
    total = np.zeros_like(fast)
    for ahead in range(1, horizon + 1):
        at = slice(ahead, ahead + sessions)
        planted = planting.fast[at, None] * fast + planting.slow[at, None] * slow
        for age in range(ahead, NEWS_SESSIONS + 1):
            first = NEWS_SESSIONS + ahead - age
            planted += planting.news[at, None] * earlier[first : first + sessions]
        planted += planting.filing[at, None] * np.where(number[at] == known, surprise[at], 0.0)
        planted += planting.drift[at, None]
        total += planted
        moved = planted - 0.5 * planting.variance[at, None]
        fast, slow = FAST_DECAY * (fast + moved), SLOW_DECAY * (slow + moved)
    return total


def horizon_deviations(planting: Planting, horizon: int, sessions: int) -> FloatArray:
    """Return the standard deviation of a symbol's log return from the next open to the end of the horizon, for each t.

    Given what is visible at t. What a shock within the horizon makes the technical signal answer before its end counts;
    what news and filings yet to come will add does not: below two in a hundred of the variance with the default edges.
    """
    variance = np.zeros(sessions)
    for ahead in range(1, horizon + 1):
        fast, slow = np.full(sessions, FAST_DECAY), np.full(sessions, SLOW_DECAY)
        response = np.ones(sessions)
        for later in range(ahead + 1, horizon + 1):
            at = slice(later, later + sessions)
            moved = planting.fast[at] * fast + planting.slow[at] * slow
            response += moved
            fast, slow = FAST_DECAY * (fast + moved), SLOW_DECAY * (slow + moved)
        share = 1 - OVERNIGHT_SHARE if ahead == 1 else 1.0
        variance += share * planting.variance[ahead : ahead + sessions] * response**2
    return np.sqrt(variance)


def _deviations(variance: FloatArray) -> FloatArray:
    """Return the deviation of the technical contrast at the close before each session, from a stationary start."""
    ff, fs, ss = stationary_moments(float(variance[0]))
    moments = np.empty((3, len(variance)))
    for session, added in enumerate(variance):
        moments[:, session] = ff, fs, ss
        ff = FAST_DECAY**2 * (ff + added)
        fs = FAST_DECAY * SLOW_DECAY * (fs + added)
        ss = SLOW_DECAY**2 * (ss + added)
    return contrast_deviation(*moments)
