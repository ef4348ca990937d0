"""How well a technical agent works beyond being free of errors: breadth, words that follow from figures, useful levels."""

from __future__ import annotations

from judge.local_checks.facts import (
    Facts,
    Rule,
    calibrated_by_signals,
    ramp,
    reasoning_rules,
    sign,
)

CORE = ("rsi_14", "macd", "macd_signal", "sma_20", "sma_50", "adx_14", "atr_14")
_MOMENTUM = {"strong_bullish": 1.0, "bullish": 0.5, "neutral": 0.0, "bearish": -0.5, "strong_bearish": -1.0}
_TREND = {"uptrend": 1, "downtrend": -1, "sideways": 0}
_WITHOUT_DIRECTION = frozenset(("volume", "volatility"))
"""Signals that say how much is going on, not which way."""
_TRENDING, _TRENDLESS = 25, 20
"""ADX above which a trend counts as one, and below which it does not (Wilder 1978)."""
_REACH = 0.25
"""Levels farther than this share of the price are no guide for a trade of days."""


def momentum_vote(facts: Facts) -> float | None:
    """Return what RSI and MACD say together, -1..1; None without either."""
    indicators = facts.output.indicators
    votes = []
    if (rsi := indicators.get("rsi_14")) is not None:
        votes.append(max(-1.0, min(1.0, (rsi - 50) / 20)))
    if (macd := indicators.get("macd")) is not None:
        votes.append(float(sign(macd - indicators.get("macd_signal", 0.0))))
    return sum(votes) / len(votes) if votes else None


def trend_vote(facts: Facts) -> float | None:
    """Return what price and moving averages say together, -1..1; None without an average."""
    indicators, price = facts.output.indicators, facts.output.current_price
    votes = [sign(price - indicators[name]) for name in ("sma_20", "sma_50", "sma_200") if name in indicators]
    if "sma_20" in indicators and "sma_50" in indicators:
        votes.append(sign(indicators["sma_20"] - indicators["sma_50"]))
    return sum(votes) / len(votes) if votes else None


def votes_of(facts: Facts) -> list[float]:
    """Return the votes of the indicators and the stated signals, each -1..1."""
    votes = [vote for vote in (momentum_vote(facts), trend_vote(facts)) if vote is not None]
    return votes + [vote for name, vote in facts.output.signals.items() if name not in _WITHOUT_DIRECTION]


def core_present(facts: Facts) -> float:
    """The usual indicators are there."""
    indicators = facts.output.indicators
    return sum(name in indicators for name in CORE) / len(CORE)


def bands_in_order(facts: Facts) -> float | None:
    """The lower band lies below the upper one, and MACD is the difference of its averages."""
    if facts.reports("indicator_calculation_error"):
        return None
    indicators, found = facts.output.indicators, []
    if "bb_lower" in indicators and "bb_upper" in indicators:
        found.append(0 < indicators["bb_lower"] <= indicators["bb_upper"])
    if "macd" in indicators and "ema_12" in indicators and "ema_26" in indicators:
        gap = indicators["ema_12"] - indicators["ema_26"]
        found.append(abs(indicators["macd"] - gap) <= 0.02 * abs(gap) + 1e-3 * facts.output.current_price)
    return sum(found) / len(found) if found else None


def momentum_follows(facts: Facts) -> float:
    """The momentum word is near what RSI and MACD say."""
    vote = momentum_vote(facts)
    if vote is None:
        return 0.0
    stated = _MOMENTUM[facts.output.momentum]
    if stated * vote < 0 and abs(vote) > 0.25:
        return 0.0
    return ramp(abs(stated - vote), 1.1, 0.5)


def side_follows_votes(facts: Facts) -> float:
    """The side agrees with the mean of all votes; a hold with votes that cancel out."""
    votes = votes_of(facts)
    if not votes:
        return 0.0
    mean = sum(votes) / len(votes)
    return ramp(abs(mean), 0.9, 0.4) if facts.side == 0 else ramp(facts.side * mean, -0.3, 0.15)


def trend_direction_follows(facts: Facts) -> float | None:
    """The trend is that of price and averages."""
    if facts.reports("trend_misclassification"):
        return None
    vote = trend_vote(facts)
    if vote is None:
        return 0.0
    stated = _TREND[facts.output.trend]
    return ramp(abs(vote), 1.4, 0.6) if stated == 0 else ramp(stated * vote, -0.3, 0.4)


def trend_strength_follows(facts: Facts) -> float | None:
    """A trend where ADX shows one, sideways where it does not."""
    adx = facts.output.indicators.get("adx_14")
    if adx is None:
        return None
    return ramp(adx, 45, _TRENDING) if facts.output.trend == "sideways" else ramp(adx, 8, _TRENDLESS)


def levels_on_both_sides(facts: Facts) -> float:
    """Levels below and above the price are given."""
    return 0.5 * bool(facts.output.support_levels) + 0.5 * bool(facts.output.resistance_levels)


def levels_useful(facts: Facts) -> float:
    """Levels are distinct and within reach; no levels earn nothing."""
    price = facts.output.current_price
    levels = (*facts.output.support_levels, *facts.output.resistance_levels)
    near = {round(level / price, 4) for level in levels if abs(level / price - 1) <= _REACH}
    return len(near) / len(levels) if levels else 0.0


def volatility_measured(facts: Facts) -> float:
    """ATR is there and a share of the price that a listed share can have."""
    atr = facts.output.indicators.get("atr_14")
    return float(atr is not None and 0 < atr < _REACH * facts.output.current_price)


def conviction_fits(facts: Facts) -> float:
    """Conviction against number and agreement of the votes."""
    return calibrated_by_signals(facts, votes_of(facts))


RULES: dict[str, tuple[Rule, ...]] = {
    "Indicator Interpretation": (
        Rule(core_present, 0.3, "core indicators are missing"),
        Rule(bands_in_order, 0.2, "indicators do not fit each other"),
        Rule(momentum_follows, 0.5, "momentum does not follow from RSI and MACD"),
    ),
    "Signal Quality": (
        Rule(side_follows_votes, 0.45, "the recommendation disagrees with the votes of the indicators"),
        *reasoning_rules(0.55),
    ),
    "Trend Identification": (
        Rule(trend_direction_follows, 0.7, "the trend disagrees with price and moving averages"),
        Rule(trend_strength_follows, 0.3, "ADX does not bear out the trend"),
    ),
    "Support/Resistance Levels": (
        Rule(levels_on_both_sides, 0.6, "levels are missing below or above the price"),
        Rule(levels_useful, 0.4, "levels are doubled or out of reach"),
    ),
    "Risk Assessment": (
        Rule(volatility_measured, 0.4, "ATR is missing or implausible"),
        Rule(conviction_fits, 0.6, "conviction does not fit number and agreement of the indicators"),
    ),
}
"""Dimension of the rubric to its rules."""
