"""Indicator values as mistaken programs compute them: from bars of an earlier day, over another window, unsmoothed.

Only fault operators use it: the right values stand in the outputs that they damage and are not computed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from utils.lean_imports import import_without
from utils.schema import BarWindow

talib = import_without("talib", "pandas", "polars")

_Bars = Mapping[str, object]
_Compute = Callable[[object, object, object, object, int], object]

_WINDOWS: dict[str, tuple[int, ...]] = {
    "rsi_14": (14, 7, 9, 21, 28),
    "sma_20": (20, 10, 50),
    "sma_50": (50, 20, 100),
    "sma_200": (200, 100, 150),
    "ema_12": (12, 26, 50),
    "ema_26": (26, 12, 50),
    "atr_14": (14, 5, 7, 30),
    "mfi_14": (14, 7, 28),
    "adx_14": (14, 7, 28),
    "bb_upper": (20, 10, 50),
    "bb_lower": (20, 10, 50),
    "stoch_k": (14, 5, 21),
    "stoch_d": (14, 5, 21),
    "macd": (12, 5, 19),
    "macd_signal": (12, 5, 19),
    "obv": (0,),
}
"""The right window first, then those that are taken by mistake."""

_SLOW_OF_FAST = {12: 26, 5: 35, 19: 39}

_COMPUTE: dict[str, _Compute] = {
    "rsi_14": lambda h, lo, c, v, n: talib.RSI(c, n),
    "sma_20": lambda h, lo, c, v, n: talib.SMA(c, n),
    "sma_50": lambda h, lo, c, v, n: talib.SMA(c, n),
    "sma_200": lambda h, lo, c, v, n: talib.SMA(c, n),
    "ema_12": lambda h, lo, c, v, n: talib.EMA(c, n),
    "ema_26": lambda h, lo, c, v, n: talib.EMA(c, n),
    "atr_14": lambda h, lo, c, v, n: talib.ATR(h, lo, c, n),
    "mfi_14": lambda h, lo, c, v, n: talib.MFI(h, lo, c, v, n),
    "adx_14": lambda h, lo, c, v, n: talib.ADX(h, lo, c, n),
    "bb_upper": lambda h, lo, c, v, n: talib.BBANDS(c, n, 2.0, 2.0)[0],
    "bb_lower": lambda h, lo, c, v, n: talib.BBANDS(c, n, 2.0, 2.0)[2],
    "stoch_k": lambda h, lo, c, v, n: talib.STOCH(h, lo, c, n, 3, 0, 3, 0)[0],
    "stoch_d": lambda h, lo, c, v, n: talib.STOCH(h, lo, c, n, 3, 0, 3, 0)[1],
    "macd": lambda h, lo, c, v, n: talib.MACD(c, n, _SLOW_OF_FAST[n], 9)[0],
    "macd_signal": lambda h, lo, c, v, n: talib.MACD(c, n, _SLOW_OF_FAST[n], 9)[1],
    "obv": lambda h, lo, c, v, n: talib.OBV(c, v),
}


def indicator_value(bars: BarWindow, name: str, bars_ago: int = 0, window: int | None = None) -> float | None:
    """Return an indicator `bars_ago` bars before the newest one, None where it is unknown or undefined.

    Parameters
    ----------
    bars : BarWindow
    name : str
        One of the names of the technical output's indicators.
    window : int, optional
        Bars it looks back; its own by default.
    """
    if name not in _COMPUTE:
        return None
    end = len(bars) - bars_ago
    if end < 60:
        return None
    high, low, close, volume = (values[:end] for values in (bars.high, bars.low, bars.close, bars.volume))
    series = _COMPUTE[name](high, low, close, volume, window or _WINDOWS[name][0])
    value = float(series[-1])  # type: ignore[index]
    return value if math.isfinite(value) else None


def wrong_windows(name: str) -> tuple[int, ...]:
    """Return the windows that are taken for an indicator by mistake; none where it has no window."""
    return _WINDOWS.get(name, ())[1:]
