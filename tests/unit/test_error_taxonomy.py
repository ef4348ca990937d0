"""The catalogue of errors: 44 categories in five enumerations, severities that add up, reports and fixes."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.error_catalogue import CATALOGUE
from evaluation.error_taxonomy import (
    CATEGORY_ENUMS,
    ErrorCategory,
    ErrorInstance,
    ErrorReport,
    ErrorSeverityClassifier,
    ErrorTaxonomyManager,
    FundamentalAgentError,
    NewsAgentError,
    Severity,
    StrategistAgentError,
    TechnicalAgentError,
)

CLASSIFIER = ErrorSeverityClassifier()
MANAGER = ErrorTaxonomyManager()
F, H, M, L, N = Severity
AT = datetime(2014, 6, 2, 20, tzinfo=UTC)


def error(category: str = "missing_data", severity: Severity | None = None, **fields: object) -> ErrorInstance:
    return ErrorInstance(category, severity or CLASSIFIER.classify(category), "why", "/evidence", **fields)  # type: ignore[arg-type]


def report(*errors: ErrorInstance) -> ErrorReport:
    overall = CLASSIFIER.determine_overall_severity(errors)
    return ErrorReport("news", errors, overall, CLASSIFIER.is_acceptable(overall), "summary", AT)


def test_there_are_sixteen_general_categories_and_seven_for_each_agent() -> None:
    sizes = {owner: len(members) for owner, members in CATEGORY_ENUMS.items()}
    assert sizes == {"general": 16, "news": 7, "technical": 7, "fundamental": 7, "strategist": 7}
    assert len(CATALOGUE) == 44


def test_the_catalogue_and_the_enumerations_hold_the_same_categories_in_the_same_order() -> None:
    assert [member.value for members in CATEGORY_ENUMS.values() for member in members] == list(CATALOGUE)
    assert all(CATALOGUE[member].agent == owner for owner, members in CATEGORY_ENUMS.items() for member in members)


@pytest.mark.parametrize("members", CATEGORY_ENUMS.values(), ids=CATEGORY_ENUMS)
def test_members_are_the_upper_case_names_of_their_values(members: type) -> None:
    assert all(member.name == member.value.upper() for member in members)  # type: ignore[attr-defined]


def test_code_decides_35_code_and_judges_8_and_judges_alone_1() -> None:
    deciders = [record.decided_by for record in CATALOGUE.values()]
    assert [deciders.count(word) for word in ("code", "code_and_judge", "judge")] == [35, 8, 1]  # type: ignore[arg-type]
    assert CATALOGUE["logical_fallacy"].decided_by == "judge"


@pytest.mark.parametrize("category", [name for name, r in CATALOGUE.items() if r.decided_by != "judge"])
def test_a_category_that_code_decides_names_a_detector_that_exists(category: str) -> None:
    module, _, function = CATALOGUE[category].detector.partition(".")
    assert callable(getattr(import_module(f"evaluation.detectors.{module}"), function))


def test_what_only_judges_decide_names_no_detector() -> None:
    assert [name for name, record in CATALOGUE.items() if not record.detector] == ["logical_fallacy"]


SEVERITIES = {
    F: "hallucination news_hallucination conflating_companies support_resistance_hallucination earnings_hallucination "
    "stop_loss_missing",
    H: "logical_fallacy contradictory wrong_recommendation missing_risk_assessment wrong_event_impact "
    "indicator_calculation_error wrong_signal_interpretation trend_misclassification valuation_calculation_error "
    "debt_analysis_error conflicting_signals_unresolved position_size_inappropriate risk_reward_miscalculation",
    L: "timeframe_mismatch missing_field outdated_news missing_source volume_analysis_error sector_comparison_invalid",
    N: "formatting_error",
}


@pytest.mark.parametrize(("severity", "names"), SEVERITIES.items(), ids=SEVERITIES)
def test_the_categories_have_their_documented_severity(severity: Severity, names: str) -> None:
    assert {name for name, record in CATALOGUE.items() if record.severity == severity} == set(names.split())


def test_whatever_has_no_other_severity_is_medium() -> None:
    named = {name for names in SEVERITIES.values() for name in names.split()}
    assert {record.severity for name, record in CATALOGUE.items() if name not in named} == {M}


@pytest.mark.parametrize(
    ("category", "severity"),
    [
        (ErrorCategory.HALLUCINATION, F),
        (NewsAgentError.MISSING_SOURCE, L),
        (TechnicalAgentError.TREND_MISCLASSIFICATION, H),
        (FundamentalAgentError.MISSING_KEY_METRIC, M),
        (StrategistAgentError.STOP_LOSS_MISSING, F),
        ("formatting_error", N),
    ],
)
def test_members_and_their_values_are_classified_alike(category: str, severity: Severity) -> None:
    assert CLASSIFIER.classify(category) == severity
    assert CLASSIFIER.classify(str(category)) == severity


def test_an_unknown_category_is_medium() -> None:
    assert CLASSIFIER.classify("bad_mood") == M


def test_a_category_of_another_agent_is_unknown_and_so_medium() -> None:
    assert CLASSIFIER.classify("stop_loss_missing", "strategist") == F
    assert CLASSIFIER.classify("stop_loss_missing", "news") == M
    assert CLASSIFIER.classify("hallucination", "news") == F


@pytest.mark.parametrize(
    ("severities", "overall", "acceptable"),
    [
        ([], N, True),
        ([N, N, N, N], N, True),
        ([L], L, True),
        ([L] * 9, L, True),
        ([M], M, True),
        ([M, M, L, L], M, True),
        ([M, M, M], H, False),
        ([H], H, False),
        ([H, M, M, M], H, False),
        ([H, H], F, False),
        ([F], F, False),
        ([N, L, M, H, F], F, False),
    ],
)
def test_severities_add_up_as_documented(severities: list[Severity], overall: Severity, acceptable: bool) -> None:
    errors = [error(severity=severity) for severity in severities]
    assert CLASSIFIER.determine_overall_severity(errors) == overall
    assert CLASSIFIER.is_acceptable(errors) is acceptable
    assert CLASSIFIER.is_acceptable(overall) is acceptable


@given(st.lists(st.sampled_from(list(Severity)), max_size=8), st.sampled_from(list(Severity)))
def test_one_more_error_never_makes_an_output_better(severities: list[Severity], more: Severity) -> None:
    rank = {severity: place for place, severity in enumerate(Severity)}
    before, after = (CLASSIFIER.determine_overall_severity(found) for found in (severities, [*severities, more]))
    assert rank[after] <= rank[before]


@given(st.lists(st.sampled_from(list(Severity)), max_size=8))
def test_the_order_of_errors_does_not_matter(severities: list[Severity]) -> None:
    overall = CLASSIFIER.determine_overall_severity
    assert overall(severities) == overall(severities[::-1]) == overall(sorted(severities))


def test_a_report_gives_its_fatal_errors_only() -> None:
    fatal, mild = error("hallucination"), error("missing_source")
    assert report(mild, fatal).get_fatal_errors() == [fatal]
    assert report(mild, fatal).has_fatal_errors()


def test_two_high_errors_make_a_fatal_output_without_a_fatal_error() -> None:
    both = report(error("contradictory"), error("wrong_recommendation"))
    assert (both.overall_severity, both.is_acceptable) == (F, False)
    assert not both.has_fatal_errors()
    assert both.get_fatal_errors() == []


def test_findings_and_reports_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        error().severity = L  # type: ignore[misc]
    with pytest.raises(AttributeError):
        report().is_acceptable = True  # type: ignore[misc]


def test_the_manager_lists_all_categories_by_owner() -> None:
    listed = MANAGER.get_all_error_categories()
    assert list(listed) == ["general", "news", "technical", "fundamental", "strategist"]
    assert [name for names in listed.values() for name in names] == list(CATALOGUE)


@pytest.mark.parametrize("category", CATALOGUE)
def test_every_category_has_a_description_and_a_fix_in_words(category: str) -> None:
    assert len(MANAGER.get_error_description(category)) > 15
    fix = MANAGER.get_suggested_fix(category)
    assert len(fix) > 10
    assert "{" not in fix


def test_a_fix_with_facts_names_them() -> None:
    fix = MANAGER.get_suggested_fix("data_inaccuracy", location="/evidence/3/value", expected="61.4", found="75")
    assert fix == "Set /evidence/3/value to 61.4 (found 75)"


def test_descriptions_and_fixes_of_different_categories_differ() -> None:
    assert len({record.description for record in CATALOGUE.values()}) == 44


def test_an_unknown_category_has_no_description_and_the_nearest_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'hallucination'"):
        MANAGER.get_error_description("halucination")
    with pytest.raises(ValueError, match="no error category"):
        MANAGER.get_suggested_fix("")


def test_every_category_that_code_decides_names_operators_that_plant_it() -> None:
    for record in CATALOGUE.values():
        planted = len(record.mutation_operators)
        assert planted == 0 if record.decided_by == "judge" else planted >= 3, record.id
