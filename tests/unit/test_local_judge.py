"""The local judge: grades move with quality, in the dimension concerned and in no unrelated one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from output_factory import AS_OF, CONTEXT, INDICATORS, METRICS, OUTPUTS, news_output, technical_output

from evaluation.error_catalogue import CATALOGUE, Severity
from evaluation.error_taxonomy import ErrorInstance
from evaluation.fault_localization import report_of
from evaluation.ground_truth import GroundTruth
from judge.base import JudgeRequest, JudgeScore
from judge.finding_costs import DIMENSIONS
from judge.local_checks.facts import Facts, calibration, no_padding
from judge.local_judge import LocalJudge
from judge.rubrics import load_rubric
from utils.errors import JudgeError, LookAheadError
from utils.schema import AgentOutput, KeyEvent

JUDGE = LocalJudge()
NONSENSE = "We have a good feeling here. " * 3


def grade(
    agent: str, output: AgentOutput | None = None, context: dict[str, Any] | None = None, **changes: Any
) -> JudgeScore:
    made = output if output is not None else OUTPUTS[agent](**changes)
    return JUDGE.grade(JudgeRequest(agent, made, load_rubric(agent), CONTEXT if context is None else context))


@pytest.mark.parametrize("agent", OUTPUTS)
def test_a_sound_output_is_graded_excellent_in_every_dimension(agent: str) -> None:
    result = grade(agent)
    assert result.score >= 90
    assert min(result.criteria_scores.values()) >= 85
    assert result.reasoning.startswith("excellent")


@pytest.mark.parametrize("agent", OUTPUTS)
def test_the_score_is_the_weighted_sum_of_its_criteria(agent: str) -> None:
    result = grade(agent, reasoning=NONSENSE)
    weights = load_rubric(agent).weights
    assert result.score == pytest.approx(sum(weights[name] * value for name, value in result.criteria_scores.items()))


def _events(**changes: Any) -> tuple[KeyEvent, ...]:
    return tuple(event.model_copy(update=changes) for event in news_output().key_events)


DAMAGES: list[tuple[str, dict[str, Any], set[str]]] = [
    ("news", {"sentiment_score": -1.2}, {"Sentiment Accuracy", "Price Impact Assessment", "Confidence Calibration"}),
    ("news", {"signals": {"sentiment": -0.6}}, {"Sentiment Accuracy"}),
    ("news", {"reasoning": NONSENSE}, {"Reasoning Quality"}),
    ("news", {"price_impact": "bearish"}, {"Price Impact Assessment"}),
    ("news", {"risk_factors": ()}, {"Price Impact Assessment"}),
    ("news", {"key_events": _events(source="")}, {"Key Events Identification"}),
    ("news", {"key_events": _events(evidence_id="unknown")}, {"Key Events Identification"}),
    ("news", {"key_events": _events(published_at=AS_OF + timedelta(hours=1))}, {"Key Events Identification"}),
    ("news", {"key_events": _events(headline="Bank of Spain lifts rates")}, {"Key Events Identification"}),
    ("news", {"confidence": 0.99}, {"Confidence Calibration"}),
    ("technical", {"momentum": "strong_bearish"}, {"Indicator Interpretation"}),
    ("technical", {"indicators": {**INDICATORS, "mfi_14": 140.0}}, {"Indicator Interpretation"}),
    ("technical", {"indicators": {**INDICATORS, "stoch_d": 61.0}}, {"Indicator Interpretation"}),
    ("technical", {"signal": "sell"}, {"Signal Quality"}),
    ("technical", {"reasoning": NONSENSE}, {"Signal Quality"}),
    ("technical", {"trend": "downtrend"}, {"Trend Identification"}),
    ("technical", {"support_levels": (104.0, 101.0)}, {"Support/Resistance Levels"}),
    ("technical", {"resistance_levels": ()}, {"Support/Resistance Levels"}),
    ("technical", {"confidence": 0.99}, {"Risk Assessment"}),
    ("fundamental", {"evidence": ()}, {"Metrics Accuracy", "Valuation"}),
    ("fundamental", {"key_metrics": {**METRICS, "pe_ratio": 17.8}}, {"Valuation"}),
    ("fundamental", {"valuation": "overvalued"}, {"Valuation"}),
    ("fundamental", {"price_target": 80.0}, {"Valuation"}),
    ("fundamental", {"confidence": 0.99}, {"Valuation"}),
    ("fundamental", {"key_risks": ()}, {"Business Quality"}),
    ("fundamental", {"financial_health": 0.1}, {"Financial Health", "Valuation"}),
    ("fundamental", {"growth_quality": 0.0}, {"Growth", "Valuation"}),
    ("fundamental", {"reasoning": NONSENSE}, {"Reasoning"}),
    ("strategist", {"expected_return": -0.05}, {"Decision Quality", "Outcome Realism"}),
    ("strategist", {"signals": {"news": -0.6, "technical": -0.5}}, {"Decision Quality"}),
    ("strategist", {"confidence": 0.99}, {"Decision Quality"}),
    ("strategist", {"stop_loss": None}, {"Risk Management"}),
    ("strategist", {"stop_loss": 104.0}, {"Risk Management"}),
    ("strategist", {"risk_reward_ratio": 4.0}, {"Risk Management"}),
    ("strategist", {"risk_assessment": "low"}, {"Risk Management"}),
    ("strategist", {"take_profit": 99.0}, {"Risk Management", "Outcome Realism"}),
    ("strategist", {"reasoning": NONSENSE}, {"Reasoning & Synthesis"}),
    ("strategist", {"key_factors": ()}, {"Reasoning & Synthesis"}),
    ("strategist", {"position_size": 0.9}, {"Risk Management", "Portfolio Awareness"}),
    ("strategist", {"expected_return": 0.5}, {"Outcome Realism"}),
]


@pytest.mark.parametrize(("agent", "change", "concerned"), DAMAGES, ids=lambda value: str(value)[:50])
def test_damage_lowers_the_dimension_concerned_and_no_unrelated_one(
    agent: str, change: dict[str, Any], concerned: set[str]
) -> None:
    before, after = grade(agent).criteria_scores, grade(agent, **change).criteria_scores
    lowered = {name for name in before if after[name] < before[name] - 0.5}
    assert lowered
    assert lowered <= concerned
    assert concerned <= set(before)
    assert {name for name in before if name not in concerned and abs(after[name] - before[name]) > 0.5} == set()


@pytest.mark.parametrize("agent", OUTPUTS)
def test_the_reasoning_names_what_failed(agent: str) -> None:
    assert "cites nothing" in grade(agent, reasoning=NONSENSE).reasoning


@pytest.mark.parametrize("agent", OUTPUTS)
def test_repeating_the_reasoning_lowers_the_score(agent: str) -> None:
    text = OUTPUTS[agent]().reasoning
    once, thrice = grade(agent), grade(agent, reasoning=" ".join([text] * 4))
    assert thrice.score < once.score


def test_filler_with_fresh_words_earns_nothing() -> None:
    text = technical_output().reasoning
    filler = " ".join(f"furthermore aspect{chr(97 + i % 26)}{chr(97 + i // 26)} matters" for i in range(450))
    assert grade("technical", reasoning=f"{text} {filler}"[:4000]).score < grade("technical").score


def test_an_empty_reasoning_earns_no_credit_for_brevity() -> None:
    assert no_padding(Facts(technical_output(reasoning=""), {})) == 0.0


def test_numbers_beyond_one_percent_of_the_evidence_lower_the_grade() -> None:
    text = technical_output().reasoning
    exact, near, far = (
        grade("technical", reasoning=text.replace("95.25", value)).criteria_scores["Signal Quality"]
        for value in ("95.25", "95.9", "112.7")
    )
    assert near == exact
    assert far < exact


def test_a_rounded_number_matches_what_it_rounds() -> None:
    text = technical_output().reasoning
    assert grade("technical", reasoning=text.replace("61.4", "61")).score == grade("technical").score


def test_leaving_out_an_indicator_does_not_escape_its_checks() -> None:
    thin = {name: value for name, value in INDICATORS.items() if name not in ("rsi_14", "macd", "macd_signal")}
    after = grade("technical", indicators=thin).criteria_scores["Indicator Interpretation"]
    assert after < grade("technical").criteria_scores["Indicator Interpretation"] - 15


def test_a_hold_without_position_needs_no_stop() -> None:
    hold = grade(
        "strategist",
        recommendation="hold",
        position_size=0.0,
        stop_loss=None,
        take_profit=None,
        risk_reward_ratio=None,
        expected_return=0.0,
        signals={"news": 0.2, "technical": -0.1},
        confidence=0.45,
    )
    assert hold.criteria_scores["Risk Management"] == 100
    assert hold.criteria_scores["Decision Quality"] > 85


def test_a_sale_of_what_is_not_held_ignores_the_portfolio() -> None:
    changes = {"recommendation": "sell", "stop_loss": 104.0, "take_profit": 92.0, "expected_return": -0.05}
    held = {**CONTEXT, "portfolio": {**CONTEXT["portfolio"], "weights": {"AAPL": 0.1}}}
    without, with_holding = grade("strategist", **changes), grade("strategist", context=held, **changes)
    assert without.criteria_scores["Portfolio Awareness"] < with_holding.criteria_scores["Portfolio Awareness"]


def test_an_unaddressed_conflict_of_analysts_lowers_the_synthesis() -> None:
    others = {"news": news_output(), "technical": technical_output(recommendation="sell", signal="sell")}
    context = {**CONTEXT, "agent_outputs": others}
    silent = grade("strategist", context=context)
    factors = ("Momentum and sentiment are positive", "News outweigh the sell signal of the technical analyst")
    spoken = grade("strategist", context=context, key_factors=factors)
    assert silent.criteria_scores["Reasoning & Synthesis"] < spoken.criteria_scores["Reasoning & Synthesis"]


def test_a_text_that_quotes_another_stop_than_the_decision_lowers_the_synthesis_too() -> None:
    text = OUTPUTS["strategist"]().reasoning + " The stop stands at 96.00 and the target at 108.00."
    told, moved = grade("strategist", reasoning=text), grade("strategist", reasoning=text, stop_loss=93.0)
    assert moved.criteria_scores["Reasoning & Synthesis"] < told.criteria_scores["Reasoning & Synthesis"]


def test_less_context_means_less_confidence_in_the_grade() -> None:
    assert grade("strategist", context={}).confidence < grade("strategist").confidence


def test_a_sentiment_milder_than_its_weightiest_texts_is_no_fault_but_a_stronger_one_is() -> None:
    texts = ("Apple sales rise slightly", "Apple opens another store", "Apple sales rise slightly again")
    mild = tuple(e.model_copy(update={"value": text}) for e, text in zip(news_output().evidence, texts, strict=True))
    milder, own, stronger = (
        grade("news", sentiment_score=score, signals={}, evidence=mild).criteria_scores["Sentiment Accuracy"]
        for score in (0.2, 0.6, 2.0)
    )
    assert milder == own
    assert stronger < own


def test_a_sentiment_follows_the_negations_of_its_texts() -> None:
    texts = ("Apple does not beat estimates", "Analysts do not upgrade Apple", "Apple never raises its dividend")
    negated = tuple(e.model_copy(update={"value": text}) for e, text in zip(news_output().evidence, texts, strict=True))
    assert "sentiment_miscalculation at /sentiment_score" in grade("news", evidence=negated).reasoning


def test_conviction_beyond_the_evidence_costs_more_than_too_little() -> None:
    fitting = calibration(0.7, 4, 0.9)
    assert fitting == 1.0
    assert calibration(0.99, 0, 0) < calibration(0.1, 0, 0)
    assert calibration(0.95, 1, 0.2) < calibration(0.95, 16, 1.0)


@pytest.mark.parametrize("agent", OUTPUTS)
def test_an_abstention_is_not_graded(agent: str) -> None:
    with pytest.raises(JudgeError, match="abstained"):
        grade(agent, abstained=True, abstain_reason="no data")


def test_an_output_of_another_agent_is_not_graded() -> None:
    with pytest.raises(JudgeError, match="unsupported"):
        JUDGE.grade(JudgeRequest("news", technical_output(), load_rubric("news")))


def test_a_dimension_that_code_cannot_check_is_an_error_and_no_default() -> None:
    rubric = load_rubric("news")
    renamed = rubric.dimensions[0].model_copy(update={"name": "Elegance"})
    other = rubric.model_copy(update={"dimensions": (renamed, *rubric.dimensions[1:])})
    with pytest.raises(JudgeError, match="Elegance"):
        JUDGE.grade(JudgeRequest("news", news_output(), other))


@pytest.mark.parametrize("key", ["actual_return", "ground_truth", "reward"])
def test_a_request_that_tells_the_outcome_is_refused(key: str) -> None:
    with pytest.raises(LookAheadError, match=key):
        JudgeRequest("news", news_output(), load_rubric("news"), {key: 0.1})


@pytest.mark.parametrize(("score", "confidence", "criterion"), [(101, 0.5, 50), (50, 1.1, 50), (50, 0.5, float("nan"))])
def test_a_grade_out_of_range_counts_as_none(score: float, confidence: float, criterion: float) -> None:
    with pytest.raises(JudgeError, match="malformed"):
        JudgeScore("j", score, confidence, "", {"a": criterion})


def test_equal_outputs_get_equal_grades() -> None:
    assert grade("fundamental") == grade("fundamental")


def test_every_category_of_an_agent_belongs_to_dimensions_of_its_rubric() -> None:
    for agent, table in DIMENSIONS.items():
        dimensions = set(load_rubric(agent).weights)
        assert all(names and set(names) <= dimensions for names in table.values())
        own = {name for name, record in CATALOGUE.items() if record.agent == agent}
        assert own <= set(table)


def test_a_ready_report_is_used_and_errors_cost_by_their_gravity_in_their_dimension() -> None:
    def graded(severity: Severity) -> JudgeScore:
        error = ErrorInstance("valuation_calculation_error", severity, "", "/key_metrics/pe_ratio")
        report = report_of("fundamental", [error], None, {})
        return grade("fundamental", context={**CONTEXT, "report": report})

    sound = grade("fundamental", context={**CONTEXT, "report": report_of("fundamental", [], None, {})})
    lost = [
        sound.criteria_scores["Valuation"] - graded(severity).criteria_scores["Valuation"]
        for severity in (Severity.LOW, Severity.MEDIUM, Severity.HIGH)
    ]
    assert lost == pytest.approx([8, 20, 40])
    fatal = graded(Severity.FATAL)
    assert fatal.criteria_scores["Valuation"] == 0
    assert fatal.score == 40
    assert "valuation_calculation_error at /key_metrics/pe_ratio" in fatal.reasoning


def test_an_error_is_charged_once_and_not_by_a_check_of_its_own_again() -> None:
    text = OUTPUTS["technical"]().reasoning.replace("97.50", "$212.70")
    costs = [e for e in (grade("technical", reasoning=text).reasoning,) if "numbers in the reasoning" in e]
    assert costs == []
    assert "unsupported_claim at /reasoning" in grade("technical", reasoning=text).reasoning


def test_what_could_not_be_held_against_anything_lowers_the_confidence() -> None:
    unchecked = dict.fromkeys(DIMENSIONS["technical"], "no snapshot")
    full, none = (
        grade("technical", context={**CONTEXT, "report": report_of("technical", [], None, names)})
        for names in ({}, unchecked)
    )
    assert full.confidence == pytest.approx(1.0)
    assert none.confidence == pytest.approx(0.5)


def test_a_report_on_another_agent_and_a_truth_that_tells_the_right_call_are_refused() -> None:
    with pytest.raises(JudgeError, match="is on a technical output"):
        grade("news", context={"report": report_of("technical", [], None, {})})
    with pytest.raises(LookAheadError, match="right call"):
        grade("news", context={"truth": GroundTruth(recommendation="buy")})
