"""One simulated market as arrays: prices, volumes, news and filings by session and symbol, with what was planted in them.

The generator puts dates and texts to it, the oracle averages over many. Every session is drawn in order from streams of its
own, so that a longer market begins with the shorter one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.simulation.calibration import QUARTER, SURPRISE_LEAST, news_probability
from data_pipeline.simulation.planting import (
    OVERNIGHT_SHARE,
    Planting,
    expected_log_returns,
    horizon_deviations,
    plant,
)
from data_pipeline.simulation.scenario import NEWS_SESSIONS, Agent, Scenario
from data_pipeline.simulation.schedule import IntArray, regime_schedule, stream
from data_pipeline.simulation.signals import (
    CHORUS,
    FAST_DECAY,
    GROWTH_RANGE,
    PE_RANGE,
    SLOW_DECAY,
    SLOW_WEIGHT,
    USUAL_GROWTH,
    USUAL_PE,
    VOLATILITY_SESSIONS,
    news_shocks,
    technical_levels,
)
from utils.schema.market import FloatArray

BURN_IN = 150
"""Sessions before the first that is shown, after which the averages are those of a long history."""

PRIOR_FILINGS = 4
"""Filings of before the first session, so that a multiple has a history."""

_FIRST_PRICES = (30.0, 180.0)
_FIRST_VOLUMES = (2e6, 2e7)


@dataclass(frozen=True, slots=True)
class Filings:
    """One symbol's filings: the `sessions` they are published in, from before the start to after the end, and their metrics."""

    sessions: IntArray
    metrics: tuple[dict[str, float], ...]


@dataclass(frozen=True, slots=True)
class Paths:
    """Arrays of shape (sessions, symbols) unless they say otherwise.

    Attributes
    ----------
    regimes : int array of shape (sessions,)
        Index into the scenario's regimes.
    open, high, low, close, volume : array
        Prices in USD, shares.
    articles, tone : array
        Number of a session's articles; -1, 0 or 1.
    filings : tuple of Filings
        By symbol.
    signals : dict of agent to array
        -1..1, as the analysts can see them at the session's close.
    expected : array
        Expected return from the next open to the close `horizon_sessions` on, of the symbol itself, given what is visible
        and the regimes to come; fraction.
    deviation : array of shape (sessions,)
        Standard deviation of that log return, given the same.
    """

    regimes: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: FloatArray
    articles: IntArray
    tone: FloatArray
    filings: tuple[Filings, ...]
    signals: dict[Agent, FloatArray]
    expected: FloatArray
    deviation: FloatArray


def simulate(scenario: Scenario) -> Paths:
    """Return the market of a scenario; equal scenarios give equal arrays."""
    sessions, horizon = scenario.sessions, scenario.horizon_sessions
    schedule = regime_schedule(scenario, sessions + horizon)
    burnt = np.concatenate([np.full(BURN_IN, schedule[0]), schedule])
    planting = plant(scenario, burnt)
    texts = _Texts(scenario, schedule)
    walk = _walk(scenario, planting, texts)
    shown = slice(BURN_IN, BURN_IN + sessions)
    log_close = np.cumsum(walk.returns, axis=0)[BURN_IN:]
    log_open = log_close - walk.returns[BURN_IN:] + walk.gaps[BURN_IN:]
    base = np.array([np.log(stream(scenario.seed, "price", s).uniform(*_FIRST_PRICES)) for s in scenario.symbols])
    first = log_close[0] - walk.returns[BURN_IN]
    log_open, log_close = log_open - first + base, log_close - first + base
    after = _from(planting, BURN_IN)
    seen = _without_signals(after) if scenario.shuffled else after
    expected = expected_log_returns(
        seen,
        horizon,
        (walk.fast[shown], walk.slow[shown]),
        texts.shocks[:sessions],
        (texts.surprise, texts.number),
    )
    high, low = _extremes(scenario, log_open, log_close, np.sqrt((1 - OVERNIGHT_SHARE) * after.variance[:sessions]))
    return Paths(
        regimes=schedule[:sessions],
        open=np.exp(log_open),
        high=high,
        low=low,
        close=np.exp(log_close),
        volume=_volumes(scenario, walk.returns[shown], after.variance[:sessions]),
        articles=texts.articles,
        tone=texts.tone,
        filings=texts.filings,
        signals={
            "news": _news_levels(texts.shocks[:sessions]),
            "technical": _technical_levels(walk, shown),
            "fundamental": texts.surprise[1 : sessions + 1],
        },
        expected=np.expm1(expected),
        deviation=horizon_deviations(seen, horizon, sessions),
    )


