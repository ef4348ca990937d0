"""The language that training and inference share for the technical junior: state as text, decision as JSON, and back.

The daemon, the dataset writer, the training child and the local policy all go through these functions, so that a model is
asked in exactly the words it was trained on. Never imports a model library and never looks at an outcome.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from utils.hashing import sha256_hex
from utils.schema import RECOMMENDATIONS, TechnicalOutput

PROMPT_FILE = Path(__file__).parent / "prompts" / "technical_v1.txt"

CITED = ("rsi", "trend")
"""What a decision cites: one number and one word, enough to see whether a model reads the state it was given."""

UNKNOWN = "na"
"""Stands for an indicator that could not be computed; never cited."""

_TREND_WORDS = {"uptrend": "up", "downtrend": "down", "sideways": "flat"}
_FENCE = re.compile(r"^```(?:json)?\s*(.*?)\s*```$", re.DOTALL)

DECISION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "recommendation": {"enum": list(RECOMMENDATIONS)},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "evidence": {"type": "object", "additionalProperties": {"type": ["number", "string"]}},
    },
    "required": ["recommendation", "confidence", "evidence"],
    "additionalProperties": False,
}
"""JSON schema of a decision, for servers that constrain decoding."""


@dataclass(frozen=True, slots=True)
class ParsedDecision:
    """A decision as a model stated it: `confidence` 0..1, `evidence` maps names of the state text to cited values."""

    recommendation: str
    confidence: float
    evidence: Mapping[str, float | str]


class Decided(Protocol):
    """What a training example is made from; a stored trajectory is one."""

    @property
    def market_state(self) -> Mapping[str, Any]:
        """The state with `indicators`, `current_price` and `trend`."""
        ...

    @property
    def recommendation(self) -> str | None:
        """One of the five recommendations."""
        ...

    @property
    def confidence(self) -> float:
        """0..1."""
        ...


def technical_state_text(state: TechnicalOutput | Mapping[str, Any]) -> str:
    """Write a technical state as one line free of scale: equal charts at different prices give equal text.

    Parameters
    ----------
    state : TechnicalOutput or mapping
        A mapping has `indicators` (names of SPEC's TechnicalOutput), `current_price` (USD) and `trend`, as stored with
        a trajectory.

    Returns
    -------
    str
        ``rsi:60 macd:+2 sma20:+1.5 sma50:-2 stoch:75 mfi:55 adx:25 bb:0.6 vol:2.5 trend:up``: oscillators and ADX to
        the nearest 5; macd = MACD minus signal in tenths of an ATR (±9); sma20 and sma50 = price minus average in ATRs
        (steps of 0.5 within ±4.5, and of 1 within ±9); bb = position within the Bollinger bands, 0 lower to 1 upper
        (-0.2..1.2); vol = ATR in percent of price (0..9.5). ``na`` where a number is missing.
    """
    indicators: Mapping[str, Any]
    current: Any
    trend: Any
    if isinstance(state, TechnicalOutput):
        indicators, current, trend = state.indicators, state.current_price, state.trend
    else:
        indicators, current, trend = state.get("indicators") or {}, state.get("current_price"), state.get("trend")
    number = {name: _finite(value) for name, value in indicators.items()}
    price, atr = _finite(current), number.get("atr_14")
    scale = atr if atr is not None and atr > 0 else None

    def in_atrs(value: float | None, reference: float | None, multiple: float = 1.0) -> float | None:
        if value is None or reference is None or scale is None:
            return None
        return (value - reference) / scale * multiple

    low, high = number.get("bb_lower"), number.get("bb_upper")
    within = (price - low) / (high - low) if None not in (price, low, high) and high > low else None  # type: ignore[operator]
    volatility = scale / price * 100 if scale is not None and price is not None and price > 0 else None
    words = (
        ("rsi", _stepped(number.get("rsi_14"), 5, 0, 100)),
        ("macd", _signed(in_atrs(number.get("macd"), number.get("macd_signal"), 10), 1, 9)),
        ("sma20", _signed(in_atrs(price, number.get("sma_20")), 0.5, 4.5)),
        ("sma50", _signed(in_atrs(price, number.get("sma_50")), 1, 9)),
        ("stoch", _stepped(number.get("stoch_k"), 5, 0, 100)),
        ("mfi", _stepped(number.get("mfi_14"), 5, 0, 100)),
        ("adx", _stepped(number.get("adx_14"), 5, 0, 100)),
        ("bb", _stepped(within, 0.1, -0.2, 1.2)),
        ("vol", _stepped(volatility, 0.5, 0, 9.5)),
        ("trend", _TREND_WORDS.get(str(trend), UNKNOWN)),
    )
    return " ".join(f"{name}:{value}" for name, value in words)


def state_values(state_text: str) -> dict[str, str]:
    """Return the names and values that a state text states, without what is unknown."""
    pairs = (word.partition(":") for word in state_text.split())
    return {name: value for name, _, value in pairs if value and value != UNKNOWN}


def cited_evidence(state_text: str) -> dict[str, float | str]:
    """Return the evidence that a truthful decision on this state cites; empty where the state does not hold it."""
    stated = state_values(state_text)
    return {name: _value(stated[name]) for name in CITED if name in stated}


def encode_decision(recommendation: str, confidence: float, evidence: Mapping[str, float | str]) -> str:
    """Write a decision as compact JSON, confidence to one decimal: finer steps are noise to a small model.

    Raises
    ------
    ValueError
        If the recommendation is none of the five or the confidence is outside 0..1.
    """
    if recommendation not in RECOMMENDATIONS:
        raise ValueError(f"{recommendation!r} is none of {', '.join(RECOMMENDATIONS)}")
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence {confidence!r} is outside 0..1")
    decision = {"recommendation": recommendation, "confidence": round(float(confidence), 1), "evidence": dict(evidence)}
    return json.dumps(decision, separators=(",", ":"), allow_nan=False)


def parse_decision(text: str) -> ParsedDecision | None:
    """Read what a model wrote: the JSON object alone, or inside one code fence; anything else is None, never a guess."""
    text = text.strip()
    fenced = _FENCE.match(text)
    try:
        data = json.loads(
            fenced.group(1) if fenced else text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.keys() != {"recommendation", "confidence", "evidence"}:
        return None
    recommendation, confidence, evidence = data["recommendation"], data["confidence"], data["evidence"]
    if recommendation not in RECOMMENDATIONS or not _is_number(confidence) or not 0 <= confidence <= 1:
        return None
    if not isinstance(evidence, dict) or not all(_is_number(v) or isinstance(v, str) for v in evidence.values()):
        return None
    return ParsedDecision(recommendation, float(confidence), evidence)


def is_grounded(state_text: str, decision: ParsedDecision) -> bool:
    """Return whether the decision cites evidence and all of it says what the state says."""
    stated = state_values(state_text)
    return bool(decision.evidence) and all(
        name in stated and _value(stated[name]) == cited for name, cited in decision.evidence.items()
    )


@cache
def prompt_text() -> str:
    """Return the system prompt."""
    return PROMPT_FILE.read_text(encoding="utf-8").strip()


def prompt_hash() -> str:
    """Return the SHA-256 of the system prompt, which stands in whatever was trained or decided with it."""
    return sha256_hex(prompt_text())


def prompt_messages(state_text: str) -> list[dict[str, str]]:
    """Return the conversation that asks for a decision on a state."""
    return [{"role": "system", "content": prompt_text()}, {"role": "user", "content": state_text}]


def example_messages(decided: Decided) -> list[dict[str, str]]:
    """Return the conversation of a training example: the state, and the decision that was taken, truthfully cited.

    Raises
    ------
    ValueError
        If there is no valid recommendation to learn.
    """
    state_text = technical_state_text(decided.market_state)
    answer = encode_decision(str(decided.recommendation), decided.confidence, cited_evidence(state_text))
    return [*prompt_messages(state_text), {"role": "assistant", "content": answer}]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _finite(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _stepped(value: float | None, step: float, low: float, high: float) -> str:
    if value is None:
        return UNKNOWN
    rounded = round(min(max(value, low), high) / step) * step
    return f"{rounded:.0f}" if step >= 1 else f"{rounded + 0.0:.1f}".replace("-0.0", "0.0")


def _signed(value: float | None, step: float, limit: float) -> str:
    if value is None:
        return UNKNOWN
    rounded = round(min(max(value, -limit), limit) / step) * step
    if rounded == 0:
        return "0"
    return f"{rounded:+.0f}" if step >= 1 else f"{rounded:+.1f}"


def _value(stated: str) -> float | str:
    try:
        number = float(stated)
    except ValueError:
        return stated
    return int(number) if number.is_integer() else number


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
