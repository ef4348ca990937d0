"""A stored verdict of the gate as charts: every criterion as its distance from what it must exceed, so that 0 is the line.

Called for model cards, with the verdict as the registry keeps it. Formats figures, computes none but those distances.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.decision_metrics import Figure
from evaluation.report.charts import IntervalLine, interval_chart

BASIS_POINTS = 1e4
PERCENT = 100.0


def verdict_charts(gate: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return title and SVG of each chart that a verdict has figures for.

    Parameters
    ----------
    gate : mapping
        `GateVerdict.to_dict`, of this version or an earlier one: what it lacks is left out.
    """
    settings = gate.get("settings") or {}
    level = settings.get("level")
    bound = "lower bound" if level is None else f"{level:.2%} lower bound"
    charts = [
        (
            f"Paired reward, challenger minus champion: estimate and {bound}",
            interval_chart(_reward_lines(gate), "difference of mean reward a decision; the bound must exceed 0"),
        ),
        (
            f"Net return, challenger minus champion, above the margin: estimate and {bound}",
            interval_chart(
                _return_lines(gate, settings), "basis points a decision above the margin; the bound must exceed 0", 1,
                BASIS_POINTS,
            ),
        ),
        (
            "Outputs against their floors",
            interval_chart(_floor_lines(gate, settings), "percentage points above the floor; must not be below 0", 1, PERCENT),
        ),
    ]  # fmt: skip
    return [(title, svg) for title, svg in charts if svg]


def _line(label: str, mean: float | None, bound: float | None, shift: float = 0.0) -> IntervalLine:
    low = None if bound is None else bound + shift
    value = None if mean is None else mean + shift
    return IntervalLine(label, Figure(value, low, None), low is not None and low > 0)


def _reward_lines(gate: Mapping[str, Any]) -> list[IntervalLine]:
    reward = gate.get("reward") or {}
    lines = [_line("reward", reward.get("mean"), reward.get("lower_bound"))]
    lines += [
        _line(f"{item['regime']}, {item['sessions']} sessions", item.get("mean_difference"), item.get("lower_bound"))
        for item in gate.get("by_regime") or ()
    ]
    return lines


def _return_lines(gate: Mapping[str, Any], settings: Mapping[str, Any]) -> list[IntervalLine]:
    net = gate.get("net_return") or {}
    return [_line("net return", net.get("mean"), net.get("lower_bound"), settings.get("return_margin", 0.0))]


def _floor_lines(gate: Mapping[str, Any], settings: Mapping[str, Any]) -> list[IntervalLine]:
    champion, least = gate.get("champion_activity"), settings.get("min_activity")
    activity = None if champion is None or least is None else champion * least
    floors = (
        ("valid outputs", gate.get("validity"), settings.get("min_validity")),
        ("grounded outputs", gate.get("grounding"), settings.get("min_grounding")),
        ("calls that take a side", gate.get("challenger_activity"), activity),
    )
    return [
        IntervalLine(f"{label}, floor {floor:.1%}", Figure(share - floor), share >= floor)
        for label, share, floor in floors
        if share is not None and floor is not None
    ]
