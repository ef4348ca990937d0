"""Technical indicators of the newest bar by TA-Lib, with what is undefined left out in place of TA-Lib's zero.

Called by the technical rules policy and by whoever recomputes what an agent states. Parameters are the usual ones and stand here once: RSI, ATR, MFI, ADX 14 (Wilder,
New Concepts in Technical Trading Systems, 1978; MFI after Quong and Soudack, 1989); MACD 12/26/9 (Appel); slow
stochastic 14/3/3 (Lane); Bollinger bands 20/2 with the population's standard deviation (Bollinger).
"""

from __future__ import annotations

import math

from data_pipeline.rounding import figure, price_figure
from utils.lean_imports import import_without
from utils.schema import BarWindow

talib = import_without("talib", "pandas", "polars")

MIN_BARS = 50
LONG_BARS = 200
VOLUME_BARS = 20
_RECENT = 40
"""Bars that cover every indicator whose value depends on its window alone."""

UNITS = {
    "rsi_14": "index",
    "macd": "USD",
    "macd_signal": "USD",
    "sma_20": "USD",
    "sma_50": "USD",
    "sma_200": "USD",
    "ema_12": "USD",
    "ema_26": "USD",
    "stoch_k": "index",
    "stoch_d": "index",
    "bb_upper": "USD",
    "bb_lower": "USD",
    "atr_14": "USD",
    "obv": "shares",
    "mfi_14": "index",
    "adx_14": "index",
}
"""Every indicator there is, with its unit; ``index`` runs from 0 to 100."""

WINDOWS = {
    "rsi_14": 15,
    "macd": 26,
    "macd_signal": 34,
    "sma_20": 20,
    "sma_50": 50,
    "sma_200": 200,
    "ema_12": 12,
    "ema_26": 26,
    "stoch_k": 16,
    "stoch_d": 18,
    "bb_upper": 20,
    "bb_lower": 20,
    "atr_14": 15,
    "obv": 2,
    "mfi_14": 15,
    "adx_14": 28,
}
"""Fewest bars on which an indicator is defined."""


def compute_indicators(bars: BarWindow) -> dict[str, float]:
    """Return the indicators of the newest bar, rounded, in the order of `UNITS`.

    Parameters
    ----------
    bars : BarWindow
        At least `MIN_BARS`; recursive averages use all of them, so a longer window moves them slightly.

    Returns
    -------
    dict
        Without sma_200 below 200 bars, and without an oscillator whose window knows no movement or no volume: TA-Lib
        answers 0 there, which would read as deeply oversold.
    """
    high, low, close, volume = bars.high, bars.low, bars.close, bars.volume
    macd, macd_signal, _ = talib.MACD(close, 12, 26, 9)
    upper, _, lower = talib.BBANDS(close[-20:], 20, 2.0, 2.0)
    stoch_k, stoch_d = talib.STOCH(high[-_RECENT:], low[-_RECENT:], close[-_RECENT:], 14, 3, 0, 3, 0)
    values = {
        "rsi_14": _clean_oscillator(talib.RSI(close, 14)[-1], fell=close[-1] < close[0]),
        "macd": figure(macd[-1]),
        "macd_signal": figure(macd_signal[-1]),
        "sma_20": price_figure(close[-20:].sum() / 20),
        "sma_50": price_figure(close[-50:].sum() / 50),
        "sma_200": price_figure(close[-200:].sum() / 200) if len(close) >= LONG_BARS else math.nan,
        "ema_12": price_figure(talib.EMA(close, 12)[-1]),
        "ema_26": price_figure(talib.EMA(close, 26)[-1]),
        "stoch_k": math.nan,
        "stoch_d": math.nan,
        "bb_upper": price_figure(upper[-1]),
        "bb_lower": price_figure(lower[-1]),
        "atr_14": price_figure(talib.ATR(high, low, close, 14)[-1]),
        "obv": figure(talib.OBV(close, volume)[-1]),
        "mfi_14": math.nan,
        "adx_14": _bounded(talib.ADX(high, low, close, 14)[-1]),
    }
    if high[-18:].max() > low[-18:].min():
        values["stoch_k"], values["stoch_d"] = _bounded(stoch_k[-1]), _bounded(stoch_d[-1])
    flow = talib.MFI(high[-_RECENT:], low[-_RECENT:], close[-_RECENT:], volume[-_RECENT:], 14)[-1]
    fell = high[-1] + low[-1] + close[-1] < high[-15] + low[-15] + close[-15]
    if volume[-14:].sum() > 0:
        values["mfi_14"] = _clean_oscillator(flow, fell=fell)
    return {name: value for name, value in values.items() if math.isfinite(value)}


def participation(bars: BarWindow) -> float | None:
    """Return the newest volume over the mean of the last `VOLUME_BARS` including it, None where nothing was traded."""
    recent = bars.volume[-VOLUME_BARS:]
    usual = float(recent.sum()) / len(recent) if len(recent) else 0.0
    return float(recent[-1]) / usual if usual > 0 else None


def _bounded(value: float) -> float:
    """Return an index rounded into 0..100: running sums leave the range by a rounding error."""
    return figure(min(max(value, 0.0), 100.0))


def _clean_oscillator(value: float, *, fell: bool) -> float:
    """Return an oscillator, NaN where its 0 means that nothing moved rather than that everything fell."""
    return math.nan if value <= 0.0 and not fell else _bounded(value)