class _Texts:
    """News and filings of all symbols, drawn ahead of the prices: nothing in them depends on a price."""

    def __init__(self, scenario: Scenario, schedule: IntArray) -> None:
        sessions, horizon = scenario.sessions, scenario.horizon_sessions
        chance = np.array([news_probability(regime.news_rate) for regime in scenario.regimes])[schedule[:sessions]]
        shape = (sessions, len(scenario.symbols))
        self.articles = np.zeros(shape, dtype=np.int64)
        self.tone = np.zeros(shape)
        self.surprise = np.zeros((sessions + horizon, shape[1]))
        self.number = np.zeros((sessions + horizon, shape[1]), dtype=np.int64)
        filings = []
        for column, symbol in enumerate(scenario.symbols):
            any_news, many, how_many, good = stream(scenario.seed, "news", symbol).random((sessions, 4)).T
            count = np.where(many < 0.5, CHORUS + (3 * how_many).astype(np.int64), 1)
            self.articles[:, column] = np.where(any_news < chance, count, 0)
            self.tone[:, column] = np.where(any_news < chance, np.where(good < 0.5, 1.0, -1.0), 0.0)
            made, surprises = _filings(scenario, symbol)
            filings.append(made)
            # a filing of session s is in force from s + 1
            number = np.searchsorted(made.sessions, np.arange(-1, sessions + horizon - 1), side="right") - 1
            self.number[:, column], self.surprise[:, column] = number, surprises[number]
        self.filings = tuple(filings)
        self.shocks = news_shocks(self.articles.astype(np.float64), self.tone)


def _filings(scenario: Scenario, symbol: str) -> tuple[Filings, FloatArray]:
    """Return a symbol's filings up to the end of the last horizon, and the surprise in each, -1..1."""
    random = stream(scenario.seed, "filings", symbol)
    first = int(random.integers(QUARTER)) - PRIOR_FILINGS * QUARTER
    sessions = np.arange(first, scenario.sessions + scenario.horizon_sessions, QUARTER)
    draws = random.random((len(sessions), 8))
    sizes = SURPRISE_LEAST + (1 - SURPRISE_LEAST) * draws[:, :2]
    signs = np.where(draws[:, 2:4] < 0.5, 1.0, -1.0)
    growth, multiple = (sizes * signs).T
    rest = 2 * draws[:, 4:] - 1
    metrics = tuple(
        {
            "revenue_growth": round(USUAL_GROWTH + GROWTH_RANGE * g, 6),
            "pe_ratio": round(USUAL_PE * float(np.exp(PE_RANGE * m)), 6),
            "profit_margin": round(0.08 + 0.06 * other[0], 6),
            "debt_to_equity": round(1.0 + 0.5 * other[1], 6),
            "current_ratio": round(1.3 + 0.4 * other[2], 6),
            "interest_cover": round(4.0 + 2.0 * other[3], 6),
        }
        for g, m, other in zip(growth.tolist(), multiple.tolist(), rest.tolist(), strict=True)
    )
    return Filings(sessions, metrics), -growth * multiple


@dataclass(frozen=True, slots=True)
class _Walk:
    """Log returns and overnight gaps, and the distances of the log close from its averages; burn-in included."""

    returns: FloatArray
    gaps: FloatArray
    fast: FloatArray
    slow: FloatArray


def _walk(scenario: Scenario, planting: Planting, texts: _Texts) -> _Walk:
    """Return the path of the log prices."""
    length, count = BURN_IN + scenario.sessions, len(scenario.symbols)
    day, gap = _noise(scenario, length)
    deviation = np.sqrt(planting.variance[:length, None])
    day, gap = day * deviation, gap * deviation
    base = (planting.drift - 0.5 * planting.variance)[:length]
    stated = _stated(planting, texts, length)
    sides = _sides(scenario, length)
    fast, slow = np.zeros(count), np.zeros(count)
    fasts, slows, returns = (np.empty((length, count)) for _ in range(3))
    for session in range(length):
        planted = planting.fast[session] * fast + planting.slow[session] * slow + stated[session]
        moved = base[session] + sides[session] * planted + day[session] + gap[session]
        fast, slow = FAST_DECAY * (fast + moved), SLOW_DECAY * (slow + moved)
        fasts[session], slows[session], returns[session] = fast, slow, moved
    return _Walk(returns, gap, fasts, slows)


