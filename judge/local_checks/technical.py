"""Checks of a technical agent's output: figures against each other and the evidence, words against the figures."""

from __future__ import annotations

from judge.local_checks.facts import (
    VALUE_TOLERANCE,
    Facts,
    Rule,
    calibrated_by_signals,
    evidence_is_as_of,
    ramp,
    reasoning_rules,
    sign,
)

CORE = ("rsi_14", "macd", "macd_signal", "sma_20", "sma_50", "adx_14", "atr_14")
_BOUNDED = ("rsi_14", "stoch_k", "stoch_d", "mfi_14", "adx_14")
_MOMENTUM = {"strong_bullish": 1.0, "bullish": 0.5, "neutral": 0.0, "bearish": -0.5, "strong_bearish": -1.0}
_TREND = {"uptrend": 1, "downtrend": -1, "sideways": 0}
_SIGNAL = {"buy": 1, "sell": -1, "hold": 0}
_WITHOUT_DIRECTION = frozenset(("volume", "volatility"))
"""Signals that say how much is going on, not which way."""
_OVERBOUGHT, _OVERSOLD = 70, 30
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


def figures_possible(facts: Facts) -> float | None:
    """Bounded indicators lie within 0..100, bands are in order, MACD is the difference of its averages."""
    indicators = facts.output.indicators
    found = [0 <= indicators[name] <= 100 for name in _BOUNDED if name in indicators]
    if "bb_lower" in indicators and "bb_upper" in indicators:
        found.append(0 < indicators["bb_lower"] <= indicators["bb_upper"])
    if "macd" in indicators and "ema_12" in indicators and "ema_26" in indicators:
        gap = indicators["ema_12"] - indicators["ema_26"]
        found.append(abs(indicators["macd"] - gap) <= 0.02 * abs(gap) + 1e-3 * facts.output.current_price)
    return sum(found) / len(found) if found else None


def figures_match_evidence(facts: Facts) -> float | None:
    """Share of the indicators with evidence of the same name that equal it within .5 %."""
    named = facts.named
    found = [
        abs(value - named[name]) <= VALUE_TOLERANCE * abs(named[name]) + 1e-9
        for name, value in facts.output.indicators.items()
        if name in named
    ]
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


def side_follows_signal(facts: Facts) -> float:
    """Signal and recommendation stand on one side."""
    signal = _SIGNAL[facts.output.signal]
    if signal == facts.side:
        return 1.0
    return 0.0 if signal * facts.side < 0 else 0.4


def side_follows_votes(facts: Facts) -> float:
    """The side agrees with the mean of all votes; a hold with votes that cancel out."""
    votes = votes_of(facts)
    if not votes:
        return 0.0
    mean = sum(votes) / len(votes)
    return ramp(abs(mean), 0.9, 0.4) if facts.side == 0 else ramp(facts.side * mean, -0.3, 0.15)


def respects_extremes(facts: Facts) -> float | None:
    """No buying above an RSI of 70 and no selling below 30."""
    rsi = facts.output.indicators.get("rsi_14")
    if rsi is None or facts.side == 0:
        return None
    return 0.0 if (facts.side > 0 and rsi > _OVERBOUGHT) or (facts.side < 0 and rsi < _OVERSOLD) else 1.0


def trend_direction_follows(facts: Facts) -> float:
    """The trend is that of price and averages."""
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


def levels_on_their_side(facts: Facts) -> float:
    """Supports lie below the price, resistances above it; no levels earn nothing."""
    price, output = facts.output.current_price, facts.output
    right = sum(level <= price for level in output.support_levels)
    right += sum(level >= price for level in output.resistance_levels)
    count = len(output.support_levels) + len(output.resistance_levels)
    return (right / count) ** 2 if count else 0.0


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
        Rule(core_present, 0.2, "core indicators are missing"),
        Rule(figures_possible, 0.25, "an indicator has an impossible value"),
        Rule(figures_match_evidence, 0.25, "indicators differ from their evidence"),
        Rule(momentum_follows, 0.3, "momentum does not follow from RSI and MACD"),
    ),
    "Signal Quality": (
        Rule(side_follows_signal, 0.25, "signal and recommendation disagree"),
        Rule(side_follows_votes, 0.25, "the recommendation disagrees with the votes of the indicators"),
        Rule(respects_extremes, 0.15, "buys at an overbought or sells at an oversold RSI"),
        *reasoning_rules(0.35),
    ),
    "Trend Identification": (
        Rule(trend_direction_follows, 0.7, "the trend disagrees with price and moving averages"),
        Rule(trend_strength_follows, 0.3, "ADX does not bear out the trend"),
    ),
    "Support/Resistance Levels": (
        Rule(levels_on_both_sides, 0.35, "levels are missing below or above the price"),
        Rule(levels_on_their_side, 0.45, "a support lies above the price or a resistance below it"),
        Rule(levels_useful, 0.2, "levels are doubled or out of reach"),
    ),
    "Risk Assessment": (
        Rule(volatility_measured, 0.35, "ATR is missing or implausible"),
        Rule(conviction_fits, 0.55, "conviction does not fit number and agreement of the indicators"),
        Rule(evidence_is_as_of, 0.1, "evidence is from after the decision"),
    ),
}
"""Dimension of the rubric to its rules."""
