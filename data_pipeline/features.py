"""What the regime is decided on: volatility rank, trend strength and news impact, all free of scale.

Pure functions of a window of bars and of the news before t; the as-of store calls them for every snapshot. They look at
no more than `RETURNS_USED` returns, so that a longer history or another look-back never changes their value.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np

from data_pipeline.sentiment import score_text
from utils.schema import BarWindow, NewsItem, RegimeInputs
from utils.schema.market import FloatArray

HALF_LIFE_BARS = 10
RANK_BARS = 252
MIN_RANK_BARS = 60
TREND_BARS = 20
BASELINE_DAYS = 20

WARM_UP_RETURNS = 47
"""Returns before the oldest ranked one: what lies further back has lost 96 % of its weight in the EWM variance."""

RETURNS_USED = RANK_BARS + WARM_UP_RETURNS

MIN_COUNT_SD = 1.0
"""Floor of the standard deviation of daily article counts: less than one article is no deviation."""

_DAY = timedelta(days=1)
_GROWTH = 2.0 ** (np.arange(RETURNS_USED) / HALF_LIFE_BARS)
_WEIGHT_SUMS = np.cumsum(_GROWTH)


@dataclass(frozen=True, slots=True)
class NewsActivity:
    """The news of the 24 hours before t against the 20 days before those.

    Attributes
    ----------
    count : int
        Articles in (t - 24 h, t].
    baseline : tuple of int
        Articles in each of the 20 periods of 24 h before, newest first.
    mean_sentiment : float
        Of the `count` articles, -1..1; 0 where there is none.
    """

    count: int
    baseline: tuple[int, ...]
    mean_sentiment: float


def news_activity(items: Sequence[NewsItem], times: Sequence[datetime], as_of: datetime) -> NewsActivity | None:
    """Return the activity at `as_of`, None where the source has not been seen for 20 days and a day.

    Parameters
    ----------
    items, times : sequence
        All news of a symbol in order of `available_at`, and those times; later ones are not looked at.
    as_of : datetime
        t, UTC.
    """
    if not times or times[0] > as_of - (BASELINE_DAYS + 1) * _DAY:
        return None
    edge = as_of
    newer = bisect_right(times, edge)
    positions = [newer]
    for _ in range(BASELINE_DAYS + 1):
        edge -= _DAY
        newer = bisect_right(times, edge, 0, newer)
        positions.append(newer)
    counts = [newer - older for newer, older in pairwise(positions)]
    scores = [score_text(item.text) for item in items[positions[1] : positions[0]]]
    return NewsActivity(counts[0], tuple(counts[1:]), sum(scores) / len(scores) if scores else 0.0)


def regime_inputs(bars: BarWindow, news: NewsActivity | None = None) -> RegimeInputs:
    """Return the inputs of the regime at the newest bar.

    Parameters
    ----------
    bars : BarWindow
        Split-adjusted; the last `RETURNS_USED` + 1 closes count.
    news : NewsActivity, optional
        None where there is no news source: the impact is then 0 and flagged.

    Returns
    -------
    RegimeInputs
        With the name of each input that holds its default for want of data in `flags`.
    """
    returns = np.diff(np.log(bars.close[-(RETURNS_USED + 1) :]))
    flags = []
    volatility = volatility_rank(returns)
    if volatility is None:
        volatility = 0.5
        flags.append("volatility")
    trend = trend_and_volatility(returns)
    if trend is None:
        trend = (0.0, 0.0)
        flags.append("trend_strength")
    if news is None:
        flags.append("news_impact")
    impact = 0.0 if news is None else news_impact(news)
    return RegimeInputs(volatility, trend[0], impact, trend[1], tuple(flags))


def volatility_rank(returns: FloatArray) -> float | None:
    """Return the percentile rank of the newest EWM volatility among the last 252, None for fewer than 60 bars.

    Notes
    -----
    σ²_i = Σ_j w^(i-j)·r_j² / Σ_j w^(i-j), half-life 10 bars and mean zero (J.P. Morgan, RiskMetrics, 1996), the weights
    normalised over the returns there are. The rank is the mid-rank, (below + ½·equal) / n, so that a price that never
    moved ranks in the middle and not on top. Multiplying j's weight by 2^(j/10) turns the recursion into one cumulative
    sum; over 299 returns the factor reaches 2^30, far from the limits of a double.
    """
    used = returns[-RETURNS_USED:]
    if len(used) + 1 < MIN_RANK_BARS:
        return None
    size = len(used)
    variance = np.cumsum(used * used * _GROWTH[:size]) / _WEIGHT_SUMS[:size]
    ranked = variance[-RANK_BARS:]
    newest = ranked[-1]
    below = np.count_nonzero(ranked < newest)
    equal = np.count_nonzero(ranked == newest)
    return float((below + 0.5 * equal) / len(ranked))


def trend_and_volatility(returns: FloatArray) -> tuple[float, float] | None:
    """Return tanh(τ/2), τ = √20·mean/sd of the last 20 log returns, and that sd; None for fewer returns.

    sd has 19 degrees of freedom, so τ is the t statistic of the mean. Without any deviation τ is infinite with the
    mean's sign, and 0 where the price stood still.
    """
    if len(returns) < TREND_BARS:
        return None
    recent = returns[-TREND_BARS:].tolist()
    mean = sum(recent) / TREND_BARS
    deviation = math.sqrt(sum((value - mean) ** 2 for value in recent) / (TREND_BARS - 1))
    if deviation == 0.0:
        return (math.copysign(1.0, mean) if mean else 0.0), 0.0
    return math.tanh(0.5 * math.sqrt(TREND_BARS) * mean / deviation), deviation


def news_impact(news: NewsActivity) -> float:
    """Return min(1, 2·(1 - e^(-max(0, z)/2))·|s|), z the 24 h count standardised over the 20 days before, s the mean sentiment.

    The day itself is not part of its own yardstick, and the yardstick's sd is at least `MIN_COUNT_SD`.
    """
    days = len(news.baseline)
    mean = sum(news.baseline) / days
    deviation = math.sqrt(sum((count - mean) ** 2 for count in news.baseline) / (days - 1))
    z = (news.count - mean) / max(deviation, MIN_COUNT_SD)
    return min(1.0, 2.0 * (1.0 - math.exp(-max(0.0, z) / 2.0)) * abs(news.mean_sentiment))
