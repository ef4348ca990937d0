"""Finds what is wrong in an agent's output and where: every category that code can decide, with a pointer and a fix.

The coordinator's guards run it on every output before it can trade, the taxonomy-guided judge and the benchmarks on what
they examine. It never raises on content, never asks a model, and never reads the clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from evaluation.detectors import claims, evidence, fundamental, general, news, schema, strategist, technical
from evaluation.detectors.asof_facts import FactsCache
from evaluation.detectors.case import Case, Rule, rule
from evaluation.error_catalogue import CATALOGUE, Severity
from evaluation.error_taxonomy import ErrorInstance, ErrorReport, ErrorSeverityClassifier
from evaluation.ground_truth import GroundTruth
from utils.errors import nearest

_FIRST: tuple[Rule, ...] = (
    rule("hallucination", evidence.cited_evidence, "evidence as_of", on_abstentions=True),
    rule("missing_data", evidence.missing_data, "evidence", "snapshot"),
)
_NEWS: tuple[Rule, ...] = (
    rule("sentiment_miscalculation", news.sentiment_miscalculation, "sentiment_score evidence"),
    rule("wrong_event_impact", news.wrong_event_impact, "sentiment_score"),
    rule("news_hallucination", news.news_hallucination, "key_events"),
    rule("conflating_companies", news.conflating_companies, "key_events symbol"),
    rule("missing_source", news.missing_source, "key_events"),
    rule("sentiment_justification_missing", news.sentiment_justification_missing, "reasoning"),
    rule("outdated_news", news.outdated_news, "key_events time_horizon as_of"),
    rule("hallucination", general.events_to_come, "key_events as_of"),
)
_TECHNICAL: tuple[Rule, ...] = (
    rule("data_inaccuracy", technical.current_price, "current_price", "bars"),
    rule("indicator_misuse", technical.indicator_misuse, "indicators"),
    rule("indicator_calculation_error", technical.indicator_calculation_error, "indicators"),
    rule("wrong_signal_interpretation", technical.wrong_signal_interpretation, "indicators"),
    rule("timeframe_confusion", technical.timeframe_confusion, "evidence"),
    rule("support_resistance_hallucination", technical.support_resistance_hallucination),
    rule("pattern_misidentification", technical.pattern_misidentification, "patterns"),
    rule("volume_analysis_error", technical.volume_analysis_error, "signals"),
    rule("trend_misclassification", technical.trend_misclassification, "trend"),
)
_FUNDAMENTAL: tuple[Rule, ...] = (
    rule("missing_key_metric", fundamental.missing_key_metric, "key_metrics"),
    rule("earnings_hallucination", fundamental.earnings_hallucination, "key_metrics"),
    rule("financial_ratio_misinterpretation", fundamental.financial_ratio_misinterpretation, "key_metrics"),
    rule("valuation_calculation_error", fundamental.valuation_calculation_error, "key_metrics evidence"),
    rule("debt_analysis_error", fundamental.debt_analysis_error, "key_metrics"),
    rule("growth_projection_unrealistic", fundamental.growth_projection_unrealistic, "key_metrics"),
    rule("sector_comparison_invalid", fundamental.sector_comparison_invalid, "evidence symbol"),
)
_LEVELS = "recommendation stop_loss take_profit expected_return evidence signals"
_STRATEGIST: tuple[Rule, ...] = (
    rule("wrong_recommendation", strategist.trade, _LEVELS),
    rule("missing_risk_assessment", strategist.missing_risk_assessment, "recommendation risk_assessment"),
    rule("position_size_inappropriate", strategist.position_size_inappropriate, "position_size"),
    rule("stop_loss_missing", strategist.stop_loss_missing, _LEVELS),
    rule("take_profit_unrealistic", strategist.take_profit_unrealistic, _LEVELS),
    rule("risk_reward_miscalculation", strategist.risk_reward_miscalculation, f"{_LEVELS} risk_reward_ratio"),
    rule("portfolio_context_ignored", strategist.portfolio_context_ignored, f"{_LEVELS} position_size symbol", "portfolio"),
    rule("timing_inappropriate", strategist.timing_inappropriate, _LEVELS),
    rule("conflicting_signals_unresolved", strategist.conflicting_signals_unresolved, "key_factors", "agent_outputs"),
)  # fmt: skip
_LAST: tuple[Rule, ...] = (
    rule("incomplete_analysis", general.incomplete_analysis),
    rule("contradictory", general.contradictory, "recommendation", on_abstentions=True),
    rule("wrong_recommendation", general.wrong_recommendation, "recommendation expected_return"),
    rule("inappropriate_confidence", general.inappropriate_confidence, "confidence"),
    rule("calculation_error", general.calculation_error),
    rule("timeframe_mismatch", general.timeframe_mismatch, "time_horizon evidence"),
    rule("unsupported_claim", claims.unsupported_claim),
)
RULES: dict[str, tuple[Rule, ...]] = {
    "news": (*_FIRST, *_NEWS, *_LAST),
    "technical": (*_FIRST, *_TECHNICAL, *_LAST),
    "fundamental": (*_FIRST, *_FUNDAMENTAL, *_LAST),
    "strategist": (*_FIRST, *_STRATEGIST, *_LAST),
    "validator": (*_FIRST, *_LAST),
}
"""The rules of each agent in the order in which they are applied: causes before consequences."""

_CLASSIFIER = ErrorSeverityClassifier()
_RANK = {severity: rank for rank, severity in enumerate(Severity)}
_JUDGES = {record.id: "a judge decides" for record in CATALOGUE.values() if record.decided_by == "judge"}


class FaultDetector:
    """Finds the errors in outputs of one agent.

    Parameters
    ----------
    agent_type : str
        news, technical, fundamental, strategist or validator (which has no errors of its own).
    facts : FactsCache, optional
        Where what follows from a snapshot is kept; detectors of one decision share it.

    Raises
    ------
    ValueError
        For any other agent type.
    """

    def __init__(self, agent_type: str, facts: FactsCache | None = None) -> None:
        if agent_type not in RULES:
            raise ValueError(
                f"agent_type {agent_type!r} is none of {', '.join(RULES)}{nearest(str(agent_type), RULES)}"
            )
        self.agent_type = agent_type
        self._facts = facts or FactsCache()

    def detect(self, agent_output: Any, ground_truth: Any = None) -> list[ErrorInstance]:
        """Return the errors of an output, gravest first; parameters as in `FaultLocalizationEngine.detect_faults`."""
        return _gravest_first(self.examine(agent_output, ground_truth).errors)

    def examine(self, agent_output: Any, ground_truth: Any = None) -> Case:
        """Return the output's case after all rules have been applied."""
        truth = GroundTruth.of(ground_truth)
        case = schema.read_output(self.agent_type, agent_output, truth, self._facts.of(truth.snapshot))
        rules = RULES[self.agent_type]
        case.not_checked.update(_JUDGES)
        if case.output is None:
            for item in rules:
                case.skip(item.category, "the output cannot be read")
            return case
        case.run(rules)
        schema.report_absent(case)
        return case


