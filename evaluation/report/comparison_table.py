"""The report of a comparison as a compact table for the terminal. Formats figures, computes none."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.comparison import CallFigures
from evaluation.decision_metrics import Figure
from evaluation.report.comparison_report import ComparisonReport

NOT_KNOWN = "-"


def number(value: float | None, digits: int = 4, *, signed: bool = False) -> str:
    """Return a number as text, a dash where it is not known."""
    if value is None:
        return NOT_KNOWN
    return f"{value:{'+' if signed else ''}.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as text, a dash where it is not known."""
    return NOT_KNOWN if value is None else f"{value:.{digits}%}"


def bounds(figure: Figure, digits: int = 4, *, share: bool = False, signed: bool = True) -> str:
    """Return the interval of a figure as text, in percent for a share, empty where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    if share:
        return f"[{100 * figure.low:.1f}, {100 * figure.high:.1f}]"
    return f"[{number(figure.low, digits, signed=signed)}, {number(figure.high, digits, signed=signed)}]"


def render_table(report: ComparisonReport) -> str:
    """Return the table with the paired differences and the warnings below it."""
    head = ("arm", "agent", "abstain", "reward", "net bp", "acc rel", "MCC rel", "acc", "MCC", "Brier", "ECE")
    lines = [_cells(row.arm, row.agent, row.figures) for row in report.rows]
    lines += [_cells("baseline", row.name, row.figures) for row in report.baselines]
    text = [
        "",
        f"{report.kind_of_result}: {report.decisions:,} decisions of {report.first_session} to {report.last_session}, "
        f"{report.sessions} sessions, {report.unsettled:,} without an outcome",
        *_table([head, *lines]),
    ]
    if report.pairs:
        shown = [("difference", "agent", "reward", "95 % interval", "p Holm", "accuracy", "95 % interval", "p Holm")]
        for pair in report.pairs:
            reward, accuracy = pair.figures.reward, pair.figures.accuracy
            shown.append(
                (
                    f"{pair.arm} - {pair.reference}", pair.agent,
                    number(reward.value.value, signed=True), bounds(reward.value), number(reward.p_holm, 3),
                    number(accuracy.value.value, signed=True), bounds(accuracy.value), number(accuracy.p_holm, 3),
                )
            )  # fmt: skip
        text += ["", *_table(shown)]
    text += ["", *(f"! {warning}" for warning in report.warnings)]
    return "\n".join(text) + "\n"


def _cells(arm: str, agent: str, figures: CallFigures) -> tuple[str, ...]:
    net = figures.net_return.value
    return (
        arm, agent, percent(figures.abstention_share), number(figures.reward.value, signed=True),
        number(None if net is None else net * 1e4, 1, signed=True),
        percent(figures.relative.accuracy.value), number(figures.relative.mcc.value, 3, signed=True),
        percent(figures.plain.accuracy.value), number(figures.plain.mcc.value, 3, signed=True),
        number(figures.conviction.brier.value, 3), number(figures.conviction.expected_calibration_error, 3),
    )  # fmt: skip


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
