"""The report of a comparison as one HTML page that needs nothing beside it. Formats figures, computes none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from evaluation.report.charts import Curve, IntervalLine, interval_chart, reliability_chart
from evaluation.report.comparison_report import AgentRow, ComparisonReport, PairRow
from evaluation.report.comparison_table import bounds, number, percent

TEMPLATE = Path(__file__).with_name("comparison.html.j2")

SERIES = 8
"""Colours of the page; a ninth arm begins again with the first."""

SIGNIFICANT = 0.05


def render_page(report: ComparisonReport) -> str:
    """Return the page as HTML text; whatever the report holds is escaped."""
    from jinja2 import Environment, StrictUndefined  # only reports need it

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, percent=percent, bounds=bounds)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    arms = list(dict.fromkeys(row.arm for row in report.rows))
    colours = {arm: place % SERIES for place, arm in enumerate(arms)}
    return template.render(
        report=report,
        arms=arms,
        colours=colours,
        agents=list(dict.fromkeys(row.agent for row in report.rows)),
        reward_chart=_differences(report.pairs, "reward"),
        accuracy_chart=_differences(report.pairs, "accuracy"),
        baseline_chart=_differences(report.baseline_pairs, "reward", against=True),
        reliability=_reliability(report, colours),
        timing={(row.arm, row.agent): row for row in report.timing},
        protocol=json.dumps(report.protocol, indent=2, ensure_ascii=False),
    )


def _differences(pairs: Sequence[PairRow], what: str, *, against: bool = False) -> str:
    reward = what == "reward"
    lines = []
    for pair in pairs:
        difference = pair.figures.reward if reward else pair.figures.accuracy
        strong = difference.p_holm is not None and difference.p_holm < SIGNIFICANT
        lines.append(IntervalLine(f"{pair.arm}, {pair.reference if against else pair.agent}", difference.value, strong))
    if reward:
        return interval_chart(lines, "difference of mean reward a decision")
    return interval_chart(lines, "difference of accuracy, percentage points", 1, 100)


def _reliability(report: ComparisonReport, colours: dict[str, int]) -> list[tuple[str, str]]:
    """Return a title and a chart for each agent, and one for calibrated probabilities where an arm states them."""
    by_agent: dict[str, list[AgentRow]] = {}
    for row in report.rows:
        by_agent.setdefault(row.agent, []).append(row)
    charts = []
    for agent, rows in by_agent.items():
        convictions = [Curve(row.arm, row.figures.conviction.bins, colours[row.arm]) for row in rows]
        if any(curve.bins for curve in convictions):
            charts.append((f"{agent}: conviction", reliability_chart(convictions, f"{agent}: conviction")))
        calibrated = [
            Curve(row.arm, row.figures.p_correct.bins, colours[row.arm])
            for row in rows
            if row.figures.p_correct is not None
        ]
        if calibrated:
            title = f"{agent}: calibrated probability"
            charts.append((title, reliability_chart(calibrated, title)))
    return charts
