"""Checks of a strategist's decision: side against votes, stop and target against entry, size against the portfolio."""

from __future__ import annotations

import math
from typing import Any

from judge.local_checks.facts import Facts, Rule, calibrated_by_signals, ramp, reasoning_rules, sign
from utils.schema import direction

_RATIO_TOLERANCE = 0.05
_SIZE_LIMIT = 0.20
_LOSS_AT_STOP = 0.02
"""Share of equity that one stopped trade may cost (the usual rule of 2 %)."""
_HOLD_CONFIDENCE = 0.5
"""Below it a strategist holds."""
_SESSIONS = {"intraday": 1, "short_term": 5, "medium_term": 30, "long_term": 120}
_HIGH_VOLATILITY = 0.04
"""Daily volatility taken where none is known: high, so that only the impossible is marked down."""
_ANALYSTS = ("news", "technical", "fundamental")
_ANALYST_WORDS: dict[str, tuple[str, ...]] = {
    "news": ("news", "sentiment"),
    "technical": ("technical", "momentum", "trend"),
    "fundamental": ("fundamental", "valuation"),
}


def _analyst_votes(facts: Facts) -> list[float]:
    """Return the analysts' sides times their confidence, from the context, else the stated signals."""
    others: dict[str, Any] = facts.context.get("agent_outputs") or {}
    votes = [direction(o.recommendation) * o.confidence for o in others.values() if not o.abstained]
    return votes or list(facts.output.signals.values())


def side_follows_expectation(facts: Facts) -> float:
    """A side has an expected return of its sign; a hold expects little."""
    expected = facts.output.expected_return
    if facts.side:
        return float(facts.side * expected > 0)
    return ramp(abs(expected), 0.08, 0.03)


def side_follows_votes(facts: Facts) -> float | None:
    """The side is that of the analysts together; a hold where they cancel out or nobody is sure."""
    votes = _analyst_votes(facts)
    if not votes:
        return None
    mean = sum(votes) / len(votes)
    return ramp(abs(mean), 0.8, 0.3) if facts.side == 0 else ramp(facts.side * mean, -0.2, 0.1)


def size_fits_side(facts: Facts) -> float:
    """A side has a size, a hold has none."""
    return float((facts.output.position_size > 0) == (facts.side != 0))


def sure_enough(facts: Facts) -> float | None:
    """No side below a confidence of .5."""
    return None if facts.side == 0 else ramp(facts.output.confidence, 0.3, _HOLD_CONFIDENCE)


def conviction_fits(facts: Facts) -> float:
    """Conviction against number and agreement of the analysts."""
    return calibrated_by_signals(facts, _analyst_votes(facts))


def _entry(facts: Facts) -> float | None:
    entry = facts.output.entry_target or facts.context.get("price")
    return float(entry) if entry else None


def stop_on_its_side(facts: Facts) -> float | None:
    """A side has a stop where it limits the loss; without one nothing is earned."""
    if facts.side == 0:
        return None
    stop, entry = facts.output.stop_loss, _entry(facts)
    return float(stop is not None and entry is not None and facts.side * (entry - stop) > 0)


def target_on_its_side(facts: Facts) -> float | None:
    """A side has a target where it gains."""
    if facts.side == 0:
        return None
    target, entry = facts.output.take_profit, _entry(facts)
    return float(target is not None and entry is not None and facts.side * (target - entry) > 0)


def ratio_is_right(facts: Facts) -> float | None:
    """The stated ratio is |target - entry|/|entry - stop| within 5 %."""
    output, entry = facts.output, _entry(facts)
    if facts.side == 0:
        return None
    if None in (output.stop_loss, output.take_profit, output.risk_reward_ratio, entry) or output.stop_loss == entry:
        return 0.0
    true = abs(output.take_profit - entry) / abs(entry - output.stop_loss)
    error = abs(output.risk_reward_ratio - true) / true if true else math.inf
    return ramp(error, 4 * _RATIO_TOLERANCE, _RATIO_TOLERANCE)


def loss_is_small(facts: Facts) -> float:
    """Size times distance of the stop stays within 2 % of equity; a position without a stop risks all of it."""
    size, stop, entry = facts.output.position_size, facts.output.stop_loss, _entry(facts)
    distance = abs(entry - stop) / entry if stop is not None and entry is not None else 1.0
    return ramp(size * distance, 3 * _LOSS_AT_STOP, _LOSS_AT_STOP)


def risk_described(facts: Facts) -> float:
    """The risk is described in at least twenty letters."""
    return ramp(sum(map(str.isalpha, facts.output.risk_assessment[:60])), 5, 20)


def names_analysts(facts: Facts) -> float:
    """The explanation or the key factors speak of the analysts that were heard, of two at least where there are two."""
    heard = [name for name in facts.context.get("agent_outputs") or _ANALYSTS if name in _ANALYST_WORDS]
    text = " ".join((facts.output.reasoning, *facts.output.key_factors)).lower()
    named = sum(any(word in text for word in _ANALYST_WORDS[name]) for name in heard)
    return min(1.0, named / min(2, len(heard))) if heard else 1.0


