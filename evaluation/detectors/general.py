"""Rules that hold for every agent: completeness, consistency, confidence, derived figures, horizons.

Run after the agent's own rules, which know better what is the cause where one wrong field breaks several rules.
"""

from __future__ import annotations

from datetime import UTC
from typing import Any

from data_pipeline.indicators import WINDOWS
from evaluation.detectors.case import Case, differs, evidence_name, letters
from evaluation.detectors.evidence import FILED_KINDS
from utils.schema import direction

LEAST_LETTERS = 50
LEAST_INDICATORS = 3
CLEAR_SENTIMENT = 0.5
CERTAIN, UNSURE = 0.9, 0.5
LEAST_EVIDENCE = 2
PARTS_TOLERANCE = 0.01
CLEAR_LEAN = 0.1
"""|sum| of the votes below which they witness for no side."""

SHORT_WINDOW = 20
"""Bars up to which a window says nothing about months."""

SEED_PRICE_SHARE = 1e-3
"""Averages that start at different bars still differ by as much, as a share of the price."""

_VALUATION = {"undervalued": 1, "overvalued": -1}
_OF_SIDE = {"signal": {1: "buy", -1: "sell"}, "valuation": {1: "undervalued", -1: "overvalued"}}
_WITHOUT_DIRECTION = frozenset(("volume", "volatility"))
_SIDE_WORDS = {1: "the buy side or hold", -1: "the sell side or hold"}
_DERIVED = ("profit_margin", "revenue_growth", "earnings_growth")


def incomplete_analysis(case: Case) -> None:
    """Report short reasoning, too few indicators, no key factors."""
    output = case.output
    if case.agent_type != "news" and "reasoning" not in case.broken and not letters(output.reasoning, LEAST_LETTERS):
        count = sum(map(str.isalpha, output.reasoning))
        case.report(
            "incomplete_analysis", "/reasoning", f"the reasoning has {count} letters",
            found=count, expected=f"at least {LEAST_LETTERS} letters",
        )  # fmt: skip
    indicators = output.__dict__.get("indicators")
    if indicators is not None and "indicators" not in case.broken and len(indicators) < LEAST_INDICATORS:
        case.report(
            "incomplete_analysis", "/indicators", f"{len(indicators)} indicators are given",
            found=len(indicators), expected=f"at least {LEAST_INDICATORS} indicators",
            corrected=case.facts.indicators if case.facts and case.facts.indicators else None,
        )  # fmt: skip
    if case.agent_type == "strategist" and "key_factors" not in case.broken and not output.key_factors:
        text = "no key factor is named"
        case.report("incomplete_analysis", "/key_factors", text, found=0, expected="the factors that decided")


def contradictory(case: Case) -> None:
    """Report a side against the output's own words, and an abstention that has a side or a size."""
    output = case.output
    if output.abstained:
        _abstention(case)
        return
    side = case.side
    if not side:
        return
    signal, valuation = output.__dict__.get("signal", "hold"), output.__dict__.get("valuation", "")
    for field, stated, against, witness in (
        ("signal", signal, direction(signal), _lean_of_signals),
        ("valuation", valuation, _VALUATION.get(valuation, 0), _lean_of_valuation),
    ):
        if against * side < 0 and field not in case.broken:
            if witness(case) * side > 0:
                _should_be(case, field, stated, side)
            else:
                _stands_against(case, field, stated, against)
    # the articles' sentiment where the stated one has been found wrong
    score = case.scratch.get("sentiment", output.__dict__.get("sentiment_score", 0.0))
    if score * side < 0 and abs(score) > CLEAR_SENTIMENT and "sentiment_score" not in case.broken:
        _stands_against(case, "sentiment_score", score, 1 if score > 0 else -1)


def _lean_of_signals(case: Case) -> float:
    """Return which way the votes lean that have a direction, 0 where they hardly do."""
    votes = [vote for name, vote in case.output.signals.items() if name not in _WITHOUT_DIRECTION]
    lean = sum(votes) if "signals" not in case.broken else 0.0
    return lean if abs(lean) > CLEAR_LEAN else 0.0


def _lean_of_valuation(case: Case) -> float:
    return case.facts.valuation_lean if case.facts else 0.0


def _should_be(case: Case, field: str, stated: str, side: int) -> None:
    """Report a word that both the recommendation and what it rests on stand against."""
    right = _OF_SIDE[field][side]
    case.report(
        "contradictory", f"/{field}", f"the {field} {stated} stands against the {case.output.recommendation}",
        found=stated, expected=right, against="/recommendation", corrected=right,
    )  # fmt: skip


def _stands_against(case: Case, field: str, stated: Any, against: int) -> None:
    recommendation = case.output.recommendation
    case.report(
        "contradictory", "/recommendation", f"{recommendation} stands against the {field} {stated}",
        found=recommendation, expected=_SIDE_WORDS[against], against=f"/{field}",
        corrected="buy" if against > 0 else "sell",
    )  # fmt: skip


def _abstention(case: Case) -> None:
    raw = case.raw or {}
    stated = raw.get("recommendation", raw.get("decision"))
    stated = stated if isinstance(stated, str) and direction(stated) else case.output.recommendation
    if direction(stated):
        text = f"an abstention recommends {stated}"
        case.report("contradictory", "/recommendation", text, found=stated, expected="hold", corrected="hold")
    size = case.output.__dict__.get("position_size", 0.0)
    if size > 0:
        text = f"an abstention has the size {size:.4g}"
        case.report("contradictory", "/position_size", text, found=size, expected=0.0, corrected=0.0)


