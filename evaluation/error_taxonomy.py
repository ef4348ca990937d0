"""Errors of agents as values: categories, severities, single findings, and the report on one output.

The localisation engine fills reports, the coordinator's guards, judges and metrics read them. What the categories mean
stands in `evaluation.error_catalogue`; nothing here looks at an output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from evaluation.error_catalogue import CATALOGUE, CategoryRecord, Severity
from utils.errors import nearest

__all__ = [
    "CATEGORY_ENUMS",
    "ErrorCategory",
    "ErrorInstance",
    "ErrorReport",
    "ErrorSeverityClassifier",
    "ErrorTaxonomyManager",
    "FundamentalAgentError",
    "NewsAgentError",
    "Severity",
    "StrategistAgentError",
    "TechnicalAgentError",
]

FATAL_HIGHS = 2
"""So many errors of high severity make an output as bad as a fatal one."""

HIGH_MEDIUMS = 3
"""So many of medium severity make it as bad as one of high severity."""


class ErrorCategory(StrEnum):
    """What any agent can get wrong."""

    HALLUCINATION = "hallucination"
    DATA_INACCURACY = "data_inaccuracy"
    MISSING_DATA = "missing_data"
    LOGICAL_FALLACY = "logical_fallacy"
    INCOMPLETE_ANALYSIS = "incomplete_analysis"
    CONTRADICTORY = "contradictory"
    UNSUPPORTED_CLAIM = "unsupported_claim"
    WRONG_RECOMMENDATION = "wrong_recommendation"
    INAPPROPRIATE_CONFIDENCE = "inappropriate_confidence"
    MISSING_RISK_ASSESSMENT = "missing_risk_assessment"
    CALCULATION_ERROR = "calculation_error"
    INDICATOR_MISUSE = "indicator_misuse"
    TIMEFRAME_MISMATCH = "timeframe_mismatch"
    FORMATTING_ERROR = "formatting_error"
    MISSING_FIELD = "missing_field"
    INVALID_VALUE = "invalid_value"


class NewsAgentError(StrEnum):
    """What only the news agent can get wrong."""

    SENTIMENT_MISCALCULATION = "sentiment_miscalculation"
    OUTDATED_NEWS = "outdated_news"
    NEWS_HALLUCINATION = "news_hallucination"
    MISSING_SOURCE = "missing_source"
    SENTIMENT_JUSTIFICATION_MISSING = "sentiment_justification_missing"
    WRONG_EVENT_IMPACT = "wrong_event_impact"
    CONFLATING_COMPANIES = "conflating_companies"


class TechnicalAgentError(StrEnum):
    """What only the technical agent can get wrong."""

    INDICATOR_CALCULATION_ERROR = "indicator_calculation_error"
    WRONG_SIGNAL_INTERPRETATION = "wrong_signal_interpretation"
    TIMEFRAME_CONFUSION = "timeframe_confusion"
    SUPPORT_RESISTANCE_HALLUCINATION = "support_resistance_hallucination"
    PATTERN_MISIDENTIFICATION = "pattern_misidentification"
    VOLUME_ANALYSIS_ERROR = "volume_analysis_error"
    TREND_MISCLASSIFICATION = "trend_misclassification"


class FundamentalAgentError(StrEnum):
    """What only the fundamental agent can get wrong."""

    VALUATION_CALCULATION_ERROR = "valuation_calculation_error"
    FINANCIAL_RATIO_MISINTERPRETATION = "financial_ratio_misinterpretation"
    EARNINGS_HALLUCINATION = "earnings_hallucination"
    DEBT_ANALYSIS_ERROR = "debt_analysis_error"
    GROWTH_PROJECTION_UNREALISTIC = "growth_projection_unrealistic"
    SECTOR_COMPARISON_INVALID = "sector_comparison_invalid"
    MISSING_KEY_METRIC = "missing_key_metric"


class StrategistAgentError(StrEnum):
    """What only the strategist can get wrong."""

    CONFLICTING_SIGNALS_UNRESOLVED = "conflicting_signals_unresolved"
    POSITION_SIZE_INAPPROPRIATE = "position_size_inappropriate"
    STOP_LOSS_MISSING = "stop_loss_missing"
    TAKE_PROFIT_UNREALISTIC = "take_profit_unrealistic"
    RISK_REWARD_MISCALCULATION = "risk_reward_miscalculation"
    PORTFOLIO_CONTEXT_IGNORED = "portfolio_context_ignored"
    TIMING_INAPPROPRIATE = "timing_inappropriate"


CATEGORY_ENUMS: dict[str, type[StrEnum]] = {
    "general": ErrorCategory,
    "news": NewsAgentError,
    "technical": TechnicalAgentError,
    "fundamental": FundamentalAgentError,
    "strategist": StrategistAgentError,
}
"""The enumeration of each owner of categories."""


@dataclass(frozen=True, slots=True)
class ErrorInstance:
    """One error in one field.

    Attributes
    ----------
    category : str
        Id of the category, a member of one of the enumerations or an equal string.
    severity : Severity
    description : str
        What was found, with figures.
    location : str
        JSON pointer to the field (RFC 6901); empty for the output as a whole.
    suggested_fix : str
    evidence : mapping
        ``expected`` and ``found``, and whatever else the rule compared; plain JSON values.
    timestamp : datetime or None
        The decision's time, not the wall clock's: equal replays give equal reports.
    sub_code : str or None
        The kind within the category, such as ``look_ahead``.
    corrected : object
        What the field should hold, in the form that JSON gives it, where that can be computed; None where it cannot.
    """

    category: str
    severity: Severity
    description: str
    location: str = ""
    suggested_fix: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    timestamp: datetime | None = None
    sub_code: str | None = None
    corrected: Any = None


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """All errors of one output.

    Attributes
    ----------
    agent_type : str
    errors : tuple of ErrorInstance
        Gravest first.
    overall_severity : Severity
    is_acceptable : bool
    summary : str
        One line for people.
    timestamp : datetime or None
        The decision's time.
    not_checked : mapping of str to str
        Category to why code did not decide it here.
    """

    agent_type: str
    errors: tuple[ErrorInstance, ...]
    overall_severity: Severity
    is_acceptable: bool
    summary: str
    timestamp: datetime | None = None
    not_checked: Mapping[str, str] = field(default_factory=dict)

    def get_fatal_errors(self) -> list[ErrorInstance]:
        """Return the errors that are fatal by themselves."""
        return [error for error in self.errors if error.severity == Severity.FATAL]

    def has_fatal_errors(self) -> bool:
        """Return whether any error is fatal by itself."""
        return any(error.severity == Severity.FATAL for error in self.errors)


class ErrorSeverityClassifier:
    """How grave an error is, and how grave several are together."""

    def classify(self, category: str, agent_type: str | None = None) -> Severity:
        """Return the severity of a category.

        Parameters
        ----------
        category : str
            Id or member of an enumeration.
        agent_type : str, optional
            Whose output it was found in: a category of another agent is unknown there.

        Returns
        -------
        Severity
            Medium for a category that is unknown.
        """
        record = CATALOGUE.get(str(category))
        if record is None or (agent_type is not None and record.agent not in ("general", agent_type)):
            return Severity.MEDIUM
        return record.severity

    def determine_overall_severity(self, errors: Iterable[ErrorInstance | Severity]) -> Severity:
        """Return the severity of an output with these errors.

        Notes
        -----
        The first that holds: any fatal or two high, fatal; one high or three medium, high; any medium; any low;
        negligible.
        """
        counts = Counter(error if isinstance(error, Severity) else Severity(error.severity) for error in errors)
        if not counts:
            return Severity.NEGLIGIBLE
        if counts[Severity.FATAL] or counts[Severity.HIGH] >= FATAL_HIGHS:
            return Severity.FATAL
        if counts[Severity.HIGH] or counts[Severity.MEDIUM] >= HIGH_MEDIUMS:
            return Severity.HIGH
        if counts[Severity.MEDIUM]:
            return Severity.MEDIUM
        return Severity.LOW if counts[Severity.LOW] else Severity.NEGLIGIBLE

    def is_acceptable(self, errors: Severity | Iterable[ErrorInstance | Severity]) -> bool:
        """Return whether an output of this overall severity, or with these errors, may be used: medium at worst."""
        overall = errors if isinstance(errors, Severity) else self.determine_overall_severity(errors)
        return overall not in (Severity.FATAL, Severity.HIGH)


class ErrorTaxonomyManager:
    """The catalogue for people and prompts: which categories there are, what they mean, what to do."""

    def get_all_error_categories(self) -> dict[str, list[str]]:
        """Return the ids of the categories by owner: general and the four agents."""
        return {owner: [member.value for member in members] for owner, members in CATEGORY_ENUMS.items()}

    def get_error_description(self, category: str) -> str:
        """Return the rule of a category.

        Raises
        ------
        ValueError
            If there is no such category; names the nearest one.
        """
        return self.record(category).description

    def get_suggested_fix(self, category: str, **facts: Any) -> str:
        """Return what to do about an error of a category; `location`, `found` and `expected` make it specific.

        Raises
        ------
        ValueError
            As `get_error_description`.
        """
        return self.record(category).suggest(**facts)

    def record(self, category: str) -> CategoryRecord:
        """Return the catalogue's record of a category; raises as `get_error_description`."""
        found = CATALOGUE.get(str(category))
        if found is None:
            raise ValueError(f"there is no error category {str(category)!r}{nearest(str(category), CATALOGUE)}")
        return found
