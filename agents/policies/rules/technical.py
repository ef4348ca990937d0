"""The technical analyst by rules: trend following where there is a trend, mean reversion where there is none.

Called through `agents.junior.technical_agent` for every symbol at every decision. It reads the snapshot's bars and
trend strength, nothing else, and cites every figure it uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agents.base_agent import abstain
from agents.policies.base import PolicyRequest
from agents.policies.rules.figures import bar_evidence, written
from data_pipeline.chart import find_patterns, swing_levels
from data_pipeline.indicators import MIN_BARS, UNITS, compute_indicators, participation
from data_pipeline.rounding import clip, figure, price_figure
from utils.schema import AgentOutput, AgentType, BarWindow, MarketSnapshot, TechnicalOutput

SIDE_SCORE = 0.1
"""Least |score| of a side; on daily US stocks it is reached on about six days in ten."""

STRONG_SCORE = 0.35
FULL_SCORE = 0.5
"""|score| from which on the confidence in a side is full."""

LEAST_CONFIDENCE, MOST_CONFIDENCE = 0.5, 0.85
"""Of a side. Daily direction is hardly predictable; nothing in a chart warrants more."""

MOST_HOLD_CONFIDENCE = 0.8
OVERBOUGHT, OVERSOLD = 70.0, 30.0
CLEAR_TREND = 0.6
"""|trend strength| beyond which the trend is what it says, whatever the averages do."""

RANGING_ADX, TRENDING_ADX = 15.0, 35.0
HOLD_RETURN = 0.02
HORIZON_SESSIONS = 5
_MOMENTUM_WORDS = (
    (0.6, "strong_bullish"),
    (0.2, "bullish"),
    (-0.2, "neutral"),
    (-0.6, "bearish"),
    (-math.inf, "strong_bearish"),
)


class RulesTechnical:
    """A `Policy` of moving averages, oscillators and volume.

    Notes
    -----
    score = w_t·trend + w_m·momentum + w_r·mean_reversion, each vote in -1..1, times 1 + 0.15·volume. The weights move
    with ADX from (0.30, 0.20, 0.50) in a range to (0.55, 0.30, 0.15) in a trend, so that a pullback within an up-trend
    counts more than its chase.
    """

    agent_type: AgentType = "technical"
    name = "rules"
    reads_experiences = False
    waits = False
    prompt_hash: str | None = None

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        """Answer every request; fewer than 50 bars or a stale snapshot is an abstention."""
        return [self._decide(request.snapshot) for request in requests]

    def _decide(self, snapshot: MarketSnapshot) -> AgentOutput:
        bars = snapshot.bars
        if len(bars) < MIN_BARS:
            reason = f"{len(bars)} bars are known, indicators need {MIN_BARS}"
            return abstain(self.agent_type, snapshot.symbol, snapshot.as_of, reason, self.name)
        if snapshot.stale:
            reason = "the newest bar is not of the present session"
            return abstain(self.agent_type, snapshot.symbol, snapshot.as_of, reason, self.name)
        price = price_figure(bars.close[-1])
        indicators = compute_indicators(bars)
        signals = _votes(price, indicators, bars)
        score = _score(signals, indicators)
        side, note = _side(score, indicators)
        if side:
            strength = clip((abs(score) - SIDE_SCORE) / (FULL_SCORE - SIDE_SCORE), 0.0, 1.0)
            confidence = LEAST_CONFIDENCE + (MOST_CONFIDENCE - LEAST_CONFIDENCE) * strength
        else:
            confidence = _hold_confidence(score, snapshot.inputs.daily_volatility)
        word = ("sell", "hold", "buy")[side + 1]
        trend = _trend(price, indicators, snapshot.inputs.trend_strength)
        momentum = next(word for edge, word in _MOMENTUM_WORDS if signals["momentum"] > edge)
        supports, resistances = swing_levels(bars, price, indicators["atr_14"])
        patterns = find_patterns(bars)
        evidence = [bar_evidence("bar:close", "price", price, "USD", snapshot.as_of)]
        evidence += [
            bar_evidence(f"ind:{name}", "indicator", value, UNITS[name], snapshot.as_of)
            for name, value in indicators.items()
        ]
        return TechnicalOutput.model_validate(
            {
                "symbol": snapshot.symbol,
                "as_of": snapshot.as_of,
                "recommendation": f"strong_{word}" if side and abs(score) >= STRONG_SCORE else word,
                "confidence": figure(confidence),
                "reasoning": _reasoning(word, note, trend, momentum, price, indicators, signals, patterns),
                "signals": signals,
                "evidence": evidence,
                "policy": self.name,
                "signal": word,
                "trend": trend,
                "momentum": momentum,
                "indicators": indicators,
                "support_levels": supports,
                "resistance_levels": resistances,
                "patterns": patterns,
                "current_price": price,
            }
        )


def _votes(price: float, indicators: dict[str, float], bars: BarWindow) -> dict[str, float]:
    """Return the votes -1..1; distances are measured in ATRs, so that they mean the same at every price."""
    atr = indicators["atr_14"] or 0.01 * price
    mean = indicators["sma_50"]
    trend = [
        math.tanh((price - mean) / (3 * atr)),
        math.tanh((indicators["sma_20"] - mean) / (2 * atr)),
        math.tanh((indicators["ema_12"] - indicators["ema_26"]) / atr),
    ]
    if "sma_200" in indicators:
        trend.append(math.tanh((price - indicators["sma_200"]) / (8 * atr)))
    momentum = 0.5 * clip((indicators.get("rsi_14", 50.0) - 50) / 25)
    momentum += 0.5 * math.tanh(2 * (indicators["macd"] - indicators["macd_signal"]) / atr)
    half_width = indicators["bb_upper"] - indicators["sma_20"]
    stretch = clip((price - indicators["sma_20"]) / (1.25 * half_width)) if half_width > 0 else 0.0
    stretch = 0.4 * stretch + 0.3 * clip((indicators.get("stoch_k", 50.0) - 50) / 45)
    stretch += 0.3 * clip((indicators.get("mfi_14", 50.0) - 50) / 40)
    votes = {
        "trend": figure(sum(trend) / len(trend)),
        "momentum": figure(momentum),
        "mean_reversion": figure(-stretch),
    }
    traded = participation(bars)
    if traded is not None:
        # participation, not direction: above 0 where the session traded more than usual
        votes["volume"] = figure(clip((traded - 1) / 2))
    return votes


def _score(signals: dict[str, float], indicators: dict[str, float]) -> float:
    trending = clip((indicators["adx_14"] - RANGING_ADX) / (TRENDING_ADX - RANGING_ADX), 0.0, 1.0)
    score = (0.30 + 0.25 * trending) * signals["trend"] + (0.20 + 0.10 * trending) * signals["momentum"]
    score += (0.50 - 0.35 * trending) * signals["mean_reversion"]
    return score * (1 + 0.15 * signals.get("volume", 0.0))


def _side(score: float, indicators: dict[str, float]) -> tuple[int, str]:
    """Return the side that the score takes, and why not if RSI forbids it."""
    rsi = indicators.get("rsi_14", 50.0)
    if score >= SIDE_SCORE:
        return (0, "overbought, so it is too late to buy") if rsi > OVERBOUGHT else (1, "")
    if score <= -SIDE_SCORE:
        return (0, "oversold, so it is too late to sell") if rsi < OVERSOLD else (-1, "")
    return 0, "no side has enough weight"


def _hold_confidence(score: float, daily_volatility: float) -> float:
    """Return the conviction of a hold: high where the votes cancel and a move beyond ±2 % in a week is unlikely.

    The probability is that of a normal return with the volatility of the last 20 sessions.
    """
    spread = daily_volatility * math.sqrt(2 * HORIZON_SESSIONS)
    calm = math.erf(HOLD_RETURN / spread) if spread > 0 else 0.5
    undecided = 1 - clip(abs(score) / SIDE_SCORE, 0.0, 1.0)
    return LEAST_CONFIDENCE + (MOST_HOLD_CONFIDENCE - LEAST_CONFIDENCE) * calm * undecided


def _trend(price: float, indicators: dict[str, float], strength: float) -> str:
    """Return the trend of the averages, unless the trend strength of the last 20 sessions speaks against it."""
    if abs(strength) > CLEAR_TREND:
        return "uptrend" if strength > 0 else "downtrend"
    fast, slow = indicators["sma_20"], indicators["sma_50"]
    if price > slow and fast > slow and strength >= -0.2:
        return "uptrend"
    if price < slow and fast < slow and strength <= 0.2:
        return "downtrend"
    return "sideways"


def _reasoning(
    word: str,
    note: str,
    trend: str,
    momentum: str,
    price: float,
    indicators: dict[str, float],
    signals: dict[str, float],
    patterns: tuple[str, ...],
) -> str:
    """Say what the figures say; every number in it stands in the evidence."""
    above = "above" if price >= indicators["sma_50"] else "below"
    parts = [
        f"The chart is in {'an uptrend' if trend == 'uptrend' else 'a downtrend' if trend == 'downtrend' else 'a sideways range'}: "
        f"price {written(price)} stands {above} its medium average {written(indicators['sma_50'])} "
        f"(short average {written(indicators['sma_20'])}) with ADX {written(indicators['adx_14'])}."
    ]
    rsi = f"RSI {written(indicators['rsi_14'])} and " if "rsi_14" in indicators else ""
    parts.append(
        f"Momentum is {momentum.replace('_', ' ')} with {rsi}MACD {written(indicators['macd'])} "
        f"against its signal {written(indicators['macd_signal'])}."
    )
    stretch = signals["mean_reversion"]
    place = "is stretched downwards" if stretch > 0.3 else "is stretched upwards" if stretch < -0.3 else "lies well"
    parts.append(
        f"Price {place} within the bands {written(indicators['bb_lower'])} to {written(indicators['bb_upper'])}; "
        f"a usual day moves {written(indicators['atr_14'])}."
    )
    if patterns:
        parts.append(f"Patterns at the newest bar: {', '.join(patterns).replace('_', ' ')}.")
    votes = [
        f"{name.replace('_', ' ')} {'+' if vote > 0 else '-'}" for name, vote in signals.items() if abs(vote) > 0.1
    ]
    parts.append(f"Votes: {', '.join(votes) or 'all near zero'}. Verdict: {word}{f', {note}' if note else ''}.")
    return " ".join(parts)
