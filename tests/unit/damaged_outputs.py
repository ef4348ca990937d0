"""Damages to clean outputs: what is changed in one field, and the one finding that it has to give.

The detectors' tests go through the table; every category that code decides is in it or has a test of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from examined_outputs import AS_OF, world

from utils.schema import PortfolioState

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
    "a report that nobody knows": Damage(
        "strategist",
        {"/evidence": lambda old: [*old, {**old[0], "id": "rating:upgrade", "kind": "analyst_rating"}]},
        [("hallucination", "/evidence/11/id")],
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
    "a target below nothing": Damage(
        "fundamental", {"/price_target": -3.0}, [("valuation_calculation_error", "/price_target")]
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
