"""How derived figures are rounded, once for those who state them and those who check them.

Used by the market mathematics of this package, the rules policies and the detectors; nothing here knows of markets.
"""

from __future__ import annotations


def figure(value: float) -> float:
    """Return a figure to six decimals, never as -0."""
    return round(float(value), 6) + 0.0


def price_figure(value: float) -> float:
    """Return a price to four decimals, below one dollar to six significant digits. Monotone: order survives rounding."""
    return round(float(value), 4) if value >= 1 else float(f"{value:.6g}")


def clip(value: float, low: float = -1.0, high: float = 1.0) -> float:
    """Return the value moved into [low, high]."""
    return low if value < low else (high if value > high else value)
