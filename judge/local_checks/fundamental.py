"""How well a fundamental agent works beyond being free of errors: breadth, scores and words that follow from metrics."""

from __future__ import annotations

from judge.local_checks.facts import (
    Facts,
    Rule,
    calibrated_by_signals,
    ramp,
    reasoning_rules,
)

_VALUATION = {"undervalued": 1, "fairly_valued": 0, "overvalued": -1}
# metric -> (value that counts as 0, value that counts as 1)
_HEALTH_SCALE = {
    "debt_to_equity": (2.5, 0.2),
    "current_ratio": (0.6, 2.0),
    "interest_cover": (1.0, 8.0),
    "profit_margin": (-0.05, 0.20),
}
_GROWTH_SCALE = {"revenue_growth": (-0.10, 0.20), "earnings_growth": (-0.20, 0.30), "eps_growth": (-0.20, 0.30)}
_SCORE_SLACK = 0.25
_BROAD_METRICS = 4
"""Metrics from which on an analysis looks at more than one side of a company."""


def _scaled(facts: Facts, scale: dict[str, tuple[float, float]]) -> list[float]:
    metrics = facts.output.key_metrics
    return [ramp(metrics[name], *bounds) for name, bounds in scale.items() if name in metrics]


def metrics_broad(facts: Facts) -> float:
    """Several metrics are given."""
    return ramp(len(facts.output.key_metrics), 0, _BROAD_METRICS)


def target_follows_valuation(facts: Facts) -> float | None:
    """The target lies on the valuation's side of the price."""
    price = facts.context.get("price") or facts.named.get("price") or facts.named.get("current_price")
    target = facts.output.price_target
    if target is None or not price or facts.reports("valuation_calculation_error"):
        return None
    stated = _VALUATION[facts.output.valuation]
    move = target / price - 1
    return ramp(abs(move), 0.4, 0.15) if stated == 0 else ramp(stated * move, -0.1, 0.02)


def valuation_possible(facts: Facts) -> float | None:
    """A loss or a very high multiple without growth is not called cheap, nor a single-digit multiple dear."""
    pe = facts.output.key_metrics.get("pe_ratio")
    if pe is None:
        return None
    growth = facts.output.key_metrics.get("revenue_growth", 0.0)
    stated = _VALUATION[facts.output.valuation]
    if stated > 0:
        return 0.0 if pe < 0 else ramp(pe, 80 + 100 * max(0.0, growth), 40)
    return ramp(pe, 3, 8) if stated < 0 and pe > 0 else 1.0


def conviction_fits(facts: Facts) -> float:
    """Conviction against number and agreement of valuation, health, growth and stated signals."""
    output = facts.output
    votes = [
        float(_VALUATION[output.valuation]),
        2 * output.financial_health - 1,
        2 * output.growth_quality - 1,
        *output.signals.values(),
    ]
    return calibrated_by_signals(facts, votes if output.key_metrics else [])


def both_sides_named(facts: Facts) -> float:
    """Two strengths and two risks, each named once and none on both sides."""
    strengths, risks = set(facts.output.key_strengths), set(facts.output.key_risks)
    both = strengths & risks
    return 0.25 * (min(2, len(strengths - both)) + min(2, len(risks - both)))


def points_are_specific(facts: Facts) -> float | None:
    """Strengths and risks are said in at least two words."""
    points = (*facts.output.key_strengths, *facts.output.key_risks)
    return sum(" " in point.strip() for point in points) / len(points) if points else None


def strengths_hold(facts: Facts) -> float | None:
    """No strength cites what the metrics deny: losses or shrinking sales."""
    metrics = facts.output.key_metrics
    denied = [
        words
        for words, denies in (
            (("margin", "profitab"), metrics.get("profit_margin", 0.1) < 0),
            (("growth", "growing"), metrics.get("revenue_growth", 0.1) < 0),
        )
        if denies
    ]
    strengths = facts.output.key_strengths
    if not strengths:
        return None
    false = sum(any(word in point.lower() for words in denied for word in words) for point in strengths)
    return 1 - false / len(strengths)


def health_follows(facts: Facts) -> float | None:
    """The health score is near what leverage, liquidity, cover and margin give; none of them given earns nothing."""
    if facts.reports("debt_analysis_error"):
        return None
    found = _scaled(facts, _HEALTH_SCALE)
    if not found:
        return 0.0
    return ramp(abs(facts.output.financial_health - sum(found) / len(found)), 0.65, _SCORE_SLACK)


def growth_follows(facts: Facts) -> float:
    """The growth score is near what the growth figures give; none of them given earns nothing."""
    found = _scaled(facts, _GROWTH_SCALE)
    if not found:
        return 0.0
    return ramp(abs(facts.output.growth_quality - sum(found) / len(found)), 0.65, _SCORE_SLACK)


RULES: dict[str, tuple[Rule, ...]] = {
    "Metrics Accuracy": (Rule(metrics_broad, 1.0, "too few metrics"),),
    "Valuation": (
        Rule(target_follows_valuation, 0.3, "the price target contradicts the valuation"),
        Rule(valuation_possible, 0.35, "the multiples do not allow the valuation"),
        Rule(conviction_fits, 0.35, "conviction does not fit number and agreement of the metrics"),
    ),
    "Business Quality": (
        Rule(both_sides_named, 0.5, "strengths or risks are not named"),
        Rule(points_are_specific, 0.2, "strengths or risks are single words"),
        Rule(strengths_hold, 0.3, "a strength contradicts the metrics"),
    ),
    "Financial Health": (Rule(health_follows, 1.0, "the health score does not follow from the balance sheet"),),
    "Growth": (Rule(growth_follows, 1.0, "the growth score does not follow from the growth figures"),),
    "Reasoning": reasoning_rules(),
}
"""Dimension of the rubric to its rules."""
