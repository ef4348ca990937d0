"""What an error costs in the local judge's grade: which dimension of the rubric it belongs to, and how much.

Read by `LocalJudge`. Every category that outputs of an agent can have stands in the table once; nothing is looked for here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from evaluation.error_catalogue import Severity
from evaluation.error_taxonomy import ErrorInstance

COSTS: Mapping[Severity, float] = {
    Severity.FATAL: 100.0,
    Severity.HIGH: 40.0,
    Severity.MEDIUM: 20.0,
    Severity.LOW: 8.0,
    Severity.NEGLIGIBLE: 1.0,
}
"""Points that a finding takes off its dimension, never below 0. A fatal one takes all; a high one alone drops sound work
into the rubric's band 40-69 and two into 0-39, which is how the taxonomy reads one and two of them."""

FATAL_CAP = 40.0
"""Highest total of an output with a fatal error, where the shipped rubrics' mapping begins to call work poor."""

_KEY_EVENTS, _IMPACT, _SENTIMENT, _NEWS_TEXT = (
    "Key Events Identification", "Price Impact Assessment", "Sentiment Accuracy", "Reasoning Quality",
)  # fmt: skip
_INDICATORS, _SIGNAL, _TREND, _LEVELS = (
    "Indicator Interpretation", "Signal Quality", "Trend Identification", "Support/Resistance Levels",
)  # fmt: skip
_METRICS, _VALUATION, _HEALTH = "Metrics Accuracy", "Valuation", "Financial Health"
_DECISION, _RISK, _SYNTHESIS, _PORTFOLIO, _REALISM = (
    "Decision Quality", "Risk Management", "Reasoning & Synthesis", "Portfolio Awareness", "Outcome Realism",
)  # fmt: skip

DIMENSIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "news": {
        "hallucination": (_KEY_EVENTS,),
        "data_inaccuracy": (_KEY_EVENTS,),
        "missing_data": (_KEY_EVENTS,),
        "logical_fallacy": (_NEWS_TEXT,),
        "incomplete_analysis": (_NEWS_TEXT,),
        "contradictory": (_IMPACT,),
        "unsupported_claim": (_NEWS_TEXT,),
        "wrong_recommendation": (_IMPACT,),
        "inappropriate_confidence": ("Confidence Calibration",),
        "calculation_error": (_SENTIMENT,),
        "timeframe_mismatch": (_IMPACT,),
        "formatting_error": (_NEWS_TEXT,),
        "missing_field": (_NEWS_TEXT,),
        "invalid_value": (_NEWS_TEXT,),
        "sentiment_miscalculation": (_SENTIMENT,),
        "outdated_news": (_IMPACT,),
        "news_hallucination": (_KEY_EVENTS,),
        "missing_source": (_KEY_EVENTS,),
        "sentiment_justification_missing": (_NEWS_TEXT,),
        "wrong_event_impact": (_IMPACT,),
        "conflating_companies": (_KEY_EVENTS,),
    },
    "technical": {
        "hallucination": (_INDICATORS,),
        "data_inaccuracy": (_INDICATORS,),
        "missing_data": (_INDICATORS,),
        "logical_fallacy": (_SIGNAL,),
        "incomplete_analysis": (_SIGNAL,),
        "contradictory": (_SIGNAL,),
        "unsupported_claim": (_INDICATORS,),
        "wrong_recommendation": (_SIGNAL,),
        "inappropriate_confidence": ("Risk Assessment",),
        "calculation_error": (_INDICATORS,),
        "indicator_misuse": (_INDICATORS,),
        "timeframe_mismatch": (_TREND,),
        "formatting_error": (_SIGNAL,),
        "missing_field": (_SIGNAL,),
        "invalid_value": (_SIGNAL,),
        "indicator_calculation_error": (_INDICATORS,),
        "wrong_signal_interpretation": (_SIGNAL,),
        "timeframe_confusion": (_INDICATORS,),
        "support_resistance_hallucination": (_LEVELS,),
        "pattern_misidentification": (_TREND,),
        "volume_analysis_error": (_SIGNAL,),
        "trend_misclassification": (_TREND,),
    },
    "fundamental": {
        "hallucination": (_METRICS,),
        "data_inaccuracy": (_METRICS,),
        "missing_data": (_METRICS,),
        "logical_fallacy": ("Reasoning",),
        "incomplete_analysis": ("Reasoning",),
        "contradictory": (_VALUATION,),
        "unsupported_claim": (_METRICS,),
        "wrong_recommendation": (_VALUATION,),
        "inappropriate_confidence": (_VALUATION,),
        "calculation_error": (_METRICS,),
        "timeframe_mismatch": (_VALUATION,),
        "formatting_error": ("Reasoning",),
        "missing_field": ("Reasoning",),
        "invalid_value": ("Reasoning",),
        "valuation_calculation_error": (_VALUATION,),
        "financial_ratio_misinterpretation": ("Business Quality",),
        "earnings_hallucination": (_METRICS,),
        "debt_analysis_error": (_HEALTH,),
        "growth_projection_unrealistic": ("Growth",),
        "sector_comparison_invalid": (_VALUATION,),
        "missing_key_metric": (_METRICS,),
    },
    "strategist": {
        "hallucination": (_SYNTHESIS,),
        "data_inaccuracy": (_SYNTHESIS,),
        "missing_data": (_SYNTHESIS,),
        "logical_fallacy": (_SYNTHESIS,),
        "incomplete_analysis": (_SYNTHESIS,),
        "contradictory": (_DECISION,),
        "unsupported_claim": (_SYNTHESIS,),
        "wrong_recommendation": (_DECISION,),
        "inappropriate_confidence": (_DECISION,),
        "missing_risk_assessment": (_RISK,),
        "calculation_error": (_RISK,),
        "timeframe_mismatch": (_REALISM,),
        "formatting_error": (_SYNTHESIS,),
        "missing_field": (_SYNTHESIS,),
        "invalid_value": (_SYNTHESIS,),
        "conflicting_signals_unresolved": (_SYNTHESIS,),
        "position_size_inappropriate": (_RISK, _PORTFOLIO),
        "stop_loss_missing": (_RISK,),
        "take_profit_unrealistic": (_RISK, _REALISM),
        "risk_reward_miscalculation": (_RISK,),
        "portfolio_context_ignored": (_PORTFOLIO,),
        "timing_inappropriate": (_DECISION,),
    },
}
"""Agent type to category to the dimensions that it costs in; categories that an agent's outputs cannot have are absent."""

_IN_WORDS: Mapping[str, str] = {
    "news": _NEWS_TEXT, "technical": _SIGNAL, "fundamental": "Reasoning", "strategist": _SYNTHESIS,
}  # fmt: skip
"""Where a claim in the reasoning counts that is not borne out; the other claims are figures in fields."""


def dimensions_of(agent_type: str, error: ErrorInstance) -> tuple[str, ...]:
    """Return the dimensions that an error costs in; that of the reasoning for a category that is not in the table."""
    if error.location == "/reasoning":
        words = (_IN_WORDS[agent_type],)
        return words if error.category == "unsupported_claim" else DIMENSIONS[agent_type].get(error.category, words)
    return DIMENSIONS[agent_type].get(str(error.category), (_IN_WORDS[agent_type],))


def costs_by_dimension(agent_type: str, errors: Iterable[ErrorInstance]) -> dict[str, float]:
    """Return the points that errors take off each dimension."""
    costs: dict[str, float] = {}
    for error in errors:
        for name in dimensions_of(agent_type, error):
            costs[name] = costs.get(name, 0.0) + COSTS[Severity(error.severity)]
    return costs


def checked_share(agent_type: str, not_checked: Mapping[str, str]) -> dict[str, float]:
    """Return by dimension the share of its categories, 0..1, that were decided on."""
    total: dict[str, int] = {}
    checked: dict[str, int] = {}
    for category, names in DIMENSIONS[agent_type].items():
        for name in names:
            total[name] = total.get(name, 0) + 1
            checked[name] = checked.get(name, 0) + (category not in not_checked)
    return {name: checked[name] / count for name, count in total.items()}