def _sides(scenario: Scenario, length: int) -> FloatArray:
    """Return what the planted parts are multiplied by: 1, or a coin's side where the scenario is shuffled."""
    if not scenario.shuffled:
        return np.ones((length, len(scenario.symbols)))
    coins = [stream(scenario.seed, "shuffled", symbol).random(length) for symbol in scenario.symbols]
    return np.where(np.stack(coins, axis=1) < 0.5, -1.0, 1.0)


def _stated(planting: Planting, texts: _Texts, length: int) -> FloatArray:
    """Return what news and filings plant in each session; before the first there were none."""
    planted = np.zeros((length, texts.shocks.shape[1]))
    sessions = length - BURN_IN
    for age in range(1, NEWS_SESSIONS + 1):
        planted[BURN_IN + age :] += texts.shocks[: sessions - age]
    planted *= planting.news[:length, None]
    planted[BURN_IN:] += planting.filing[BURN_IN:length, None] * texts.surprise[:sessions]
    return planted


def _noise(scenario: Scenario, length: int) -> tuple[FloatArray, FloatArray]:
    """Return the unit noise of the trading day and of the night before it, arrays of shape (length, symbols)."""
    shared = stream(scenario.seed, "market").standard_normal((length, 2))
    own = np.stack(
        [stream(scenario.seed, "own", symbol).standard_normal((length, 2)) for symbol in scenario.symbols], axis=1
    )
    both = np.sqrt(scenario.market_share) * shared[:, None, :] + np.sqrt(1 - scenario.market_share) * own
    return np.sqrt(1 - OVERNIGHT_SHARE) * both[:, :, 0], np.sqrt(OVERNIGHT_SHARE) * both[:, :, 1]


def _extremes(
    scenario: Scenario, log_open: FloatArray, log_close: FloatArray, deviation: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return high and low: extremes of Brownian bridges from open to close, each by its own distribution.

    Notes
    -----
    max = (o + c + √((c - o)² - 2σ²·ln U)) / 2, U uniform (Karatzas and Shreve, Brownian Motion and Stochastic Calculus,
    section 4.3); the minimum by symmetry.
    """
    uniform = np.stack(
        [1 - stream(scenario.seed, "range", s).random((len(log_open), 2)) for s in scenario.symbols], axis=1
    )
    middle, moved = log_open + log_close, log_close - log_open
    reach = np.sqrt(moved[:, :, None] ** 2 - 2 * deviation[:, None, None] ** 2 * np.log(uniform))
    return np.exp((middle + reach[:, :, 0]) / 2), np.exp((middle - reach[:, :, 1]) / 2)


def _volumes(scenario: Scenario, returns: FloatArray, variance: FloatArray) -> FloatArray:
    """Return the shares traded: more where the price moved more, whichever way."""
    columns = []
    for column, symbol in enumerate(scenario.symbols):
        random = stream(scenario.seed, "volume", symbol)
        usual = np.log(random.uniform(*_FIRST_VOLUMES))
        size = np.abs(returns[:, column]) / np.sqrt(variance)
        columns.append(np.exp(usual + 0.25 * random.standard_normal(len(returns)) + 0.3 * (size - 0.8)))
    return np.rint(np.stack(columns, axis=1))


def _news_levels(shocks: FloatArray) -> FloatArray:
    levels = NEWS_SESSIONS * shocks
    for age in range(1, NEWS_SESSIONS):
        levels[age:] += (NEWS_SESSIONS - age) * shocks[:-age]
    return levels / sum(range(1, NEWS_SESSIONS + 1))


def _technical_levels(walk: _Walk, shown: slice) -> FloatArray:
    recent = walk.returns[shown.start - VOLATILITY_SESSIONS + 1 : shown.stop]
    volatility = np.lib.stride_tricks.sliding_window_view(recent, VOLATILITY_SESSIONS, axis=0).std(axis=-1, ddof=1)
    return technical_levels(SLOW_WEIGHT * walk.slow[shown] - walk.fast[shown], volatility)


def _from(planting: Planting, first: int) -> Planting:
    return Planting(
        planting.drift[first:], planting.variance[first:], planting.fast[first:], planting.slow[first:],
        planting.news[first:], planting.filing[first:],
    )  # fmt: skip


def _without_signals(planting: Planting) -> Planting:
    """Return the coefficients that remain in expectation where a coin decides on the side of every planted part."""
    nothing = np.zeros_like(planting.drift)
    return Planting(planting.drift, planting.variance, nothing, nothing, nothing, nothing)