def wrong_recommendation(case: Case) -> None:
    """Report a side against the expected return or against the known right call."""
    output, side = case.output, case.side
    right = direction(case.truth.recommendation) if isinstance(case.truth.recommendation, str) else 0
    expected = output.__dict__.get("expected_return")
    if expected is None and not right:
        case.skip("wrong_recommendation", "neither an expected return nor the right call is known")
    if right * side < 0:
        case.report(
            "wrong_recommendation", "/recommendation", f"{output.recommendation} where {case.truth.recommendation} was right",
            found=output.recommendation, expected=case.truth.recommendation, corrected=case.truth.recommendation,
        )  # fmt: skip
    if not side or not expected or expected * side > 0 or case.found_at("/recommendation"):
        return
    text = f"{output.recommendation} with an expected return of {expected:.4g}"
    others = case.scratch.get("side_votes", ())
    if others and all(vote == side for vote in others):
        # levels and consensus bear the side out, so the expectation has the wrong sign
        case.report(
            "wrong_recommendation", "/expected_return", text, found=expected, expected=-expected, corrected=-expected
        )
    else:
        word = "buy" if expected > 0 else "sell"
        case.report(
            "wrong_recommendation", "/recommendation", text,
            found=output.recommendation, expected=_SIDE_WORDS[-side], corrected=word,
        )  # fmt: skip


def inappropriate_confidence(case: Case) -> None:
    """Report certainty on too little evidence, and a position without conviction."""
    output = case.output
    confidence = output.confidence
    if confidence > CERTAIN and "evidence" not in case.broken and len(output.evidence) < LEAST_EVIDENCE:
        case.report(
            "inappropriate_confidence", "/confidence",
            f"confidence {confidence:.3g} on {len(output.evidence)} pieces of evidence",
            found=confidence, expected=f"at most {CERTAIN}",
        )  # fmt: skip
    size = output.__dict__.get("position_size", 0.0)
    if confidence < UNSURE and case.side and size > 0 and not case.broken & {"recommendation", "position_size"}:
        case.report(
            "inappropriate_confidence", "/confidence", f"confidence {confidence:.3g} with a {output.recommendation}",
            found=confidence, expected=f"at least {UNSURE}, or hold without a size",
        )  # fmt: skip


def calculation_error(case: Case) -> None:
    """Report derived figures that are off their parts."""
    if case.agent_type == "technical" and "indicators" not in case.broken:
        _macd(case)
    elif case.agent_type == "fundamental" and "key_metrics" not in case.broken:
        for name in _DERIVED:
            _derived(case, name)


def _macd(case: Case) -> None:
    """Hold MACD against its averages where nothing better is known to hold it against."""
    stated = case.output.indicators
    if (case.facts and case.facts.indicators) or not {"macd", "ema_12", "ema_26"} <= stated.keys():
        return
    right = stated["ema_12"] - stated["ema_26"]
    if differs(stated["macd"], right, PARTS_TOLERANCE, SEED_PRICE_SHARE * abs(stated["ema_26"])):
        text = f"MACD {stated['macd']:.6g} is not the difference {right:.6g} of its averages"
        case.report(
            "calculation_error",
            "/indicators/macd",
            text,
            found=stated["macd"],
            expected=right,
            corrected=round(right, 6),
        )


def _derived(case: Case, name: str) -> None:
    metrics = case.output.key_metrics
    value = metrics.get(name)
    at = f"/key_metrics/{name}"
    if value is None or case.found_at(at):
        return
    right = case.facts.filed_value(name) if case.facts else None
    if right is None and name == "profit_margin":
        revenue, income = (
            (case.facts.filed_value(part) if case.facts else None) or metrics.get(part)
            for part in ("revenue", "net_income")
        )
        right = income / revenue if revenue and income is not None else None
    if right is not None and differs(value, right, PARTS_TOLERANCE, 1e-6):
        text = f"{name} is {right:.6g} by its parts, not {value:.6g}"
        case.report("calculation_error", at, text, found=value, expected=right, corrected=right)


def timeframe_mismatch(case: Case) -> None:
    """Report a short horizon on filings only and a long one on short windows only."""
    horizon, evidence = case.output.__dict__.get("time_horizon"), case.output.evidence
    if horizon is None or not evidence:
        return
    if horizon in ("intraday", "short_term") and all(item.kind in FILED_KINDS for item in evidence):
        text = f"a {horizon} horizon rests on filings only"
        case.report(
            "timeframe_mismatch", "/time_horizon", text, found=horizon, expected="medium_term", corrected="medium_term"
        )
    elif horizon == "long_term" and all(
        item.kind == "price"
        or item.id.startswith("bar:")
        or WINDOWS.get(evidence_name(item), SHORT_WINDOW + 1) <= SHORT_WINDOW
        for item in evidence
    ):
        text = f"a long horizon rests on windows of at most {SHORT_WINDOW} bars"
        case.report(
            "timeframe_mismatch", "/time_horizon", text, found=horizon, expected="short_term", corrected="short_term"
        )


def events_to_come(case: Case) -> None:
    """Report events that are dated after the decision."""
    for i, event in enumerate(getattr(case.output, "key_events", ())):
        published = event.published_at if event.published_at.tzinfo else event.published_at.replace(tzinfo=UTC)
        if published > case.output.as_of:
            article = case.facts.news_by_id.get(event.evidence_id) if case.facts else None
            case.report(
                "hallucination", f"/key_events/{i}/published_at", "the event is dated after the decision",
                found=published, expected=f"at most {case.output.as_of.isoformat()}",
                corrected=article.event_time if article else None, sub_code="look_ahead",
            )  # fmt: skip
