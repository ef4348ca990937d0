"""Faults of form, for every agent: numbers as text, times without a zone, fields that are absent, of a wrong type or range.

Listed in `registry`. Tables of fields and wrong values; what the wrong form says is otherwise what the sound output said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from evaluation.fault_injection.model import ABSENT, ALL_AGENTS, Case, Mutant, operators
from utils.json_pointer import get, join

_FRACTIONS = ("/confidence", "/financial_health", "/growth_quality", "/position_size")
_NUMBERS = (
    "/confidence", "/sentiment_score", "/current_price", "/financial_health", "/growth_quality", "/price_target",
    "/position_size", "/entry_target", "/stop_loss", "/take_profit", "/expected_return", "/risk_reward_ratio",
)  # fmt: skip
_WORDS = {"buy": "bullish", "sell": "bearish", "hold": "neutral"}
_TEXTS = ("/reasoning", "/risk_assessment")
_CONTROLS = "\x00\x07\x08\x1b\x7f"
_REQUIRED = ("/symbol", "/as_of", "/recommendation", "/confidence", "/current_price")
_PARTS = (
    ("evidence", ("id", "kind", "value", "event_time", "available_at", "source")),
    ("key_events", ("headline", "published_at", "evidence_id")),
)

_RANGES: dict[str, tuple[Any, ...]] = {
    "/confidence": (1.01, 1.7, 66.0, -0.2, 85),
    "/sentiment_score": (2.2, 3.5, -4.0, 72.0, -2.01),
    "/financial_health": (1.05, 8.5, -0.3),
    "/growth_quality": (1.2, 70.0, -0.1),
    "/position_size": (-0.05, -0.5),
    "/current_price": (0.0, -12.5),
    "/entry_target": (0.0, -40.0),
    "/stop_loss": (-5.0, 0.0),
    "/take_profit": (-5.0, 0.0),
    "/risk_reward_ratio": (-2.0, -0.1),
    "/latency_s": (-1.0,),
    "/cost_usd": (-0.01,),
}
_WRONG_WORDS: dict[str, tuple[str, ...]] = {
    "/recommendation": ("accumulate", "outperform", "long", "strong buy!"),
    "/signal": ("long", "accumulate", "up"),
    "/trend": ("bull", "rising", "up"),
    "/momentum": ("very strong", "positive"),
    "/valuation": ("cheap", "fair", "slightly_undervalued"),
    "/price_impact": ("positive", "up", "mixed"),
    "/time_horizon": ("swing", "2 weeks", "mid"),
}
_WRONG_TYPES: dict[str, tuple[Any, ...]] = {
    "/confidence": ("high", [0.7], {"value": 0.7}),
    "/sentiment_score": ("very positive", [1.0]),
    "/current_price": ("about a hundred", [101.0]),
    "/indicators": ([61.4, 1.2], "see chart"),
    "/key_metrics": ([12.1], "see filing"),
    "/key_factors": ("momentum and value", 3),
    "/patterns": ("hammer", 7),
    "/evidence": ("bars", {"id": "x"}),
    "/position_size": ("small", [0.1]),
    "/as_of": ("yesterday", "2014-13-45T20:00:00Z", []),
    "/abstained": ("no", 0.5),
}


def _number_as_text(case: Case) -> Mutant | None:
    value = None
    pointer = _present(case, [*_NUMBERS, *_nested_numbers(case)])
    if pointer is not None:
        value = get(case.output, pointer)
    if pointer is None or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return case.mutant(pointer, {pointer: repr(value)})


def _fraction_as_percentage(case: Case) -> Mutant | None:
    pointer = _present(case, _FRACTIONS)
    if pointer is None:
        return None
    percent = f"{100 * get(case.output, pointer):.10g}"
    return case.mutant(pointer, {pointer: percent + case.rng.choice(("%", " %", "/100"))})


def _tone_for_a_recommendation(case: Case) -> Mutant | None:
    """Say bullish, bearish or neutral where buy, sell or hold is asked for."""
    places = [p for p in ("/recommendation", "/signal") if get(case.output, p) in _WORDS]
    if not places:
        return None
    pointer = case.rng.choice(places)
    return case.mutant(pointer, {pointer: _WORDS[get(case.output, pointer)]})


def _control_character(case: Case) -> Mutant | None:
    pointer = _present(case, _TEXTS)
    text = get(case.output, pointer) if pointer else ""
    if pointer is None or not text:
        return None
    at = case.rng.randrange(len(text))
    return case.mutant(pointer, {pointer: text[:at] + case.rng.choice(_CONTROLS) + text[at:]})


def _time_without_zone(case: Case) -> Mutant | None:
    places = ["/as_of"]
    places += [join("evidence", i, "event_time") for i in range(len(case.output.get("evidence") or []))][:2]
    places += [join("key_events", i, "published_at") for i in range(len(case.output.get("key_events") or []))]
    pointer = case.rng.choice(places)
    text = str(get(case.output, pointer))
    return case.mutant(
        pointer, {pointer: text.removesuffix("Z").removesuffix("+00:00")}, consequences=("invalid_value",)
    )


def _event_as_text(case: Case) -> Mutant | None:
    events = case.output.get("key_events") or []
    if not events:
        return None
    index = case.rng.randrange(len(events))
    pointer, event = join("key_events", index), events[index]
    text = f"{event['headline']} (source: {event['source']})"
    return case.mutant(pointer, {pointer: text}, consequences=("news_hallucination",))


def _field_absent(case: Case) -> Mutant | None:
    pointer = _present(case, _REQUIRED)
    return None if pointer is None else case.mutant(pointer, {pointer: ABSENT}, consequences=("invalid_value",))


def _field_null(case: Case) -> Mutant | None:
    pointer = _present(case, _REQUIRED)
    return None if pointer is None else case.mutant(pointer, {pointer: None}, consequences=("invalid_value",))


def _part_absent(case: Case) -> Mutant | None:
    """Leave out a required field of an evidence item or event."""
    field, names = case.rng.choice(_PARTS)
    items = case.output.get(field) or []
    if not items:
        return None
    pointer = join(field, case.rng.randrange(len(items)), case.rng.choice(names))
    return case.mutant(pointer, {pointer: ABSENT}, consequences=("news_hallucination", "hallucination"))


def _out_of_range(case: Case) -> Mutant | None:
    pointer = _present(case, list(_RANGES))
    if pointer is None:
        return None
    return case.mutant(pointer, {pointer: case.rng.choice(_RANGES[pointer])}, consequences=_SEMANTIC)


def _word_outside_the_vocabulary(case: Case) -> Mutant | None:
    pointer = _present(case, list(_WRONG_WORDS))
    if pointer is None:
        return None
    return case.mutant(pointer, {pointer: case.rng.choice(_WRONG_WORDS[pointer])})


def _wrong_type(case: Case) -> Mutant | None:
    pointer = _present(case, list(_WRONG_TYPES))
    if pointer is None:
        return None
    return case.mutant(pointer, {pointer: case.rng.choice(_WRONG_TYPES[pointer])}, consequences=("missing_field",))


def _not_finite(case: Case) -> Mutant | None:
    pointer = _present(case, [*_NUMBERS, *_nested_numbers(case)])
    if pointer is None:
        return None
    return case.mutant(pointer, {pointer: case.rng.choice((math.nan, math.inf, -math.inf))}, consequences=_SEMANTIC)


_SEMANTIC = (
    "stop_loss_missing", "take_profit_unrealistic", "risk_reward_miscalculation", "timing_inappropriate",
    "sentiment_miscalculation", "wrong_event_impact", "indicator_calculation_error", "unsupported_claim",
    "wrong_recommendation", "valuation_calculation_error", "support_resistance_hallucination", "calculation_error",
    "debt_analysis_error", "earnings_hallucination", "missing_key_metric",
)  # fmt: skip
"""A value that is out of range or no number breaks the rules about its meaning as well."""


def _nested_numbers(case: Case) -> list[str]:
    return [join(field, name) for field in ("indicators", "key_metrics") for name in case.output.get(field) or {}]


def _present(case: Case, pointers: Sequence[str]) -> str | None:
    """Return one of the places that hold something, drawn at random."""
    there = [pointer for pointer in pointers if get(case.output, pointer) not in (ABSENT, None)]
    return case.rng.choice(there) if there else None


OPERATORS = (
    *operators(
        "formatting_error", ALL_AGENTS,
        _number_as_text, _fraction_as_percentage, _tone_for_a_recommendation, _control_character, _time_without_zone,
    ),
    *operators("formatting_error", "news", _event_as_text),
    *operators("missing_field", ALL_AGENTS, _field_absent, _field_null, _part_absent),
    *operators("invalid_value", ALL_AGENTS, _out_of_range, _word_outside_the_vocabulary, _wrong_type, _not_finite),
)  # fmt: skip
