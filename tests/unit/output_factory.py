"""Sound outputs of the four agents, made by hand, for tests that damage one thing at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from utils.schema import Evidence, FundamentalOutput, KeyEvent, NewsOutput, StrategistOutput, TechnicalOutput

AS_OF = datetime(2014, 6, 3, 20, 0, tzinfo=UTC)
SYMBOL = "AAPL"
PRICE = 100.0

INDICATORS = {
    "rsi_14": 61.4,
    "macd": 1.2,
    "macd_signal": 0.8,
    "ema_12": 98.4,
    "ema_26": 97.2,
    "sma_20": 97.5,
    "sma_50": 95.25,
    "sma_200": 90.5,
    "stoch_k": 71.0,
    "stoch_d": 66.0,
    "bb_lower": 92.0,
    "bb_upper": 103.0,
    "atr_14": 1.85,
    "mfi_14": 58.0,
    "adx_14": 31.5,
}
METRICS = {
    "pe_ratio": 16.8,
    "revenue_growth": 0.124,
    "profit_margin": 0.217,
    "debt_to_equity": 0.31,
    "current_ratio": 1.68,
}
HEADLINES = (
    "Apple beats estimates as iPhone sales rise to a record",
    "Analysts upgrade Apple on strong services growth",
    "Apple raises dividend and boosts its buyback programme",
)


def _evidence(kind: str, values: dict[str, float]) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(id=name, kind=kind, value=value, event_time=AS_OF, available_at=AS_OF, source="bars")
        for name, value in values.items()
    )


def _made(model: type[Any], defaults: dict[str, Any], changes: dict[str, Any]) -> Any:
    return model(**{"symbol": SYMBOL, "as_of": AS_OF, **defaults, **changes})


def technical_output(**changes: Any) -> TechnicalOutput:
    """A buy in an uptrend whose figures, words and levels agree."""
    defaults = {
        "recommendation": "buy",
        "confidence": 0.68,
        "reasoning": (
            "RSI at 61.4 and a MACD of 1.20 above its signal line of 0.80 show rising momentum. Price holds above the "
            "20-day average of 97.50 and the 50-day average of 95.25; ADX at 31.5 confirms the uptrend."
        ),
        "signals": {"trend": 0.6, "momentum": 0.5, "volume": 0.2},
        "evidence": _evidence("indicator", INDICATORS),
        "signal": "buy",
        "trend": "uptrend",
        "momentum": "bullish",
        "indicators": INDICATORS,
        "support_levels": (96.0, 93.5),
        "resistance_levels": (103.0, 106.5),
        "current_price": PRICE,
    }
    return _made(TechnicalOutput, defaults, changes)


def news_output(**changes: Any) -> NewsOutput:
    """A buy on three good, dated, sourced headlines."""
    times = [AS_OF - timedelta(hours=hours) for hours in (3, 9, 20)]
    evidence = tuple(
        Evidence(id=f"n{i}", kind="article", value=text, event_time=at, available_at=at, source="wire")
        for i, (text, at) in enumerate(zip(HEADLINES, times, strict=True))
    )
    events = tuple(
        KeyEvent(headline=text, source="wire", published_at=at, evidence_id=f"n{i}")
        for i, (text, at) in enumerate(zip(HEADLINES, times, strict=True))
    )
    defaults = {
        "recommendation": "buy",
        "confidence": 0.66,
        "reasoning": (
            "Apple beats estimates with record iPhone sales, analysts upgrade the shares on services growth, and the "
            "dividend is raised; the weighted sentiment of 1.20 is clearly positive."
        ),
        "signals": {"sentiment": 0.6},
        "evidence": evidence,
        "sentiment_score": 1.2,
        "price_impact": "bullish",
        "time_horizon": "short_term",
        "key_events": events,
        "risk_factors": ("Expectations for the next quarter are already high",),
    }
    return _made(NewsOutput, defaults, changes)


def fundamental_output(**changes: Any) -> FundamentalOutput:
    """A buy of a sound, growing, moderately priced company."""
    defaults = {
        "recommendation": "buy",
        "confidence": 0.65,
        "reasoning": (
            "At 16.8 times earnings the shares are cheap against revenue growth of 12.4% and a net margin of 21.7%; "
            "leverage is modest with debt at 0.31 of equity and liquidity is comfortable."
        ),
        "signals": {"value": 0.5, "quality": 0.6},
        "evidence": _evidence("filing", METRICS),
        "valuation": "undervalued",
        "financial_health": 0.85,
        "growth_quality": 0.7,
        "key_metrics": METRICS,
        "key_strengths": ("High net margin", "Low debt to equity"),
        "key_risks": ("Dependence on one product", "Currency headwinds abroad"),
        "price_target": 115.0,
    }
    return _made(FundamentalOutput, defaults, changes)


def strategist_output(**changes: Any) -> StrategistOutput:
    """A moderate buy with stop, target, ratio and size that add up."""
    defaults = {
        "recommendation": "buy",
        "confidence": 0.66,
        "reasoning": (
            "News sentiment at 0.66 and technical momentum at 0.68 both point up, and fundamental valuation at 0.65 "
            "supports them, so a moderate long position with a close stop is taken for the coming days."
        ),
        "signals": {"news": 0.6, "technical": 0.5, "fundamental": 0.5},
        "evidence": _evidence("agent", {"news": 0.66, "technical": 0.68, "fundamental": 0.65}),
        "position_size": 0.1,
        "entry_target": PRICE,
        "stop_loss": 96.0,
        "take_profit": 108.0,
        "time_horizon": "short_term",
        "expected_return": 0.05,
        "risk_reward_ratio": 2.0,
        "key_factors": ("Analysts agree on the buy side", "Momentum and sentiment are positive"),
        "risk_assessment": "A gap below the stop or a broad sell-off would cost more than the planned 0.4 % of equity.",
    }
    return _made(StrategistOutput, defaults, changes)


CONTEXT: dict[str, Any] = {
    "price": PRICE,
    "daily_volatility": 0.015,
    "portfolio": {"equity": 100_000.0, "cash": 60_000.0, "weights": {"MSFT": 0.1}},
}
"""What was known beside an output."""

OUTPUTS = {
    "news": news_output,
    "technical": technical_output,
    "fundamental": fundamental_output,
    "strategist": strategist_output,
}
