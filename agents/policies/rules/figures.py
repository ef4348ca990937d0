"""How rules policies round and write figures, so that outputs are stable as JSON and texts say what the evidence says.

Used by the rules policies only; nothing here knows of markets.
"""

from __future__ import annotations

from typing import Any


def figure(value: float) -> float:
    """Return a figure to six decimals, never as -0."""
    return round(float(value), 6) + 0.0


def price_figure(value: float) -> float:
    """Return a price to four decimals, below one dollar to six significant digits. Monotone: order survives rounding."""
    return round(float(value), 4) if value >= 1 else float(f"{value:.6g}")


def clip(value: float, low: float = -1.0, high: float = 1.0) -> float:
    """Return the value moved into [low, high]."""
    return low if value < low else (high if value > high else value)


def written(value: float) -> str:
    """Return a figure as text for people, exact to one part in ten thousand."""
    return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"


def bar_evidence(name: str, kind: str, value: float, unit: str, at: Any) -> dict[str, Any]:
    """Return the fields of an `Evidence` that rests on daily bars up to `at`, the close of the newest one."""
    return {
        "id": name,
        "kind": kind,
        "value": value,
        "unit": unit,
        "event_time": at,
        "available_at": at,
        "source": "bars",
        "bar_interval": "1d",
    }
