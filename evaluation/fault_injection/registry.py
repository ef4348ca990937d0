"""The one table of fault operators by category, and what no code can decide.

The harness draws from it; a new operator is listed at the end of its agent's module and thereby here.
"""

from __future__ import annotations

from evaluation.fault_injection import (
    fundamental_figures,
    fundamental_valuation,
    general_analysis,
    general_claims,
    general_evidence,
    general_judgement,
    general_schema,
    news_events,
    news_sentiment,
    strategist,
    technical_chart,
    technical_indicators,
)
from evaluation.fault_injection.model import Operator


def _by_category(*groups: tuple[Operator, ...]) -> dict[str, tuple[Operator, ...]]:
    table: dict[str, tuple[Operator, ...]] = {}
    for operator in (operator for group in groups for operator in group):
        table[operator.category] = (*table.get(operator.category, ()), operator)
    return table


OPERATORS = _by_category(
    general_evidence.OPERATORS,
    general_claims.OPERATORS,
    general_judgement.OPERATORS,
    general_analysis.OPERATORS,
    general_schema.OPERATORS,
    news_sentiment.OPERATORS,
    news_events.OPERATORS,
    technical_indicators.OPERATORS,
    technical_chart.OPERATORS,
    fundamental_figures.OPERATORS,
    fundamental_valuation.OPERATORS,
    strategist.OPERATORS,
)
"""Operators by category, in the order of the taxonomy's agents."""

CATEGORIES = tuple(OPERATORS)
"""The categories that code decides, wholly or in a stated part."""

JUDGE_ONLY = {"logical_fallacy": "whether a conclusion follows from its premises"}
"""Categories that only a judge decides, with what it decides: measured with a real model or not at all."""

JUDGE_PARTS = {
    "hallucination": "claims in prose that cite nothing",
    "incomplete_analysis": "a view that leaves out what matters",
    "contradictory": "statements of the reasoning against each other",
    "unsupported_claim": "claims in words",
    "wrong_recommendation": "a call that the evidence does not carry",
    "wrong_event_impact": "what an event means for the company",
    "pattern_misidentification": "patterns without a detector",
    "financial_ratio_misinterpretation": "what a ratio means in its business",
}
"""Of categories that code and judges share, the part that is the judges'."""

STRUCTURAL = frozenset({"missing_field", "invalid_value", "formatting_error"})
"""Faults of form: an output that does not parse hides what else is wrong, so that they are never planted beside another."""
