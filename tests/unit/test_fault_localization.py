"""Fault localisation: one damaged field is one finding at that field, a clean output is none, and nothing ever raises."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from damaged_outputs import DAMAGES, Damage, Found, later
from examined_outputs import AS_OF, articles, build_world, put, quarterly_filings, world
from hypothesis import example, given, settings
from hypothesis import strategies as st
from market_factory import make_bars, make_news, make_snapshot

from evaluation.error_catalogue import CATALOGUE
from evaluation.error_taxonomy import ErrorReport, Severity
from evaluation.fault_localization import (
    RULES,
    FaultDetector,
    FaultLocalizationEngine,
    FundamentalFaultDetector,
    NewsFaultDetector,
    StrategistFaultDetector,
    TechnicalFaultDetector,
)
from evaluation.ground_truth import GroundTruth
from utils.schema import PortfolioState

ENGINE = FaultLocalizationEngine()
AGENTS = ("news", "technical", "fundamental", "strategist")


def damaged(damage: Damage) -> tuple[dict[str, Any], GroundTruth]:
    raw = world().raw(damage.agent)
    for pointer, change in damage.changes.items():
        put(raw, pointer, change(_at(raw, pointer)) if callable(change) else change)
    return raw, replace(world().truth, **damage.truth)


def _at(raw: Any, pointer: str) -> Any:
    for part in pointer.split("/")[1:]:
        raw = raw[int(part)] if isinstance(raw, list) else raw.get(part)
    return raw


def found(report: ErrorReport) -> Found:
    return [(error.category, error.location) for error in report.errors]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_clean_output_has_no_fault(agent: str) -> None:
    report = ENGINE.detect_faults(agent, world().outputs[agent], world().truth)
    assert found(report) == []
    assert (report.overall_severity, report.is_acceptable) == (Severity.NEGLIGIBLE, True)
    assert report.timestamp == AS_OF
    assert not world().outputs[agent].abstained


@pytest.mark.parametrize("agent", AGENTS)
def test_model_fields_and_text_of_an_output_are_judged_alike(agent: str) -> None:
    output = world().outputs[agent]
    reports = [
        ENGINE.detect_faults(agent, form, world().truth)
        for form in (output, output.model_dump(), output.model_dump(mode="json"), output.model_dump_json())
    ]
    assert [found(report) for report in reports] == [[]] * 4


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=[name.replace(" ", "_") for name in DAMAGES])
def test_one_damaged_field_is_one_finding_at_that_field(damage: Damage) -> None:
    raw, truth = damaged(damage)
    report = ENGINE.detect_faults(damage.agent, raw, truth)
    assert found(report) == damage.found
    error = report.errors[0]
    assert error.severity == CATALOGUE[error.category].severity
    assert error.sub_code == damage.sub_code
    assert error.description
    assert "{" not in error.suggested_fix
    assert set(error.evidence) >= {"expected", "found"}


@pytest.mark.parametrize(
    "damage",
    [d for d in DAMAGES.values() if d.repaired],
    ids=[n.replace(" ", "_") for n, d in DAMAGES.items() if d.repaired],
)
def test_the_corrected_value_repairs_the_output(damage: Damage) -> None:
    raw, truth = damaged(damage)
    error = ENGINE.detect_faults(damage.agent, raw, truth).errors[0]
    assert error.corrected is not None
    put(raw, error.location, error.corrected)
    left = found(ENGINE.detect_faults(damage.agent, raw, truth))
    assert (error.category, error.location) not in left


def test_every_category_of_code_is_found_in_some_test() -> None:
    shown = {category for damage in DAMAGES.values() for category, _ in damage.found} | SHOWN_BELOW
    assert shown == {record.id for record in CATALOGUE.values() if record.decided_by != "judge"}


SHOWN_BELOW = {
    "wrong_signal_interpretation",
    "trend_misclassification",
    "volume_analysis_error",
    "conflicting_signals_unresolved",
}
"""Categories that need another market than that of `world`, each with a test of its own below."""


def overbought() -> Any:
    """A world whose RSI is above 70 and whose trend is clear."""
    close = 100 * np.exp(np.cumsum(np.where(np.arange(120) % 4 == 3, -0.004, 0.006)))
    base = make_bars(120)
    bars = replace(base, open=close * 0.999, high=close * 1.004, low=close * 0.995, close=close)
    return build_world(make_snapshot(bars))


def test_buying_the_overbought_is_a_misread_signal() -> None:
    there = overbought()
    output = there.outputs["technical"]
    assert output.indicators["rsi_14"] > 70  # type: ignore[attr-defined]
    assert found(ENGINE.detect_faults("technical", output, there.truth)) == []
    raw = {**there.raw("technical"), "recommendation": "buy", "signal": "buy"}
    report = ENGINE.detect_faults("technical", raw, there.truth)
    assert found(report) == [("wrong_signal_interpretation", "/recommendation")]
    assert report.errors[0].corrected == "hold"


def test_a_side_at_an_rsi_that_is_only_stated_is_judged_by_the_stated_one() -> None:
    raw = put(world().raw("technical"), "/indicators/rsi_14", 78.0)
    report = ENGINE.detect_faults("technical", raw)
    assert ("wrong_signal_interpretation", "/recommendation") in found(report)


def test_a_downtrend_in_a_clear_uptrend_is_a_misclassification() -> None:
    there = overbought()
    raw = {**there.raw("technical"), "trend": "downtrend"}
    assert found(ENGINE.detect_faults("technical", raw, there.truth)) == [("trend_misclassification", "/trend")]
    raw["trend"] = "sideways"
    assert found(ENGINE.detect_faults("technical", raw, there.truth)) == []


@pytest.mark.parametrize(
    ("last", "vote", "wrong"), [(3.0, -0.4, True), (3.0, 0.4, False), (0.2, 0.4, True), (0.2, -0.4, False)]
)
def test_a_volume_signal_against_the_volume_is_found(last: float, vote: float, wrong: bool) -> None:
    bars = make_bars(seed=49, drift=0.001)
    volume = bars.volume.copy()
    volume[-1] *= last
    there = build_world(make_snapshot(replace(bars, volume=volume)))
    raw = put(there.raw("technical"), "/signals/volume", vote)
    expected = [("volume_analysis_error", "/signals/volume")] if wrong else []
    assert found(ENGINE.detect_faults("technical", raw, there.truth)) == expected


BAD_NEWS = (
    make_news("shares plunge on fraud probe", 2),
    make_news("analysts downgrade after weak sales", 5),
    make_news("company misses estimates and cuts jobs", 9),
)


def conflict() -> Any:
    return build_world(make_snapshot(make_bars(seed=49, drift=0.001), news=BAD_NEWS, filings=quarterly_filings()))


def test_a_conflict_that_nobody_speaks_of_is_unresolved() -> None:
    there = conflict()
    assert found(ENGINE.detect_faults("strategist", there.outputs["strategist"], there.truth)) == []
    raw = put(there.raw("strategist"), "/key_factors", ["news: sell", "technical: buy"])
    assert found(ENGINE.detect_faults("strategist", raw, there.truth)) == [
        ("conflicting_signals_unresolved", "/key_factors")
    ]
    traced = replace(there.truth, workflow=[{"step": "validator", "conflict": "opposite_recommendations"}])
    assert found(ENGINE.detect_faults("strategist", raw, traced)) == []


def test_selling_what_is_not_held_ignores_the_portfolio() -> None:
    snapshot = make_snapshot(make_bars(seed=3, drift=-0.002), news=BAD_NEWS)
    there = build_world(snapshot, PortfolioState(1e5, 5e4, {"AAPL": 0.1}))
    output = there.outputs["strategist"]
    assert output.recommendation in ("sell", "strong_sell")
    assert found(ENGINE.detect_faults("strategist", output, there.truth)) == []
    without = replace(there.truth, portfolio=PortfolioState(1e5, 1e5))
    report = ENGINE.detect_faults("strategist", output, without)
    assert found(report) == [("portfolio_context_ignored", "/recommendation")]
    assert report.errors[0].corrected == "hold"


def test_an_event_whose_article_is_another_companys_is_conflated() -> None:
    other = make_news("rival surges on record profit and strong growth", 2, tickers=("MSFT",))
    snapshot = make_snapshot(make_bars(seed=49, drift=0.001), news=(*articles(), other))
    there = build_world(snapshot)
    raw = there.raw("news")
    event = {"headline": other.text, "source": "wire", "published_at": later(hours=-2), "evidence_id": other.item_id}
    put(raw, "/key_events", [*raw["key_events"], event])
    assert found(ENGINE.detect_faults("news", raw, there.truth)) == [
        ("conflating_companies", "/key_events/3/evidence_id")
    ]


def test_true_but_old_news_asks_for_a_longer_horizon() -> None:
    there = build_world(make_snapshot(make_bars(seed=49), news=[make_news("shares surge after record profit", 5 * 24)]))
    assert found(ENGINE.detect_faults("news", there.outputs["news"], there.truth)) == []
    raw = {**there.raw("news"), "time_horizon": "short_term"}
    report = ENGINE.detect_faults("news", raw, there.truth)
    assert found(report) == [("outdated_news", "/time_horizon")]
    assert report.errors[0].corrected == "medium_term"


@pytest.mark.parametrize(("bars", "wrong"), [(199, True), (200, False)])
def test_an_average_over_more_bars_than_there_are_is_misused(bars: int, wrong: bool) -> None:
    there = build_world(make_snapshot(make_bars(bars, seed=49)))
    raw = there.raw("technical")
    value = raw["indicators"].setdefault("sma_200", 100.0)
    item = {**raw["evidence"][1], "id": "note:sma_200", "kind": "note", "value": value, "unit": "USD"}
    raw["evidence"].append(item)
    expected = [("indicator_misuse", "/indicators/sma_200")] if wrong else []
    assert found(ENGINE.detect_faults("technical", raw, there.truth)) == expected


def test_good_health_of_an_overburdened_company_is_a_debt_error() -> None:
    filings = quarterly_filings(debt_to_equity=3.1, interest_cover=1.1)
    there = build_world(make_snapshot(make_bars(seed=49), filings=filings))
    assert found(ENGINE.detect_faults("fundamental", there.outputs["fundamental"], there.truth)) == []
    raw = {**there.raw("fundamental"), "financial_health": 0.85}
    assert found(ENGINE.detect_faults("fundamental", raw, there.truth)) == [
        ("debt_analysis_error", "/financial_health")
    ]
    raw = there.raw("fundamental")
    raw["key_strengths"] = ["little debt"]
    report = ENGINE.detect_faults("fundamental", raw, there.truth)
    assert found(report) == [("financial_ratio_misinterpretation", "/key_strengths/0")]


def test_growth_that_was_filed_is_no_projection() -> None:
    there = build_world(make_snapshot(make_bars(seed=49), filings=quarterly_filings(growth=0.2)))
    metrics = there.raw("fundamental")["key_metrics"]
    assert metrics["revenue_growth"] > 1
    assert found(ENGINE.detect_faults("fundamental", there.outputs["fundamental"], there.truth)) == []


def test_a_multiple_that_follows_from_filing_and_price_may_be_cited_and_a_wrong_one_is_inaccurate() -> None:
    there = world()
    snapshot = there.truth.snapshot
    assert snapshot is not None
    eps = max(snapshot.filings, key=lambda filing: filing.period_end).metrics["eps"]
    raw = there.raw("fundamental")
    item = {**raw["evidence"][0], "id": "derived:pe_ratio", "kind": "derived", "unit": "ratio", "source": "filings"}
    item["event_time"] = item["available_at"] = snapshot.as_of.isoformat()
    assert snapshot.price is not None
    for value, expected in ((round(snapshot.price / (4 * eps), 2), []), (900.0, ["data_inaccuracy"])):
        cited = {**raw, "evidence": [*raw["evidence"], {**item, "value": value}]}
        report = ENGINE.detect_faults("fundamental", cited, there.truth)
        assert [error.category for error in report.errors] == expected


def test_numbers_with_units_that_stand_somewhere_are_supported() -> None:
    raw = world().raw("fundamental")
    raw["reasoning"] += (
        f" Margin 20.0%, growth {100 * raw['key_metrics']['revenue_growth']:.1f}%, at {raw['key_metrics']['pe_ratio']}x earnings"
        f" with revenue of ${raw['key_metrics']['revenue'] / 1e9:.2f} billion over the 20-day window."
    )
    assert found(ENGINE.detect_faults("fundamental", raw, world().truth)) == []


def test_a_word_that_its_witnesses_speak_against_is_blamed_and_not_the_recommendation() -> None:
    for agent, pointer, word, right in (
        ("technical", "/signal", "sell", "buy"),
        ("fundamental", "/valuation", "overvalued", "undervalued"),
    ):
        report = ENGINE.detect_faults(agent, put(world().raw(agent), pointer, word), world().truth)
        assert found(report) == [("contradictory", pointer)]
        assert report.errors[0].corrected == right


def test_an_indicator_whose_evidence_has_a_made_up_id_is_not_blamed_as_well() -> None:
    raw = put(world().raw("technical"), "/evidence/1/id", "ind:magic")
    assert found(ENGINE.detect_faults("technical", raw, world().truth)) == [("hallucination", "/evidence/1/id")]
    raw = put(world().raw("fundamental"), "/evidence/0/id", "AAPL-1999-03-31:eps")
    assert found(ENGINE.detect_faults("fundamental", raw, world().truth)) == [("hallucination", "/evidence/0/id")]


def test_a_mild_score_of_the_wrong_sign_is_blamed_before_the_impact() -> None:
    news = [make_news("shares rise a little", 3), make_news("the annual meeting is on tuesday", 2)]
    there = build_world(make_snapshot(make_bars(seed=49), news=news))
    score = there.raw("news")["sentiment_score"]
    assert 0.25 < score < 0.5
    raw = put(there.raw("news"), "/sentiment_score", -score)
    assert found(ENGINE.detect_faults("news", raw, there.truth)) == [("wrong_event_impact", "/sentiment_score")]
    raw = put(there.raw("news"), "/price_impact", "bearish")
    assert found(ENGINE.detect_faults("news", raw, there.truth)) == [("wrong_event_impact", "/price_impact")]


def test_two_damaged_fields_are_two_findings() -> None:
    raw = world().raw("strategist")
    put(put(raw, "/stop_loss", None), "/position_size", 0.4)
    report = ENGINE.detect_faults("strategist", raw, world().truth)
    assert sorted(found(report)) == [
        ("position_size_inappropriate", "/position_size"),
        ("stop_loss_missing", "/stop_loss"),
    ]
    assert report.overall_severity == Severity.FATAL
    assert [error.category for error in report.get_fatal_errors()] == ["stop_loss_missing"]
    assert not report.is_acceptable
    assert "stop_loss_missing" in report.summary


def test_a_wrong_sentiment_does_not_hide_an_impact_against_the_articles() -> None:
    raw = world().raw("news")
    put(put(raw, "/sentiment_score", -1.8), "/price_impact", "bearish")
    assert sorted(found(ENGINE.detect_faults("news", raw, world().truth))) == [
        ("sentiment_miscalculation", "/sentiment_score"),
        ("wrong_event_impact", "/price_impact"),
    ]


def test_a_copy_that_was_changed_without_validation_is_seen_through() -> None:
    output = world().outputs["technical"].model_copy(update={"confidence": 1.7})
    assert found(ENGINE.detect_faults("technical", output, world().truth)) == [("invalid_value", "/confidence")]


def test_an_output_of_another_agent_is_not_that_agents() -> None:
    report = ENGINE.detect_faults("news", world().outputs["technical"], world().truth)
    assert ("invalid_value", "/agent_type") in found(report)


def test_a_key_that_stands_twice_is_a_formatting_error() -> None:
    text = world().outputs["strategist"].model_dump_json()
    report = ENGINE.detect_faults("strategist", '{"confidence": 0.1, ' + text[1:], world().truth)
    assert found(report) == [("formatting_error", "/confidence")]
    assert (report.overall_severity, report.is_acceptable) == (Severity.NEGLIGIBLE, True)


@pytest.mark.parametrize("given", ["no JSON", "[1, 2]", "", b"\xff", None, 7, []])
def test_what_is_no_object_is_an_invalid_value_and_nothing_else_is_checked(given: Any) -> None:
    report = ENGINE.detect_faults("news", given, world().truth)
    assert found(report) == [("invalid_value", "")]
    assert {"hallucination", "sentiment_miscalculation", "contradictory"} <= set(report.not_checked)


def test_a_bad_value_under_a_short_name_leaves_the_other_rules_at_work() -> None:
    raw = world().raw("technical")
    raw["decision"] = [raw.pop("recommendation")]
    raw["indicators"]["RSI"] = [raw["indicators"].pop("rsi_14")]
    report = ENGINE.detect_faults("technical", put(raw, "/trend", "downtrend"), overbought().truth)
    assert {("invalid_value", "/recommendation"), ("invalid_value", "/indicators/rsi_14")} < set(found(report))
    assert ("trend_misclassification", "/trend") in found(report)


def test_what_is_too_deep_or_too_long_to_be_written_is_answered() -> None:
    deep: Any = []
    for _ in range(3000):
        deep = [deep]
    for wild in (deep, {"x": deep}, 10**6000, [10**6000]):
        raw = put(put(world().raw("technical"), "/confidence", wild), "/signals/trend", wild)
        report = ENGINE.detect_faults("technical", {**raw, "agent_type": wild}, world().truth)
        assert {error.location for error in report.errors} >= {"/agent_type", "/confidence", "/signals/trend"}
        json.dumps([dict(error.evidence) for error in report.errors], allow_nan=False)


def test_rules_that_lack_the_ground_truth_are_named() -> None:
    report = ENGINE.detect_faults("strategist", world().outputs["strategist"])
    assert found(report) == []
    assert {"hallucination", "data_inaccuracy", "missing_data", "portfolio_context_ignored", "conflicting_signals_unresolved",
            "take_profit_unrealistic", "logical_fallacy"} <= set(report.not_checked)  # fmt: skip
    full = ENGINE.detect_faults("strategist", world().outputs["strategist"], world().truth)
    assert set(full.not_checked) == {"logical_fallacy"}


@pytest.mark.parametrize("agent", AGENTS)
def test_a_clean_output_without_ground_truth_has_no_fault(agent: str) -> None:
    assert found(ENGINE.detect_faults(agent, world().outputs[agent])) == []


def test_a_field_that_cannot_be_read_leaves_the_other_rules_at_work() -> None:
    raw = world().raw("strategist")
    put(put(raw, "/confidence", "very"), "/risk_assessment", "none")
    report = ENGINE.detect_faults("strategist", raw, world().truth)
    assert sorted(found(report)) == [("invalid_value", "/confidence"), ("missing_risk_assessment", "/risk_assessment")]
    assert "confidence" in report.not_checked["inappropriate_confidence"]


def test_an_unknown_agent_type_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'technical'"):
        ENGINE.detect_faults("tecnical", {})
    with pytest.raises(ValueError, match="none of"):
        FaultDetector("oracle")


def test_an_unknown_key_of_the_ground_truth_is_refused() -> None:
    with pytest.raises(ValueError, match="outlook"):
        ENGINE.detect_faults("news", {}, {"outlook": "good"})


@pytest.mark.parametrize(
    ("detector", "agent"),
    [
        (NewsFaultDetector(), "news"),
        (TechnicalFaultDetector(), "technical"),
        (FundamentalFaultDetector(), "fundamental"),
        (StrategistFaultDetector(), "strategist"),
    ],
)
def test_each_agent_has_its_detector_which_finds_what_the_engine_finds(detector: FaultDetector, agent: str) -> None:
    assert detector.agent_type == agent
    raw = put(world().raw(agent), "/confidence", 1.5)
    assert detector.detect(raw, world().truth) == list(ENGINE.detect_faults(agent, raw, world().truth).errors)
    assert detector.detect(world().outputs[agent], world().truth) == []


def test_a_known_indicator_value_goes_before_recomputation() -> None:
    rsi = world().raw("technical")["indicators"]["rsi_14"]
    truth = replace(world().truth, indicators={"rsi_14": rsi / 2})
    report = ENGINE.detect_faults("technical", world().outputs["technical"], truth)
    assert found(report) == [("indicator_calculation_error", "/indicators/rsi_14")]
    assert report.errors[0].corrected == rsi / 2


@pytest.mark.parametrize("seed", range(25))
def test_outputs_of_the_rules_agents_on_any_walk_are_clean(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bars = make_bars(
        int(rng.integers(5, 320)), drift=float(rng.normal(0, 0.002)), vol=float(rng.uniform(0.003, 0.06)), seed=seed
    )
    texts = (
        "shares surge",
        "profit warning, sales plunge",
        "the annual meeting is on tuesday",
        "analysts upgrade",
        "fraud probe",
    )
    news = [
        make_news(f"{texts[i]} number {i}", float(rng.uniform(0, 160)), source="wire")
        for i in rng.integers(0, 5, rng.integers(0, 9))
    ]
    filings = quarterly_filings(int(rng.integers(1, 18)), float(rng.normal(0, 0.1)), float(rng.uniform(3, 60)), seed,
                                debt_to_equity=float(rng.uniform(-1, 5)), current_ratio=float(rng.uniform(0.3, 3)))  # fmt: skip
    portfolio = PortfolioState(1e5, float(rng.uniform(0, 1e5)), {"AAPL": 0.1} if seed % 2 else {})
    there = build_world(make_snapshot(bars, news=news, filings=filings), portfolio)
    for agent, output in there.outputs.items():
        assert found(ENGINE.detect_faults(agent, output, there.truth)) == []


SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=20)
    | st.sampled_from(["85 %", "nan", "buy", "bullish", "\ud800", "\x00", "2014-01-01T00:00:00", "2014-06-02T20:00:00Z",
                       "$3 billion", "12.5% growth", "uptrend", "hold", "long_term", "intraday"])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(VALUES, st.sampled_from(sorted(RULES)), st.booleans())
def test_any_value_is_answered_with_a_report(given_value: Any, agent: str, informed: bool) -> None:
    report = ENGINE.detect_faults(agent, given_value, world().truth if informed else None)
    assert report.errors
    assert report.agent_type == agent


@st.composite
def damaged_anywhere(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    agent = draw(st.sampled_from(AGENTS))
    raw = world().raw(agent)
    for _ in range(draw(st.integers(1, 3))):
        node: Any = raw
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = draw(st.sampled_from(keys))
            deeper = isinstance(node[key], (dict, list)) and node[key] and draw(st.booleans())
            if not deeper:
                break
            node = node[key]
        node[key] = draw(VALUES)
    return agent, raw


@settings(max_examples=400)
@given(damaged_anywhere(), st.booleans(), st.booleans())
@example(("news", {**world().raw("news"), "key_events": ["\ud800 source: x"]}), True, False)
@example(("strategist", {**world().raw("strategist"), "entry_target": 1e-300, "stop_loss": 1e300}), True, False)
@example(
    ("fundamental", {**world().raw("fundamental"), "key_metrics": {"revenue": 1e-320, "net_income": 1e308}}),
    False,
    False,
)
def test_an_output_that_is_damaged_anywhere_is_answered_and_every_pointer_is_one(
    damage: tuple[str, dict[str, Any]], informed: bool, as_text: bool
) -> None:
    agent, raw = damage
    given_value = json.dumps(raw, default=str) if as_text and all(isinstance(key, str) for key in raw) else raw
    report = ENGINE.detect_faults(agent, given_value, world().truth if informed else None)
    json.dumps([[dict(error.evidence), error.corrected] for error in report.errors], allow_nan=False)
    assert all(error.location == "" or error.location.startswith("/") for error in report.errors)
    assert {error.category for error in report.errors} <= set(CATALOGUE)
    again = ENGINE.detect_faults(agent, given_value, world().truth if informed else None)
    assert found(again) == found(report)


def test_a_headline_cut_from_a_long_article_of_several_lines_is_no_hallucination() -> None:
    text = (
        "Apple beats estimates\nas iPhone sales rise to a record. " + "More words follow on services and margins. " * 50
    )
    snapshot = make_snapshot(make_bars(seed=49), news=[make_news(text, 2.0, tickers=("AAPL",))])
    there = build_world(snapshot)
    assert there.outputs["news"].abstained is False
    assert found(ENGINE.detect_faults("news", there.outputs["news"], there.truth)) == []


@pytest.mark.parametrize("agent", ["news", "technical", "fundamental", "strategist"])
def test_an_output_cannot_make_the_future_its_past_by_stating_a_later_time(agent: str) -> None:
    raw = world().raw(agent)
    tomorrow = later(days=1)
    raw["as_of"] = later(days=2)
    raw["evidence"] = [{**raw["evidence"][0], "available_at": tomorrow}, *raw["evidence"][1:]]
    report = ENGINE.detect_faults(agent, raw, world().truth)
    assert ("invalid_value", "/as_of") in found(report)
    assert ("hallucination", "/evidence/0/available_at") in found(report)


@pytest.mark.parametrize("agent", ["news", "technical", "fundamental", "strategist"])
def test_an_output_on_another_symbol_than_its_snapshot_is_wrong_in_that_field_alone(agent: str) -> None:
    report = ENGINE.detect_faults(agent, {**world().raw(agent), "symbol": "XOM"}, world().truth)
    assert found(report) == [("invalid_value", "/symbol")]
    assert report.errors[0].corrected == "AAPL"