def conflict_addressed(facts: Facts) -> float | None:
    """Where analysts stand on both sides, the text says so."""
    others = (facts.context.get("agent_outputs") or {}).values()
    sides = {direction(o.recommendation) for o in others if not o.abstained and o.confidence >= _HOLD_CONFIDENCE}
    if not {1, -1} <= sides:
        return None
    text = " ".join((facts.output.reasoning, *facts.output.key_factors)).lower()
    return float(any(word in text for word in ("conflict", "disagree", "against", "despite", "although", "outweigh")))


def factors_named(facts: Facts) -> float:
    """Two key factors at least, none twice."""
    factors = facts.output.key_factors
    return min(1.0, len(set(factors)) / 2) * (len(set(factors)) / len(factors)) if factors else 0.0


def size_within_limit(facts: Facts) -> float:
    """No more than a fifth of equity in one symbol."""
    return ramp(facts.output.position_size, 2 * _SIZE_LIMIT, _SIZE_LIMIT)


def size_within_cash(facts: Facts) -> float | None:
    """What is bought can be paid."""
    portfolio = facts.context.get("portfolio")
    if not portfolio or facts.side <= 0 or not portfolio["equity"] > 0:
        return None
    held = (portfolio.get("weights") or {}).get(facts.output.symbol, 0.0)
    bought = max(0.0, facts.output.position_size - held) * portfolio["equity"]
    return 1.0 if bought <= 0 else ramp(bought / max(portfolio["cash"], 1e-9), 1.5, 1.001)


def sells_what_is_held(facts: Facts) -> float | None:
    """A sale needs a holding."""
    portfolio = facts.context.get("portfolio")
    if portfolio is None or facts.side >= 0:
        return None
    return float((portfolio.get("weights") or {}).get(facts.output.symbol, 0.0) > 0)


def _spread(facts: Facts) -> float:
    """Return one standard deviation of the instrument over the horizon."""
    daily = facts.context.get("daily_volatility") or _HIGH_VOLATILITY
    return float(daily) * math.sqrt(_SESSIONS[facts.output.time_horizon])


def expectation_is_likely(facts: Facts) -> float:
    """The expected return is within two standard deviations of the horizon, and not beyond four."""
    return ramp(abs(facts.output.expected_return) / _spread(facts), 4, 2)


def target_is_likely(facts: Facts) -> float | None:
    """The target is within three standard deviations of the horizon, and not beyond five."""
    target, entry = facts.output.take_profit, _entry(facts)
    if target is None or entry is None:
        return None
    return ramp(abs(target / entry - 1) / _spread(facts), 5, 3)


def expectation_fits_target(facts: Facts) -> float | None:
    """The expected return does not go beyond the target, nor the other way."""
    target, entry = facts.output.take_profit, _entry(facts)
    if target is None or entry is None:
        return None
    gain, expected = target / entry - 1, facts.output.expected_return
    if sign(gain) != sign(expected):
        return 0.0
    if gain == 0:
        return 1.0
    return ramp(abs(expected) / abs(gain), 2.0, 1.1)


RULES: dict[str, tuple[Rule, ...]] = {
    "Decision Quality": (
        Rule(side_follows_expectation, 0.3, "the side contradicts the expected return"),
        Rule(side_follows_votes, 0.3, "the side disagrees with the analysts"),
        Rule(size_fits_side, 0.15, "a side without a size, or a hold with one"),
        Rule(sure_enough, 0.1, "takes a side without being sure"),
        Rule(conviction_fits, 0.15, "conviction does not fit number and agreement of the analysts"),
    ),
    "Risk Management": (
        Rule(stop_on_its_side, 0.3, "the stop is missing or on the wrong side"),
        Rule(target_on_its_side, 0.15, "the target is missing or on the wrong side"),
        Rule(ratio_is_right, 0.2, "the risk/reward ratio is missing or miscomputed"),
        Rule(loss_is_small, 0.2, "the loss at the stop exceeds 2 % of equity"),
        Rule(risk_described, 0.15, "the risk is not described"),
    ),
    "Reasoning & Synthesis": (
        *reasoning_rules(0.6),
        Rule(names_analysts, 0.15, "the analysts are not weighed"),
        Rule(conflict_addressed, 0.1, "the analysts' conflict is passed over"),
        Rule(factors_named, 0.15, "fewer than two key factors, or one twice"),
    ),
    "Portfolio Awareness": (
        Rule(size_within_limit, 0.4, "more than a fifth of equity in one symbol"),
        Rule(size_within_cash, 0.3, "costs more than the cash"),
        Rule(sells_what_is_held, 0.3, "sells what is not held"),
    ),
    "Outcome Realism": (
        Rule(expectation_is_likely, 0.5, "the expected return is beyond what the volatility makes likely"),
        Rule(target_is_likely, 0.25, "the target is beyond what the volatility makes likely"),
        Rule(expectation_fits_target, 0.25, "expected return and target contradict each other"),
    ),
}
"""Dimension of the rubric to its rules."""
