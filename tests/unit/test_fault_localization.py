"""Fault localisation: one damaged field is one finding at that field, a clean output is none, and nothing ever raises."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import pytest
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
Found = list[tuple[str, str]]


class Damage(NamedTuple):
    """What is changed in a clean output (and in the truth), and what has to be found.

    Changes are values, functions of the old value, or `...` for taking out.
    """

    agent: str
    changes: Mapping[str, Any]
    found: Found
    truth: Mapping[str, Any] = {}
    sub_code: str | None = None
    repaired: bool = False


def times(factor: float) -> Callable[[float], float]:
    return lambda value: value * factor


def later(**units: float) -> str:
    return (AS_OF + timedelta(**units)).isoformat()


def peer(sector: str | None, tickers: tuple[str, ...]) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    item = {
        "id": "peer:pe_ratio", "kind": "peer", "value": 11.0, "event_time": later(days=-1), "available_at": later(days=-1),
        "source": "peers", "sector": sector, "tickers": tickers,
    }  # fmt: skip
    return lambda evidence: [*evidence, item]


def add(*entries: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda old: [*old, *entries]


def only_filed(evidence: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in evidence if item["kind"] == "filing"]


def short_only(evidence: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in evidence if item["id"] in ("bar:close", "ind:rsi_14", "ind:atr_14")]


ALL_OLD = {f"/key_events/{i}/published_at": later(days=-12 - i) for i in range(3)}

DAMAGES: dict[str, Damage] = {
    # general
    "an unknown article": Damage("news", {"/evidence/1/id": "deadbeef"}, [("hallucination", "/evidence/1/id")]),
    "an unknown indicator as evidence": Damage(
        "technical", {"/evidence/2/id": "ind:magic", "/indicators/macd": ...}, [("hallucination", "/evidence/2/id")]
    ),
    "a filing that was never filed": Damage(
        "strategist", {"/evidence/1/id": "AAPL-2019-03-31:eps"}, [("hallucination", "/evidence/1/id")]
    ),
    "evidence of tomorrow": Damage(
        "news", {"/evidence/0/available_at": later(hours=5)}, [("hallucination", "/evidence/0/available_at")],
        sub_code="look_ahead", repaired=True,
    ),
    "an event of tomorrow": Damage(
        "news", {"/key_events/0/published_at": later(hours=5)}, [("hallucination", "/key_events/0/published_at")],
        sub_code="look_ahead", repaired=True,
    ),
    "a wrong price": Damage(
        "technical", {"/evidence/0/value": times(1.03)}, [("data_inaccuracy", "/evidence/0/value")], repaired=True
    ),
    "a wrong current price": Damage(
        "technical", {"/current_price": times(1.2)}, [("data_inaccuracy", "/current_price")], repaired=True
    ),
    "percent for a fraction": Damage(
        "fundamental", {"/evidence/7/value": times(100)}, [("data_inaccuracy", "/evidence/7/value")],
        sub_code="units", repaired=True,
    ),
    "euros": Damage(
        "technical", {"/evidence/0/unit": "EUR"}, [("data_inaccuracy", "/evidence/0/unit")],
        sub_code="currency", repaired=True,
    ),
    "a price before a split": Damage(
        "strategist", {"/evidence/0/value": times(7)}, [("data_inaccuracy", "/evidence/0/value")],
        sub_code="split", repaired=True,
    ),
    "the price of last week": Damage(
        "strategist", {"/evidence/0/value": float(round(world().snapshot.bars.close[-14], 4))},
        [("data_inaccuracy", "/evidence/0/value")], sub_code="stale", repaired=True,
    ),
    "an old date": Damage(
        "technical", {"/evidence/3/event_time": later(days=-9)}, [("data_inaccuracy", "/evidence/3/event_time")],
        sub_code="stale", repaired=True,
    ),
    "a misquoted article": Damage(
        "news", {"/evidence/0/value": "shares collapse after a record loss"}, [("data_inaccuracy", "/evidence/0/value")],
        repaired=True,
    ),
    "no article cited": Damage("news", {"/evidence": []}, [("missing_data", "/evidence")]),
    "no indicator cited": Damage("technical", {"/evidence": []}, [("missing_data", "/evidence")]),
    "no filing cited": Damage("fundamental", {"/evidence": []}, [("missing_data", "/evidence")]),
    "nothing cited": Damage("strategist", {"/evidence": []}, [("missing_data", "/evidence")]),
    "reasoning of a word": Damage("technical", {"/reasoning": "Buy."}, [("incomplete_analysis", "/reasoning")]),
    "no reasoning": Damage("fundamental", {"/reasoning": ...}, [("incomplete_analysis", "/reasoning")]),
    "two indicators": Damage(
        "technical",
        {"/indicators": lambda old: {name: old[name] for name in ("rsi_14", "macd")}},
        [("incomplete_analysis", "/indicators")], repaired=True,
    ),
    "no key factor": Damage("strategist", {"/key_factors": []}, [("incomplete_analysis", "/key_factors")]),
    "a sale against the signal": Damage(
        "technical", {"/recommendation": "sell"}, [("contradictory", "/recommendation")], repaired=True
    ),
    "a sale of the undervalued": Damage(
        "fundamental", {"/recommendation": "strong_sell"}, [("contradictory", "/recommendation")], repaired=True
    ),
    "a sale on good news": Damage(
        "news", {"/recommendation": "sell"}, [("contradictory", "/recommendation")], repaired=True
    ),
    "an abstention with a side": Damage(
        "technical", {"/abstained": True, "/abstain_reason": "unsure"}, [("contradictory", "/recommendation")],
        repaired=True,
    ),
    "an abstention with a size": Damage(
        "strategist", {"/abstained": True, "/abstain_reason": "unsure", "/recommendation": "hold"},
        [("contradictory", "/position_size")], repaired=True,
    ),
    "an indicator without evidence": Damage(
        "technical", {"/evidence": lambda old: [e for e in old if e["id"] != "ind:obv"]},
        [("unsupported_claim", "/indicators/obv")],
    ),
    "a metric against its evidence": Damage(
        "fundamental", {"/key_metrics/current_ratio": times(1.3)}, [("unsupported_claim", "/key_metrics/current_ratio")],
        repaired=True,
    ),
    "a percentage out of nowhere": Damage(
        "fundamental", {"/reasoning": lambda old: f"{old} Sales will rise by 37.9% next year."},
        [("unsupported_claim", "/reasoning")],
    ),
    "an amount out of nowhere": Damage(
        "news", {"/reasoning": lambda old: f"{old} A fine of $43.5 billion is possible."},
        [("unsupported_claim", "/reasoning")],
    ),
    "a side against the expectation": Damage(
        "strategist", {"/recommendation": "sell"}, [("wrong_recommendation", "/recommendation")], repaired=True
    ),
    "an expectation against the side": Damage(
        "strategist", {"/expected_return": times(-1)}, [("wrong_recommendation", "/expected_return")], repaired=True
    ),
    "not the right call": Damage(
        "news", {}, [("wrong_recommendation", "/recommendation")], truth={"recommendation": "strong_sell"}
    ),
    "certainty on one indicator": Damage(
        "news", {"/confidence": 0.97, "/evidence": lambda old: old[:1]}, [("inappropriate_confidence", "/confidence")]
    ),
    "a position without conviction": Damage(
        "strategist", {"/confidence": 0.3}, [("inappropriate_confidence", "/confidence")]
    ),
    "no risk named": Damage(
        "strategist", {"/risk_assessment": "none"}, [("missing_risk_assessment", "/risk_assessment")]
    ),
    "no risk assessment at all": Damage(
        "strategist", {"/risk_assessment": ...}, [("missing_risk_assessment", "/risk_assessment")]
    ),
    "a wrong margin": Damage(
        "fundamental", {"/key_metrics/profit_margin": times(1.4)}, [("calculation_error", "/key_metrics/profit_margin")],
        repaired=True,
    ),
    "a wrong growth": Damage(
        "fundamental", {"/key_metrics/revenue_growth": times(0.5)}, [("calculation_error", "/key_metrics/revenue_growth")],
        repaired=True,
    ),
    "an unknown indicator": Damage(
        "technical", {"/indicators/magic_9": 1.0}, [("indicator_misuse", "/indicators/magic_9")],
    ),
    "days on filings": Damage(
        "strategist", {"/evidence": only_filed}, [("timeframe_mismatch", "/time_horizon")], repaired=True
    ),
    "years on two weeks": Damage(
        "strategist", {"/evidence": short_only, "/time_horizon": "long_term"}, [("timeframe_mismatch", "/time_horizon")],
        repaired=True,
    ),
    "a percentage as confidence": Damage(
        "news", {"/confidence": "66 %"}, [("formatting_error", "/confidence")], repaired=True
    ),
    "a time without a zone": Damage(
        "fundamental", {"/as_of": "2014-06-02T20:00:00"}, [("formatting_error", "/as_of")], repaired=True
    ),
    "an event's time without a zone": Damage(
        "news", {"/key_events/0/published_at": "2014-06-02T17:00:00"}, [("formatting_error", "/key_events/0/published_at")],
        repaired=True,
    ),
    "a control character": Damage(
        "strategist", {"/key_factors": add("fear\x07")}, [("formatting_error", "/key_factors/3")], repaired=True
    ),
    "no confidence": Damage("technical", {"/confidence": ...}, [("missing_field", "/confidence")]),
    "no recommendation": Damage("fundamental", {"/recommendation": None}, [("missing_field", "/recommendation")]),
    "no time": Damage("news", {"/as_of": ...}, [("missing_field", "/as_of")]),
    "no symbol": Damage("strategist", {"/symbol": None}, [("missing_field", "/symbol")]),
    "no trend": Damage("technical", {"/trend": ...}, [("missing_field", "/trend")]),
    "no price": Damage("technical", {"/current_price": None}, [("missing_field", "/current_price")]),
    "confidence beyond one": Damage("news", {"/confidence": 1.3}, [("invalid_value", "/confidence")]),
    "an invented recommendation": Damage("strategist", {"/recommendation": "maybe"}, [("invalid_value", "/recommendation")]),
    "an infinite indicator": Damage("technical", {"/indicators/obv": float("inf")}, [("invalid_value", "/indicators/obv")]),
    "a signal beyond one": Damage("fundamental", {"/signals/growth": 3.0}, [("invalid_value", "/signals/growth")]),
    # news
    "the opposite sentiment": Damage(
        "news", {"/sentiment_score": times(-1)}, [("sentiment_miscalculation", "/sentiment_score")], repaired=True
    ),
    "sentiment far from the mean": Damage(
        "news", {"/sentiment_score": 0.4}, [("sentiment_miscalculation", "/sentiment_score")], repaired=True
    ),
    "old events": Damage("news", ALL_OLD, [("outdated_news", "/key_events/0/published_at")]),
    "an event without an article": Damage(
        "news", {"/key_events/1/evidence_id": "0123456789abcdef"}, [("news_hallucination", "/key_events/1/evidence_id")]
    ),
    "an event that no article tells": Damage(
        "news", {"/key_events/2/headline": "regulator approves the merger with a rival"},
        [("news_hallucination", "/key_events/2/headline")], repaired=True,
    ),
    "an event without a source": Damage(
        "news", {"/key_events/0/source": " "}, [("missing_source", "/key_events/0/source")], repaired=True
    ),
    "an event whose source is left out": Damage(
        "news", {"/key_events/1/source": ...}, [("missing_source", "/key_events/1/source")], repaired=True
    ),
    "sentiment without a word": Damage(
        "news", {"/reasoning": "Good news."}, [("sentiment_justification_missing", "/reasoning")]
    ),
    "a strong score without events": Damage("news", {"/key_events": []}, [("wrong_event_impact", "/key_events")]),
    "an impact against the score": Damage(
        "news", {"/price_impact": "bearish"}, [("wrong_event_impact", "/price_impact")], repaired=True
    ),
    "another company's tags": Damage(
        "news", {"/evidence/0/tickers": ["MSFT"]}, [("conflating_companies", "/evidence/0/tickers")], repaired=True
    ),
    # technical
    "RSI beyond a hundred": Damage(
        "technical", {"/indicators/rsi_14": 123.0}, [("indicator_calculation_error", "/indicators/rsi_14")], repaired=True
    ),
    "a wrong average": Damage(
        "technical", {"/indicators/sma_50": times(1.08)}, [("indicator_calculation_error", "/indicators/sma_50")],
        repaired=True,
    ),
    "an overbought RSI that is not there": Damage(
        "technical", {"/indicators/rsi_14": 78.0}, [("indicator_calculation_error", "/indicators/rsi_14")], repaired=True
    ),
    "hourly bars among daily ones": Damage(
        "technical", {"/evidence/4/bar_interval": "1h"}, [("timeframe_confusion", "/evidence/4/bar_interval")],
        repaired=True,
    ),
    "a support above the price": Damage(
        "technical", {"/support_levels/0": times(1.25)}, [("support_resistance_hallucination", "/support_levels/0")]
    ),
    "a resistance where no bar has been": Damage(
        "technical", {"/resistance_levels": add(900.0)},
        [("support_resistance_hallucination", "/resistance_levels/1")],
    ),
    "a pattern that is not there": Damage(
        "technical", {"/patterns": ["Morning Star"]}, [("pattern_misidentification", "/patterns/0")]
    ),
    # fundamental
    "a P/E of thousands": Damage(
        "fundamental", {"/key_metrics/pe_ratio": 2400.0}, [("valuation_calculation_error", "/key_metrics/pe_ratio")],
        repaired=True,
    ),
    "a P/E off its parts": Damage(
        "fundamental", {"/key_metrics/pe_ratio": times(1.2)}, [("valuation_calculation_error", "/key_metrics/pe_ratio")],
        repaired=True,
    ),
    "a target of nine times the price": Damage(
        "fundamental", {"/price_target": times(9)}, [("valuation_calculation_error", "/price_target")]
    ),
    "a negative P/E": Damage(
        "fundamental", {"/key_metrics/pe_ratio": -8.0},
        [("financial_ratio_misinterpretation", "/key_metrics/pe_ratio")], repaired=True,
    ),
    "earnings that nobody filed": Damage(
        "fundamental", {"/key_metrics/net_income": times(2)}, [("earnings_hallucination", "/key_metrics/net_income")],
        repaired=True,
    ),
    "half the debt": Damage(
        "fundamental", {"/key_metrics/debt_to_equity": times(0.5)},
        [("debt_analysis_error", "/key_metrics/debt_to_equity")], repaired=True,
    ),
    "growth of four hundred per cent": Damage(
        "fundamental", {"/key_metrics/revenue_growth": 4.0},
        [("growth_projection_unrealistic", "/key_metrics/revenue_growth")], repaired=True,
    ),
    "a peer of another sector": Damage(
        "fundamental", {"/evidence": peer("energy", ("XOM",))}, [("sector_comparison_invalid", "/evidence/13/sector")]
    ),
    "a peer known to be of another sector": Damage(
        "fundamental", {"/evidence": peer(None, ("XOM",))}, [("sector_comparison_invalid", "/evidence/13/tickers")]
    ),
    "no metric": Damage("fundamental", {"/key_metrics": {}}, [("missing_key_metric", "/key_metrics")], repaired=True),
    "no debt among the metrics": Damage(
        "fundamental", {"/key_metrics/debt_to_equity": ...}, [("missing_key_metric", "/key_metrics/debt_to_equity")],
        repaired=True,
    ),
    # strategist
    "a third of equity": Damage(
        "strategist", {"/position_size": 0.33}, [("position_size_inappropriate", "/position_size")], repaired=True
    ),
    "a buy turned into a hold that keeps its size": Damage(
        "strategist", {"/recommendation": "hold"}, [("position_size_inappropriate", "/position_size")], repaired=True
    ),
    "no stop": Damage("strategist", {"/stop_loss": None}, [("stop_loss_missing", "/stop_loss")], repaired=True),
    "a target below the entry": Damage(
        "strategist", {"/take_profit": times(0.8)}, [("take_profit_unrealistic", "/take_profit")], repaired=True
    ),
    "a target out of reach": Damage(
        "strategist", {"/take_profit": times(1.6)}, [("take_profit_unrealistic", "/take_profit")], repaired=True
    ),
    "a stop above the entry": Damage(
        "strategist", {"/stop_loss": times(1.1)}, [("risk_reward_miscalculation", "/stop_loss")], repaired=True
    ),
    "a flattering ratio": Damage(
        "strategist", {"/risk_reward_ratio": times(1.5)}, [("risk_reward_miscalculation", "/risk_reward_ratio")],
        repaired=True,
    ),
    "more than the cash": Damage(
        "strategist", {}, [("portfolio_context_ignored", "/position_size")],
        truth={"portfolio": PortfolioState(1e5, 1e3)}, repaired=True,
    ),
    "an entry far from the price": Damage(
        "strategist", {"/entry_target": times(1.3)}, [("timing_inappropriate", "/entry_target")], repaired=True
    ),
    "intraday at night": Damage(
        "strategist", {"/time_horizon": "intraday"},
        [("timing_inappropriate", "/time_horizon")], repaired=True,
    ),
}  # fmt: skip


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


def plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


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
    put(raw, error.location, plain(error.corrected))
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


def conflict() -> Any:
    bad = [
        make_news(text, hours)
        for text, hours in (
            ("shares plunge on fraud probe", 2),
            ("analysts downgrade after weak sales", 5),
            ("company misses estimates and cuts jobs", 9),
        )
    ]
    return build_world(make_snapshot(make_bars(seed=49, drift=0.001), news=bad, filings=quarterly_filings()))


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
    bad = [
        make_news(text, hours)
        for text, hours in (
            ("shares plunge on fraud probe", 2),
            ("analysts downgrade after weak sales", 5),
            ("company misses estimates and cuts jobs", 9),
        )
    ]
    snapshot = make_snapshot(make_bars(seed=3, drift=-0.002), news=bad)
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


def test_numbers_with_units_that_stand_somewhere_are_supported() -> None:
    raw = world().raw("fundamental")
    raw["reasoning"] += (
        f" Margin 20.0%, growth {100 * raw['key_metrics']['revenue_growth']:.1f}%, at {raw['key_metrics']['pe_ratio']}x earnings"
        f" with revenue of ${raw['key_metrics']['revenue'] / 1e9:.2f} billion over the 20-day window."
    )
    assert found(ENGINE.detect_faults("fundamental", raw, world().truth)) == []


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
    assert all(error.location == "" or error.location.startswith("/") for error in report.errors)
    assert {error.category for error in report.errors} <= set(CATALOGUE)
    again = ENGINE.detect_faults(agent, given_value, world().truth if informed else None)
    assert found(again) == found(report)
