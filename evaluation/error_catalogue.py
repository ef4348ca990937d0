"""The 44 ways in which an agent's output can be wrong, as one table: whose, how grave, who decides, what to do about it.

Everything that speaks of errors looks them up here: detectors, the localisation engine, the guided judge, metrics and
documents. It holds no logic; what a category's words mean in numbers stands in `evaluation.detectors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

Owner = Literal["general", "news", "technical", "fundamental", "strategist"]
DecidedBy = Literal["code", "code_and_judge", "judge"]


class Severity(StrEnum):
    """How grave an error is, gravest first."""

    FATAL = "fatal"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    NEGLIGIBLE = "negligible"


class _Words(dict[str, Any]):
    """Facts for a fix template; what is not known is said in words."""

    def __missing__(self, key: str) -> str:
        return {"location": "the field", "found": "what is stated", "expected": "what the data say"}[key]


@dataclass(frozen=True, slots=True)
class CategoryRecord:
    """One category.

    Attributes
    ----------
    id : str
        As findings, metrics and documents name it.
    agent : str
        Whose outputs can have it; ``general`` for all.
    severity : Severity
    decided_by : {"code", "code_and_judge", "judge"}
        ``code_and_judge``: code decides the described part, judges the rest.
    description : str
        The rule.
    fix : str
        Template with ``{location}``, ``{found}`` and ``{expected}``.
    detector : str
        Module and function below `evaluation.detectors`; empty where only judges decide.
    """

    id: str
    agent: Owner
    severity: Severity
    decided_by: DecidedBy
    description: str
    fix: str
    detector: str

    @property
    def mutation_operators(self) -> tuple[str, ...]:
        """Names of the operators that plant this error in a sound output, to measure detectors; none where only judges decide."""
        from evaluation.fault_injection.registry import OPERATORS  # they read the same schema, never a detector

        return tuple(operator.name for operator in OPERATORS.get(self.id, ()))

    def suggest(self, **facts: Any) -> str:
        """Return the fix with the facts of a finding filled in, in general words where there are none."""
        return self.fix.format_map(_Words(facts))


_F, _H, _M, _L, _N = Severity
_C: DecidedBy = "code"
_CJ: DecidedBy = "code_and_judge"
_J: DecidedBy = "judge"

_Row = tuple[str, Severity, DecidedBy, str, str, str]

_GENERAL: tuple[_Row, ...] = (
    ("hallucination", _F, _CJ,
     "Cited evidence is not among the data known at the decision; sub_code look_ahead if it became known later",
     "Remove {location} or cite data known at the decision: {expected} instead of {found}", "evidence.cited_evidence"),
    ("data_inaccuracy", _M, _C,
     "An evidence value differs from the value known at the decision by more than .5 %; sub_codes units, currency, "
     "split, stale",
     "Set {location} to {expected} (found {found})", "evidence.cited_evidence"),
    ("missing_data", _M, _C, "No evidence of the agent's own kind although such data were known",
     "Cite the data in {location}: {expected}", "evidence.missing_data"),
    ("logical_fallacy", _H, _J, "The conclusion does not follow from the premises",
     "Rewrite {location} so that each conclusion follows from cited facts", ""),
    ("incomplete_analysis", _M, _CJ,
     "Reasoning below 50 letters (news: see sentiment_justification_missing), fewer than 3 indicators, or no key factors",
     "Complete {location}: {expected}", "general.incomplete_analysis"),
    ("contradictory", _H, _CJ,
     "The recommendation stands against the output's own signal, valuation or |sentiment| > .5, or an abstention has a "
     "side or a size",
     "Bring {location} in line with the rest of the output: {expected} instead of {found}", "general.contradictory"),
    ("unsupported_claim", _M, _CJ,
     "A metric or indicator without evidence, or a number with a unit in the reasoning that matches nothing within 1 %",
     "Support {location} by evidence or remove {found}", "claims.unsupported_claim"),
    ("wrong_recommendation", _H, _CJ,
     "The side stands against the sign of the expected return, or against the known right call",
     "Change {location} from {found} to {expected}", "general.wrong_recommendation"),
    ("inappropriate_confidence", _M, _C,
     "Confidence above .9 on fewer than 2 pieces of evidence, or below .5 with a side and a size",
     "Set {location} to {expected} (found {found})", "general.inappropriate_confidence"),
    ("missing_risk_assessment", _H, _C, "A strategist takes a side with a risk assessment below 20 letters",
     "Describe in {location} what can go wrong and what it would cost", "strategist.missing_risk_assessment"),
    ("calculation_error", _M, _C, "A derived metric is more than 1 % off its parts",
     "Recompute {location}: {expected} instead of {found}", "general.calculation_error"),
    ("indicator_misuse", _M, _C, "An unknown indicator, or one computed on fewer bars than its window",
     "Remove {location}: {expected}", "technical.indicator_misuse"),
    ("timeframe_mismatch", _L, _C,
     "A short horizon on filings only, or a long one on windows of at most 20 bars only",
     "Set {location} to {expected} (found {found}), or cite evidence of that horizon", "general.timeframe_mismatch"),
    ("formatting_error", _N, _C, "A value had to be coerced, a time has no zone, a control character, a key twice",
     "Write {location} in the documented form: {expected} instead of {found}", "schema.read_output"),
    ("missing_field", _L, _C, "A required field is absent or null", "Give {location}", "schema.read_output"),
    ("invalid_value", _M, _C, "Type, enumeration or range violated, or a number that is not finite",
     "Replace {found} in {location} by a valid value: {expected}", "schema.read_output"),
)  # fmt: skip

_NEWS: tuple[_Row, ...] = (
    ("sentiment_miscalculation", _M, _C,
     "A score beyond .5 against the negation-aware balance of the words, or more than 1.0 from the articles' mean",
     "Set {location} near the articles' mean {expected} (found {found})", "news.sentiment_miscalculation"),
    ("outdated_news", _L, _C, "All events are older than 3, 10 or 30 days for a short, medium or long horizon",
     "Base {location} on younger events or lengthen the horizon: {expected} instead of {found}", "news.outdated_news"),
    ("news_hallucination", _F, _C,
     "An event without an article known at the decision: unknown id, or fewer than half of the words shared",
     "Remove the event at {location} or cite a known article: {expected} instead of {found}", "news.news_hallucination"),
    ("missing_source", _L, _C, "An event names no source", "Name the source in {location}: {expected}",
     "news.missing_source"),
    ("sentiment_justification_missing", _M, _C, "News reasoning below 50 letters",
     "Explain in {location} which articles the sentiment rests on", "news.sentiment_justification_missing"),
    ("wrong_event_impact", _H, _CJ, "A score beyond 1.5 without any event, or a price impact against the score",
     "Change {location} from {found} to {expected}", "news.wrong_event_impact"),
    ("conflating_companies", _F, _C, "An event's article is tagged with other symbols only",
     "Remove the event of another company at {location}: tagged {found}, asked about {expected}",
     "news.conflating_companies"),
)  # fmt: skip

_TECHNICAL: tuple[_Row, ...] = (
    ("indicator_calculation_error", _H, _C,
     "RSI, stochastic, MFI or ADX outside 0..100, or an indicator more than 5 % off its recomputation",
     "Set {location} to {expected} (found {found})", "technical.indicator_calculation_error"),
    ("wrong_signal_interpretation", _H, _C, "The buy side at an RSI above 70, or the sell side below 30",
     "Change {location} from {found} to {expected}", "technical.wrong_signal_interpretation"),
    ("timeframe_confusion", _M, _C, "Indicators of different bar intervals in one analysis",
     "Recompute {location} on the interval {expected} (found {found})", "technical.timeframe_confusion"),
    ("support_resistance_hallucination", _F, _C,
     "A support above the price, a resistance below it, or a level with no extreme of a bar within 1 %",
     "Remove the level {found} at {location} or take an extreme of a bar: {expected}",
     "technical.support_resistance_hallucination"),
    ("pattern_misidentification", _M, _CJ, "A named pattern that its detector does not find at the newest bar",
     "Remove {found} from {location}: {expected}", "technical.pattern_misidentification"),
    ("volume_analysis_error", _L, _C, "A volume signal against the 20-bar volume ratio (below .8, above 1.2)",
     "Change {location} from {found} to {expected}", "technical.volume_analysis_error"),
    ("trend_misclassification", _H, _C, "A trend against a trend strength beyond ±.6",
     "Change {location} from {found} to {expected}", "technical.trend_misclassification"),
)  # fmt: skip

_FUNDAMENTAL: tuple[_Row, ...] = (
    ("valuation_calculation_error", _H, _C,
     "A P/E above 1000, a multiple more than 2 % off its parts, or a price target above 5 times the price",
     "Recompute {location}: {expected} instead of {found}", "fundamental.valuation_calculation_error"),
    ("financial_ratio_misinterpretation", _M, _CJ,
     "A negative P/E, or a strength that cites a current ratio below 1 or a debt/equity above 2",
     "Reconsider {location}: {found} against {expected}", "fundamental.financial_ratio_misinterpretation"),
    ("earnings_hallucination", _F, _C, "EPS, revenue or net income that stands in no known filing within 1 %",
     "Set {location} to the filed {expected} (found {found})", "fundamental.earnings_hallucination"),
    ("debt_analysis_error", _H, _C,
     "Leverage more than 5 % off the filed one, or health above .7 with debt/equity above 2 and interest cover below 1.5",
     "Set {location} to {expected} (found {found})", "fundamental.debt_analysis_error"),
    ("growth_projection_unrealistic", _M, _C,
     "Growth above 50 % and above 3 times the 3-year rate, or below -90 %, that no filing bears out",
     "Bring {location} within what the company's past allows: {expected} instead of {found}",
     "fundamental.growth_projection_unrealistic"),
    ("sector_comparison_invalid", _L, _C, "A comparison with a company of another sector",
     "Compare with peers of the sector {expected} at {location} (found {found})",
     "fundamental.sector_comparison_invalid"),
    ("missing_key_metric", _M, _C,
     "No metric at all, or a filed one of P/E, revenue growth, profit margin and debt/equity left out",
     "Add {location}: {expected}", "fundamental.missing_key_metric"),
)  # fmt: skip

_STRATEGIST: tuple[_Row, ...] = (
    ("conflicting_signals_unresolved", _H, _C,
     "Confident inputs (at least .5) on both sides without a resolution in the trace or the key factors",
     "Say in {location} how the conflict was resolved: {found}", "strategist.conflicting_signals_unresolved"),
    ("position_size_inappropriate", _H, _C, "More than a fifth of equity in one symbol, or a hold with a size",
     "Set {location} to {expected} (found {found})", "strategist.position_size_inappropriate"),
    ("stop_loss_missing", _F, _C, "A side without a stop loss", "Set {location}: {expected}",
     "strategist.stop_loss_missing"),
    ("take_profit_unrealistic", _M, _C,
     "A target on the wrong side of the entry, or beyond four standard deviations of the horizon",
     "Move {location} from {found} to {expected}", "strategist.take_profit_unrealistic"),
    ("risk_reward_miscalculation", _H, _C,
     "A stop on the wrong side of the entry, or a ratio more than 5 % off |take - entry| / |entry - stop|",
     "Set {location} to {expected} (found {found})", "strategist.risk_reward_miscalculation"),
    ("portfolio_context_ignored", _M, _C,
     "Costs more than the cash or than 20 % of equity in one symbol, or sells what is not held",
     "Change {location} from {found} to {expected}", "strategist.portfolio_context_ignored"),
    ("timing_inappropriate", _M, _C,
     "An entry more than 3 ATR from the price, or an intraday horizon while the market is closed",
     "Change {location} from {found} to {expected}", "strategist.timing_inappropriate"),
)  # fmt: skip

_GROUPS: tuple[tuple[Owner, tuple[_Row, ...]], ...] = (
    ("general", _GENERAL),
    ("news", _NEWS),
    ("technical", _TECHNICAL),
    ("fundamental", _FUNDAMENTAL),
    ("strategist", _STRATEGIST),
)

CATALOGUE: dict[str, CategoryRecord] = {
    name: CategoryRecord(name, agent, severity, decided_by, description, fix, detector)
    for agent, rows in _GROUPS
    for name, severity, decided_by, description, fix, detector in rows
}
"""Every category by its id, general ones first, then agent by agent."""
