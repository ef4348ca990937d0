"""The three signals that can be planted, each a function of what its analyst sees at t, none of what comes later.

The generator plants returns that follow them, tests and studies act on them. They are relations that the rules policies do
not use: a tone that counts only by how many tell it, a multiple that counts only against the growth, and a return to two
averages where the rules follow them as often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from data_pipeline.sentiment import score_text
from data_pipeline.simulation.scenario import NEWS_SESSIONS, Agent
from utils.schema import MarketSnapshot
from utils.schema.market import FloatArray

FAST_SPAN, SLOW_SPAN = 20, 50
"""Of the exponential averages of the log close; the distances from them read as sma20 and sma50 of the state text."""

FAST_DECAY, SLOW_DECAY = 1 - 2 / (FAST_SPAN + 1), 1 - 2 / (SLOW_SPAN + 1)

SLOW_WEIGHT = -0.2
"""Of the distance from the slow average beside that from the fast one. The technical rules partly revert and partly follow
trends; this weight was chosen, on white noise, so that what they gain by the one they lose by the other."""

VOLATILITY_SESSIONS = 20

CHORUS = 3
"""Articles of one session from which on their tone is believed; a lone one is overdone."""

USUAL_GROWTH, GROWTH_RANGE = 0.05, 0.12
USUAL_PE, PE_RANGE = 18.0, 0.3
"""Yearly growth of revenue; price/earnings, whose range is one of its logarithm."""


def contrast_deviation(variance_ff: FloatArray, variance_fs: FloatArray, variance_ss: FloatArray) -> FloatArray:
    """Return the standard deviation of the technical contrast from the (co)variances of the two distances."""
    return np.sqrt(SLOW_WEIGHT**2 * variance_ss - 2 * SLOW_WEIGHT * variance_fs + variance_ff)


def stationary_moments(variance: float) -> tuple[float, float, float]:
    """Return variance, covariance and variance of the fast and slow distances under white noise of a daily variance."""
    ff, fs, ss = FAST_DECAY**2, FAST_DECAY * SLOW_DECAY, SLOW_DECAY**2
    return variance * ff / (1 - ff), variance * fs / (1 - fs), variance * ss / (1 - ss)


_UNIT = np.array(stationary_moments(1.0))
UNIT_DEVIATION = float(contrast_deviation(_UNIT[0], _UNIT[1], _UNIT[2]))
"""Standard deviation of the technical contrast in daily volatilities."""


def technical_levels(contrast: FloatArray, volatility: FloatArray) -> FloatArray:
    """Return the technical signal -1..1: the contrast in twice its usual deviation, 0 where nothing has moved."""
    scale = 2 * UNIT_DEVIATION * volatility
    return np.clip(np.divide(contrast, scale, out=np.zeros_like(contrast), where=scale > 0), -1.0, 1.0)


def news_shocks(count: FloatArray, tone: FloatArray) -> FloatArray:
    """Return what a session's news does later: its tone where many tell it, the opposite where one does, else 0."""
    return np.where(count >= CHORUS, tone, np.where(count == 1, -tone, 0.0))


def technical_signal(snapshot: MarketSnapshot) -> float:
    """Return -1..1 from the closes: a rise is expected below the averages, the short one counting most.

    Notes
    -----
    z = w·d₅₀ - d₂₀, w = `SLOW_WEIGHT`, d_N the distance of the log close from its exponential average of span N, over twice its usual
    deviation at the volatility of the last 20 sessions. Fewer bars than 20: 0.
    """
    returns = np.diff(np.log(snapshot.bars.close))
    if len(returns) < VOLATILITY_SESSIONS:
        return 0.0
    ages = np.arange(len(returns), 0, -1)
    fast, slow = float(returns @ FAST_DECAY**ages), float(returns @ SLOW_DECAY**ages)
    volatility = float(returns[-VOLATILITY_SESSIONS:].std(ddof=1))
    return float(technical_levels(np.array([SLOW_WEIGHT * slow - fast]), np.array([volatility]))[0])


def news_signal(snapshot: MarketSnapshot) -> float:
    """Return -1..1 from the articles of the last three sessions, the newest counting most.

    Notes
    -----
    A session's tone is the sign of the mean lexicon sentiment of its articles; see `news_shocks`.
    """
    by_session: dict[str, list[float]] = {}
    for item in snapshot.news:
        by_session.setdefault(item.event_time.date().isoformat(), []).append(score_text(item.text))
    total = 0.0
    for age, session in enumerate(snapshot.bars.sessions[-NEWS_SESSIONS:][::-1]):
        scores = by_session.get(str(session), [])
        tone = np.sign(math.fsum(scores))
        total += (NEWS_SESSIONS - age) * float(news_shocks(np.array(float(len(scores))), np.array(tone)))
    return total / sum(range(1, NEWS_SESSIONS + 1))


def fundamental_signal(snapshot: MarketSnapshot) -> float:
    """Return -1..1 from the newest filing: growth that is not paid for is good, a cheap share that shrinks is a trap."""
    if not snapshot.filings:
        return 0.0
    return filing_surprise(snapshot.filings[-1].metrics)


def filing_surprise(metrics: Mapping[str, float]) -> float:
    """Return minus the product of the surprises in growth and multiple, each -1..1 against what is usual."""
    growth = (metrics["revenue_growth"] - USUAL_GROWTH) / GROWTH_RANGE
    multiple = math.log(metrics["pe_ratio"] / USUAL_PE) / PE_RANGE
    return -max(-1.0, min(1.0, growth)) * max(-1.0, min(1.0, multiple))


SIGNALS: dict[Agent, Callable[[MarketSnapshot], float]] = {
    "news": news_signal,
    "technical": technical_signal,
    "fundamental": fundamental_signal,
}
"""By agent: what a policy would have to find out."""
