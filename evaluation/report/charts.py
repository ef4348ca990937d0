"""Charts of a report as inline SVG: intervals side by side, and stated against observed frequencies.

Colours are CSS classes of the page, so that a chart follows its light or dark theme; nothing outside the page is referred to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from evaluation.comparison import ReliabilityBin
from evaluation.decision_metrics import Figure

ROW_PX = 26
LABEL_PX = 230
PLOT_PX = 430
VALUE_PX = 200
_EDGE_PX = 14

SIDE_PX = 240
_MARGIN_PX = 34
_TICKS = 5


@dataclass(frozen=True, slots=True)
class IntervalLine:
    """One line of an interval chart; `strong` where it is set apart from 0 after adjustment."""

    label: str
    figure: Figure
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """One reliability curve; `series` is the place of its colour."""

    label: str
    bins: tuple[ReliabilityBin, ...]
    series: int


def interval_chart(lines: Sequence[IntervalLine], unit: str, digits: int = 3, scale: float = 1.0) -> str:
    """Return a chart of estimates with their intervals around a line at 0; empty without anything to show.

    A figure with a lower bound alone is drawn from that bound to the estimate.

    Parameters
    ----------
    lines : sequence of IntervalLine
    unit : str
        Written below the axis.
    digits : int
        Of the numbers beside the lines.
    scale : float
        Multiplies what is shown, for example 100 for percentage points.
    """
    shown = [line for line in lines if line.figure.value is not None]
    if not shown:
        return ""
    ends = [
        scale * x for line in shown for x in (line.figure.value, line.figure.low, line.figure.high) if x is not None
    ]
    low, high = min(0.0, *ends), max(0.0, *ends)
    step = _step(high - low)
    low, high = step * math.floor(low / step), step * math.ceil(high / step)
    if high <= low:
        low, high = low - step, high + step

    def x(value: float) -> float:
        return LABEL_PX + _EDGE_PX + (PLOT_PX - 2 * _EDGE_PX) * (value - low) / (high - low)

    height = ROW_PX * len(shown) + 44
    width = LABEL_PX + PLOT_PX + VALUE_PX
    bottom = ROW_PX * len(shown) + 6
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(unit)}">'
    ]
    for tick in _ticks(low, high, step):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{_short(tick)}</text>'
        )
    parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="4" y2="{bottom}"/>')
    for place, line in enumerate(shown):
        y = 6 + ROW_PX * (place + 0.5)
        figure = line.figure
        value = scale * (figure.value or 0.0)
        kind = "strong" if line.strong else "weak"
        text = f"{value:+.{digits}f}"
        parts.append(f'<text class="label" x="0" y="{y + 4:.1f}">{escape(line.label)}</text>')
        if figure.low is not None:
            left = scale * figure.low
            right = value if figure.high is None else scale * figure.high
            parts.append(
                f'<line class="interval {kind}" x1="{x(left):.1f}" x2="{x(right):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            text += f", ≥ {left:+.{digits}f}" if figure.high is None else f" [{left:+.{digits}f}, {right:+.{digits}f}]"
        parts.append(f'<circle class="point {kind}" cx="{x(value):.1f}" cy="{y:.1f}" r="4.5"/>')
        parts.append(f'<text class="value" x="{LABEL_PX + PLOT_PX + 8}" y="{y + 4:.1f}">{text}</text>')
    parts.append(
        f'<text class="axis" x="{LABEL_PX + PLOT_PX / 2:.0f}" y="{height - 6}" text-anchor="middle">{escape(unit)}</text></svg>'
    )
    return "".join(parts)


def reliability_chart(curves: Sequence[Curve], title: str) -> str:
    """Return stated (across) against observed (up) frequencies, both 0..1; a dot's area grows with its calls."""
    size = SIDE_PX + _MARGIN_PX + 8

    def x(value: float) -> float:
        return _MARGIN_PX + SIDE_PX * value

    def y(value: float) -> float:
        return 6 + SIDE_PX * (1 - value)

    parts = [
        f'<svg class="chart" viewBox="0 0 {size} {size}" width="{size}" height="{size}" role="img" '
        f'aria-label="{escape(title)}">'
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{y(0):.1f}" y2="{y(1):.1f}"/>')
        parts.append(f'<line class="grid" x1="{x(0):.1f}" x2="{x(1):.1f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{y(0) + 14:.1f}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text class="tick" x="{x(0) - 5:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<line class="zero dashed" x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}"/>')
    for curve in curves:
        if not curve.bins:
            continue
        total = sum(item.count for item in curve.bins)
        points = " ".join(f"{x(item.stated):.1f},{y(item.observed):.1f}" for item in curve.bins)
        parts.append(f'<polyline class="curve s{curve.series}" points="{points}"/>')
        for item in curve.bins:
            radius = 2 + 7 * math.sqrt(item.count / total)
            parts.append(
                f'<circle class="dot s{curve.series}" cx="{x(item.stated):.1f}" cy="{y(item.observed):.1f}" r="{radius:.1f}">'
                f"<title>{escape(curve.label)}: {item.count:,} calls, stated {item.stated:.2f}, came true {item.observed:.2f}"
                "</title></circle>"
            )
    parts.append(f'<text class="axis" x="{x(0.5):.0f}" y="{size - 4}" text-anchor="middle">stated</text></svg>')
    return "".join(parts)


def _step(span: float) -> float:
    """Return a round distance of ticks: 1, 2 or 5 times a power of ten."""
    if span <= 0:
        return 1.0
    rough = span / _TICKS
    power = 10 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _ticks(low: float, high: float, step: float) -> list[float]:
    return [low + step * number for number in range(round((high - low) / step) + 1)]


def _short(value: float) -> str:
    return f"{0.0 if abs(value) < 1e-12 else value:.6g}"
