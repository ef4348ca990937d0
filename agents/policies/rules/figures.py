"""How rules policies write figures: texts say what the evidence says, evidence says where a figure comes from.

Used by the rules policies only; nothing here knows of markets.
"""

from __future__ import annotations

from typing import Any


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
