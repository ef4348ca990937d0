"""How well a strategist works beyond being free of errors: side against votes, size against conviction, likely returns."""

from __future__ import annotations

import math
from typing import Any

from judge.local_checks.facts import Facts, Rule, calibrated_by_signals, ramp, reasoning_rules, sign
from utils.schema import direction

_LOSS_AT_STOP = 0.02
"""Share of equity that one stopped trade may cost (the usual rule of 2 %)."""
_SMALL_SIZE = 0.01
"""Share of equity that is small whatever the conviction."""
_SPECIFIC_WORDS = 8
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


def hold_expects_little(facts: Facts) -> float | None:
    """A hold expects little of the instrument."""
    return None if facts.side else ramp(abs(facts.output.expected_return), 0.08, 0.03)


def side_has_size(facts: Facts) -> float | None:
    """A side is taken with a size."""
    return float(facts.output.position_size > 0) if facts.side else None


def side_follows_votes(facts: Facts) -> float | None:
    """The side is that of the analysts together; a hold where they cancel out or nobody is sure."""
    votes = _analyst_votes(facts)
    if not votes:
        return None
    mean = sum(votes) / len(votes)
    return ramp(abs(mean), 0.8, 0.3) if facts.side == 0 else ramp(facts.side * mean, -0.2, 0.1)


def conviction_fits(facts: Facts) -> float:
    """Conviction against number and agreement of the analysts."""
    return calibrated_by_signals(facts, _analyst_votes(facts))


def _entry(facts: Facts) -> float | None:
    entry = facts.output.entry_target or facts.context.get("price")
    return float(entry) if entry else None


def loss_is_small(facts: Facts) -> float:
    """Size times distance of the stop stays within 2 % of equity; a position without a stop risks all of it."""
    size, stop, entry = facts.output.position_size, facts.output.stop_loss, _entry(facts)
    distance = abs(entry - stop) / entry if stop is not None and entry is not None else 1.0
    return ramp(size * distance, 3 * _LOSS_AT_STOP, _LOSS_AT_STOP)


def risk_is_specific(facts: Facts) -> float:
    """The risk is described in more than a phrase."""
    return ramp(len(set(facts.output.risk_assessment.lower().split())), 2, _SPECIFIC_WORDS)


def size_below_kelly(facts: Facts) -> float | None:
    """The size is no larger than what the stated conviction and the stated ratio bear.

    Notes
    -----
    Kelly (1956): p - (1 - p)/b of equity, with p the chance to win and b the gain over the loss; more than that loses
    growth for certain. The conviction is the agent's own, so this holds size against words, not against the market.
    """
    output = facts.output
    if facts.side == 0 or not output.risk_reward_ratio or facts.reports("risk_reward_miscalculation"):
        return None
    borne = output.confidence - (1 - output.confidence) / output.risk_reward_ratio
    return ramp(output.position_size, 2 * max(borne, _SMALL_SIZE), max(borne, _SMALL_SIZE))


def names_analysts(facts: Facts) -> float:
    """The explanation or the key factors speak of the analysts that were heard, of two at least where there are two."""
    heard = [name for name in facts.context.get("agent_outputs") or _ANALYSTS if name in _ANALYST_WORDS]
    text = " ".join((facts.output.reasoning, *facts.output.key_factors)).lower()
    named = sum(any(word in text for word in _ANALYST_WORDS[name]) for name in heard)
    return min(1.0, named / min(2, len(heard))) if heard else 1.0


def factors_named(facts: Facts) -> float:
    """Two key factors at least, none twice."""
    factors = facts.output.key_factors
    return min(1.0, len(set(factors)) / 2) * (len(set(factors)) / len(factors)) if factors else 0.0


def _spread(facts: Facts) -> float:
    """Return one standard deviation of the instrument over the horizon."""
    daily = facts.context.get("daily_volatility") or _HIGH_VOLATILITY
    return float(daily) * math.sqrt(_SESSIONS[facts.output.time_horizon])


def expectation_is_likely(facts: Facts) -> float:
    """The expected return is within two standard deviations of the horizon, and not beyond four."""
    return ramp(abs(facts.output.expected_return) / _spread(facts), 4, 2)


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
        Rule(hold_expects_little, 0.15, "a hold expects a large move"),
        Rule(side_follows_votes, 0.4, "the side disagrees with the analysts"),
        Rule(side_has_size, 0.15, "a side without a size"),
        Rule(conviction_fits, 0.3, "conviction does not fit number and agreement of the analysts"),
    ),
    "Risk Management": (
        Rule(loss_is_small, 0.6, "the loss at the stop exceeds 2 % of equity"),
        Rule(risk_is_specific, 0.4, "the risk is not described"),
    ),
    "Reasoning & Synthesis": (
        *reasoning_rules(0.7),
        Rule(names_analysts, 0.15, "the analysts are not weighed"),
        Rule(factors_named, 0.15, "fewer than two key factors, or one twice"),
    ),
    "Portfolio Awareness": (Rule(size_below_kelly, 1.0, "the size is more than conviction and ratio bear"),),
    "Outcome Realism": (
        Rule(expectation_is_likely, 0.6, "the expected return is beyond what the volatility makes likely"),
        Rule(expectation_fits_target, 0.4, "expected return and target contradict each other"),
    ),
}
"""Dimension of the rubric to its rules."""
