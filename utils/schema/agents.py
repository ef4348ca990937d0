"""What an agent says: the typed, frozen outputs of news, technical, fundamental, strategist and validator agents.

An output is valid or it does not exist. An abstention is its own state: hold, confidence 0, a reason, and no vote.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, StrictBool, model_validator
from pydantic_core import PydanticCustomError

AgentType = Literal["news", "technical", "fundamental", "strategist", "validator"]
Recommendation = Literal["strong_buy", "buy", "hold", "sell", "strong_sell"]
TimeHorizon = Literal["intraday", "short_term", "medium_term", "long_term"]

JUNIOR_AGENTS: tuple[AgentType, ...] = ("news", "technical", "fundamental")
AGENT_TYPES: tuple[AgentType, ...] = (*JUNIOR_AGENTS, "strategist", "validator")
RECOMMENDATIONS: tuple[Recommendation, ...] = ("strong_buy", "buy", "hold", "sell", "strong_sell")

NO_PRICE = "technical_opinion_without_price"
"""Type of the validation error of a technical opinion without `current_price`."""

Unit = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Signed = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
Price = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def direction(recommendation: str) -> int:
    """Return +1 for the buy side, -1 for the sell side, 0 for hold."""
    if recommendation in ("buy", "strong_buy"):
        return 1
    return -1 if recommendation in ("sell", "strong_sell") else 0


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Evidence(_Frozen):
    """One fact that an output rests on, with the time from which it could be known."""

    id: str
    kind: str
    value: FiniteFloat | str
    unit: str = ""
    event_time: AwareDatetime
    available_at: AwareDatetime
    source: str
    bar_interval: str | None = None
    sector: str | None = None
    tickers: tuple[str, ...] | None = None


class AgentOutput(_Frozen):
    """Common part of what every agent returns.

    `confidence` is the conviction that the agent states; `p_correct` the calibrated probability that the call is right
    (None while fewer than 200 outcomes have matured). `policy` names who thought: ``rules``, ``local:<version>``,
    ``anthropic:<model>`` and so on.
    """

    agent_type: AgentType
    symbol: str = Field(min_length=1, max_length=20)
    as_of: AwareDatetime
    recommendation: Recommendation
    confidence: Unit
    p_correct: Unit | None = None
    abstained: StrictBool = False
    abstain_reason: str | None = None
    reasoning: str = Field(default="", max_length=4000)
    signals: dict[str, Signed] = Field(default_factory=dict)
    evidence: tuple[Evidence, ...] = ()
    policy: str = "rules"
    latency_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    cost_usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _abstention_is_no_vote(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("abstained") is True:
            return {**data, "recommendation": "hold", "confidence": 0.0}
        return data


class KeyEvent(_Frozen):
    """A headline that moved the news agent; `evidence_id` points into the output's evidence."""

    headline: str
    source: str
    published_at: datetime
    evidence_id: str


class NewsOutput(AgentOutput):
    """Sentiment of the news of the last days: score -2 (very negative) to 2."""

    agent_type: AgentType = "news"
    sentiment_score: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] = 0.0
    price_impact: Literal["bullish", "bearish", "neutral"] = "neutral"
    time_horizon: TimeHorizon = "short_term"
    key_events: tuple[KeyEvent, ...] = ()
    risk_factors: tuple[str, ...] = ()


class TechnicalOutput(AgentOutput):
    """Indicators, trend and levels of the bars; prices in USD."""

    agent_type: AgentType = "technical"
    signal: Literal["buy", "sell", "hold"] = "hold"
    trend: Literal["uptrend", "downtrend", "sideways"] = "sideways"
    momentum: Literal["strong_bullish", "bullish", "neutral", "bearish", "strong_bearish"] = "neutral"
    indicators: dict[str, FiniteFloat] = Field(default_factory=dict)
    support_levels: tuple[Price, ...] = ()
    resistance_levels: tuple[Price, ...] = ()
    patterns: tuple[str, ...] = ()
    current_price: Price | None = None

    @model_validator(mode="after")
    def _opinion_needs_a_price(self) -> TechnicalOutput:
        if not self.abstained and self.current_price is None:
            raise PydanticCustomError(NO_PRICE, "current_price is required unless the agent abstains")
        return self


class FundamentalOutput(AgentOutput):
    """Valuation and quality from filings; `financial_health` and `growth_quality` run from 0 (worst) to 1."""

    agent_type: AgentType = "fundamental"
    valuation: Literal["undervalued", "fairly_valued", "overvalued"] = "fairly_valued"
    financial_health: Unit = 0.5
    growth_quality: Unit = 0.5
    key_metrics: dict[str, FiniteFloat] = Field(default_factory=dict)
    key_strengths: tuple[str, ...] = ()
    key_risks: tuple[str, ...] = ()
    price_target: Price | None = None


class StrategistOutput(AgentOutput):
    """The decision: what share of equity (0..1) to hold, and where to get out.

    `expected_return` is the instrument's over the horizon, signed, whatever the side.
    """

    agent_type: AgentType = "strategist"
    position_size: Unit = 0.0
    entry_target: Price | None = None
    stop_loss: Price | None = None
    take_profit: Price | None = None
    time_horizon: TimeHorizon = "short_term"
    expected_return: FiniteFloat = 0.0
    risk_reward_ratio: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    key_factors: tuple[str, ...] = ()
    risk_assessment: str = ""


class ResolvedConflict(_Frozen):
    """How one conflict between agents was resolved, and what every strategy would have said of it.

    `severity` is 0..1. `chosen_by` says whether the documented rule chose the strategy or what came of earlier conflicts;
    `rule_strategy` is the rule's choice either way.
    """

    conflict_type: Literal["opposite_recommendations", "signal_conflict", "confidence_disagreement"]
    agents: tuple[str, ...]
    severity: Unit
    strategy: str
    chosen_by: Literal["rule", "learned"] = "rule"
    rule_strategy: str
    recommendation: Recommendation
    confidence: Unit
    signal: str | None = None
    alternatives: dict[str, Recommendation] = Field(default_factory=dict)


class ValidatorOutput(AgentOutput):
    """One view in place of several: `replaces` names the agents whose votes it stands for, so that none counts twice."""

    agent_type: AgentType = "validator"
    replaces: tuple[str, ...] = ()
    resolutions: tuple[ResolvedConflict, ...] = ()


OUTPUT_MODELS: dict[str, type[AgentOutput]] = {
    "news": NewsOutput,
    "technical": TechnicalOutput,
    "fundamental": FundamentalOutput,
    "strategist": StrategistOutput,
    "validator": ValidatorOutput,
}
"""The model of each agent type."""