class NewsFaultDetector(FaultDetector):
    """Of news outputs."""

    def __init__(self, facts: FactsCache | None = None) -> None:
        super().__init__("news", facts)


class TechnicalFaultDetector(FaultDetector):
    """Of technical outputs."""

    def __init__(self, facts: FactsCache | None = None) -> None:
        super().__init__("technical", facts)


class FundamentalFaultDetector(FaultDetector):
    """Of fundamental outputs."""

    def __init__(self, facts: FactsCache | None = None) -> None:
        super().__init__("fundamental", facts)


class StrategistFaultDetector(FaultDetector):
    """Of strategists' decisions."""

    def __init__(self, facts: FactsCache | None = None) -> None:
        super().__init__("strategist", facts)


class FaultLocalizationEngine:
    """Reports on outputs of any agent; one instance serves a whole run."""

    def __init__(self) -> None:
        facts = FactsCache()
        self._detectors = {agent_type: FaultDetector(agent_type, facts) for agent_type in RULES}

    def detect_faults(self, agent_type: str, output: Any, ground_truth: Any = None) -> ErrorReport:
        """Report on one output.

        Parameters
        ----------
        agent_type : str
            Whose output it is.
        output : AgentOutput, dict, str or bytes
            A model, its fields, or JSON text of them; whatever it holds, the answer is a report.
        ground_truth : GroundTruth or mapping, optional
            What was known at the decision. Rules that lack what they need are named in `not_checked`.

        Raises
        ------
        ValueError
            For an unknown agent type, or a ground truth with an unknown key.
        """
        detector = self._detectors.get(agent_type)
        if detector is None:
            raise ValueError(
                f"agent_type {agent_type!r} is none of {', '.join(RULES)}{nearest(str(agent_type), RULES)}"
            )
        case = detector.examine(output, ground_truth)
        return report_of(agent_type, case.errors, case.timestamp, case.not_checked)


def report_of(
    agent_type: str, found: Sequence[ErrorInstance], timestamp: datetime | None, not_checked: Mapping[str, str]
) -> ErrorReport:
    """Return the report on an output in which these errors were found, gravest first."""
    errors = tuple(_gravest_first(list(found)))
    overall = _CLASSIFIER.determine_overall_severity(errors)
    acceptable = _CLASSIFIER.is_acceptable(overall)
    return ErrorReport(
        agent_type, errors, overall, acceptable, _summary(agent_type, errors, overall), timestamp, not_checked
    )


def _gravest_first(errors: list[ErrorInstance]) -> list[ErrorInstance]:
    return sorted(errors, key=lambda error: _RANK[error.severity]) if len(errors) > 1 else errors


def _summary(agent_type: str, errors: tuple[ErrorInstance, ...], overall: Severity) -> str:
    if not errors:
        return f"{agent_type}: no error found"
    first = errors[0]
    more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"{agent_type}: {overall.value}; {first.category} at {first.location or 'the output'}{more}"
