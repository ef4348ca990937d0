"""What can be seen in a chart: swing levels around the price, candlestick patterns and breakouts at the newest bar.

Called by the technical rules policy and by whoever checks levels and patterns. Every level is an extreme of a bar, every pattern the verdict of a detector.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data_pipeline.rounding import price_figure
from utils.lean_imports import import_without
from utils.schema import BarWindow
from utils.schema.market import FloatArray

talib = import_without("talib", "pandas", "polars")

SWING_BARS = 3
"""Bars on either side that a swing extreme must stand out from."""

LEVEL_BARS = 120
MAX_LEVELS = 3
LEVEL_GAP_ATR = 0.5
"""Levels nearer to each other than this many ATRs are one level; the one nearer the price stands for both."""

FALLBACK_BARS = 20
BREAKOUT_BARS = 20
BREAKOUT, BREAKDOWN = "breakout", "breakdown"
_PATTERN_BARS = 40

PATTERNS: tuple[tuple[str, Callable[..., np.ndarray], int], ...] = (
    ("bullish_engulfing", talib.CDLENGULFING, 1),
    ("bearish_engulfing", talib.CDLENGULFING, -1),
    ("hammer", talib.CDLHAMMER, 1),
    ("shooting_star", talib.CDLSHOOTINGSTAR, -1),
    ("morning_star", talib.CDLMORNINGSTAR, 1),
    ("evening_star", talib.CDLEVENINGSTAR, -1),
)
"""Name, TA-Lib's detector, and the sign of its answer at the newest bar."""

_FUNCTIONS = tuple(dict.fromkeys(function for _, function, _ in PATTERNS))


def swing_levels(bars: BarWindow, price: float, atr: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return up to three supports at or below the price and three resistances at or above it, nearest first.

    Notes
    -----
    A swing low is the lowest of `SWING_BARS` bars before and after it, within the last `LEVEL_BARS`; where no swing lies
    on a side of the price, the extreme of the last `FALLBACK_BARS` stands in.
    """
    low, high = bars.low[-LEVEL_BARS:], bars.high[-LEVEL_BARS:]
    span = 2 * SWING_BARS + 1
    lows = low[SWING_BARS:-SWING_BARS]
    lows = lows[lows == talib.MIN(low, span)[span - 1 :]]
    highs = high[SWING_BARS:-SWING_BARS]
    highs = highs[highs == talib.MAX(high, span)[span - 1 :]]
    gap = LEVEL_GAP_ATR * atr
    supports = _nearest(lows, price, gap, below=True) or (price_figure(min(low[-FALLBACK_BARS:].min(), price)),)
    resistances = _nearest(highs, price, gap, below=False) or (price_figure(max(high[-FALLBACK_BARS:].max(), price)),)
    return supports, resistances


def find_patterns(bars: BarWindow) -> tuple[str, ...]:
    """Return the names of the patterns that end at the newest bar, in the order of `PATTERNS`, then breakouts."""
    recent = [values[-_PATTERN_BARS:] for values in (bars.open, bars.high, bars.low, bars.close)]
    answers = {function: function(*recent)[-1] for function in _FUNCTIONS}
    found = [name for name, function, sign in PATTERNS if answers[function] * sign > 0]
    if bars.close[-1] > bars.high[-BREAKOUT_BARS - 1 : -1].max():
        found.append(BREAKOUT)
    elif bars.close[-1] < bars.low[-BREAKOUT_BARS - 1 : -1].min():
        found.append(BREAKDOWN)
    return tuple(found)


def _nearest(swings: FloatArray, price: float, gap: float, *, below: bool) -> tuple[float, ...]:
    """Return the swings on one side of the price, nearest first, each at least `gap` from the one before."""
    levels: list[float] = []
    side = swings[swings <= price] if below else swings[swings >= price]
    for value in sorted(side.tolist(), reverse=below):
        if not levels or abs(value - levels[-1]) > gap:
            levels.append(price_figure(value))
            if len(levels) == MAX_LEVELS:
                break
    return tuple(levels)
