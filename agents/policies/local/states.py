"""A market state as one line of text, free of scale, for each agent: what a local model is shown and what it may cite.

The policy that serves, the record of a decision and the pre-training all write states here, so that a model is asked in the
words it was trained on. It shows facts that code computed and never looks at an outcome.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from agents.policies.base import PastExperience, PolicyRequest
from agents.policies.prompting import delimited, legible
from utils.llm.untrusted import replay_key
from utils.market_regime_detector import REGIME_LABELS
from utils.schema import (
    RECOMMENDATIONS,
    AgentOutput,
    FundamentalOutput,
    NewsOutput,
    StrategistOutput,
    TechnicalOutput,
    direction,
)
from utils.settings import OrchestratorConfig

LANGUAGE = 2
"""Raised with every change of what a state says or how; a state of another language is never learned from."""

UNKNOWN = "na"
"""Stands for what could not be computed; never cited."""

HEADLINE_CHARS = 100

_DAY_S, _HOUR_S = 86_400.0, 3_600.0


@dataclass(frozen=True, slots=True)
class Scale:
    """A number as a state writes it: clamped to its range and rounded to steps, so that a small model can tell values apart."""

    low: float
    high: float
    step: float

    def word(self, value: Any) -> str:
        """Return the number as text, ``na`` for what is no finite number."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return UNKNOWN
        rounded = round(min(max(value, self.low), self.high) / self.step) * self.step
        digits = 0 if self.step >= 1 else 1
        return f"{rounded:.{digits}f}" if round(rounded, 6) else ("0.0" if digits else "0")

    def words(self) -> tuple[str, ...]:
        """Return every number that can be written."""
        count = round((self.high - self.low) / self.step)
        return tuple(dict.fromkeys(self.word(self.low + i * self.step) for i in range(count + 1)))


@dataclass(frozen=True, slots=True)
class Label:
    """One word of a few."""

    choices: tuple[str, ...]

    def word(self, value: Any) -> str:
        """Return the word, ``na`` for any other."""
        return value if value in self.choices else UNKNOWN

    def words(self) -> tuple[str, ...]:
        """Return every word there is."""
        return self.choices


Field = Scale | Label

_SHARE, _VOTE, _OSCILLATOR, _VOLATILITY = Scale(0, 1, 0.1), Scale(-1, 1, 0.2), Scale(0, 100, 5), Scale(0, 9.5, 0.5)
_CALL = Label(RECOMMENDATIONS)

FIELDS: Mapping[str, Mapping[str, Field]] = {
    "technical": {
        "rsi": _OSCILLATOR,
        "macd": Scale(-9, 9, 1),
        "sma20": Scale(-4.5, 4.5, 0.5),
        "sma50": Scale(-9, 9, 1),
        "stoch": _OSCILLATOR,
        "mfi": _OSCILLATOR,
        "adx": _OSCILLATOR,
        "bb": Scale(-0.2, 1.2, 0.1),
        "vol": _VOLATILITY,
        "trend": Label(("up", "down", "flat")),
    },
    "news": {
        "score": Scale(-2, 2, 0.2),
        "agree": _VOTE,
        "articles": Scale(0, 30, 2),
        "age": Scale(0, 168, 12),
        "vol": _VOLATILITY,
    },
    "fundamental": {
        "value": _VOTE,
        "growth": _VOTE,
        "profit": _VOTE,
        "debt": _VOTE,
        "health": _SHARE,
        "quality": _SHARE,
        "age": Scale(0, 400, 20),
        "view": Label(("cheap", "fair", "dear")),
    },
    "strategist": {
        "vote": Scale(-1, 1, 0.1),
        "news": _CALL,
        "nconf": _SHARE,
        "tech": _CALL,
        "tconf": _SHARE,
        "fund": _CALL,
        "fconf": _SHARE,
        "valid": _CALL,
        "vconf": _SHARE,
        "held": Scale(0, 40, 2),
        "cash": Scale(0, 100, 10),
        "vol": _VOLATILITY,
    },
}
"""What each agent's state says, in its order. Oscillators and ADX 0..100; macd = MACD minus signal in tenths of an ATR; sma20
and sma50 = price minus average in ATRs; bb = position within the Bollinger bands, 0 lower to 1 upper; vol = technical: ATR in
percent of the price, else the usual daily move in percent. score = age-weighted sentiment; agree = signed agreement of the
articles; age = hours since the newest article that counts, days since the newest filing. value, growth, profit, debt = votes
of the filed figures for a rise. news, tech, fund, valid = the others' calls with their conviction; vote = their weighted
consensus; held and cash in percent of equity."""

COMMON: Mapping[str, Field] = {
    "regime": Label(REGIME_LABELS),
    "past": Scale(0, 50, 1),
    "pbuy": Scale(-3, 3, 0.5),
    "psell": Scale(-3, 3, 0.5),
}
"""What follows in every state: the regime, and where experiences were looked for how many there are in markets like this one,
with the mean reward of those on the buy and on the sell side."""

CITED: Mapping[str, tuple[str, str]] = {
    "technical": ("rsi", "trend"),
    "news": ("score", "articles"),
    "fundamental": ("value", "view"),
    "strategist": ("vote", "tech"),
}
"""What a decision cites, by agent: enough to see whether a model reads the state it was given."""

LOCAL_AGENTS = tuple(FIELDS)
"""Agents that a local model can think for."""

_TRENDS = {"uptrend": "up", "downtrend": "down", "sideways": "flat"}
_VIEWS = {"undervalued": "cheap", "fairly_valued": "fair", "overvalued": "dear"}
_VOTERS = {"news": ("news", "nconf"), "technical": ("tech", "tconf"), "fundamental": ("fund", "fconf"), "validator": ("valid", "vconf")}  # fmt: skip


class StateWriter:
    """Writes the states of all agents.

    Parameters
    ----------
    headlines : int
        Headlines that a news state quotes below its line, as delimited data with their evidence ids; 0 for none, which suits a
        model too small to read them.
    boundary_key : bytes
        Behind the boundaries around headlines, see `prompting.delimited`: a text that quoted its own boundary would have to
        hold a hash of itself, so the key need not be secret, and equal states are equal bytes in every process.
    """

    def __init__(self, headlines: int = 0, boundary_key: bytes = b"") -> None:
        self._headlines = headlines
        self._key = boundary_key

    @classmethod
    def configured(cls, config: OrchestratorConfig) -> StateWriter:
        """Return the writer of a configuration."""
        return cls(config.headlines(), replay_key(config.random_state))

    def write(self, facts: AgentOutput, request: PolicyRequest) -> str:
        """Return the state that an agent is asked about: one line, and below it the headlines where there are any.

        Parameters
        ----------
        facts : AgentOutput
            What the rules computed for the request; no abstention.
        request : PolicyRequest
        """
        line = state_line(facts.agent_type, {**figures_of(facts, request), **_common(request)})
        if self._headlines and isinstance(facts, NewsOutput):
            quoted = [
                f"[{item.id}] {legible(str(item.value), HEADLINE_CHARS)}" for item in facts.evidence[: self._headlines]
            ]
            return f"{line}\n{delimited(quoted, self._key)}"
        return line


def state_line(agent_type: str, values: Mapping[str, Any]) -> str:
    """Write values as a state: ``rsi:60 macd:2 ... trend:up regime:neutral``; common fields only where they are given."""
    own = [f"{name}:{field.word(values.get(name))}" for name, field in FIELDS[agent_type].items()]
    common = [f"{name}:{field.word(values[name])}" for name, field in COMMON.items() if name in values]
    return " ".join((*own, *common))


def state_values(state_text: str) -> dict[str, str]:
    """Return the names and values that a state's line states, without what is unknown; quoted texts are no part of it."""
    pairs = (word.partition(":") for word in state_text.partition("\n")[0].split())
    return {name: value for name, _, value in pairs if value and value != UNKNOWN}


def figures_of(facts: AgentOutput, request: PolicyRequest | None = None) -> dict[str, Any]:
    """Return the values of an agent's own fields."""
    if isinstance(facts, TechnicalOutput):
        return _technical(facts)
    assert request is not None
    daily = request.snapshot.inputs.daily_volatility * 100 or None
    if isinstance(facts, NewsOutput):
        newest = (
            min((facts.as_of - item.event_time).total_seconds() for item in facts.evidence) if facts.evidence else None
        )
        return {
            "score": facts.sentiment_score,
            "agree": facts.signals.get("agreement"),
            "articles": len(request.snapshot.news),
            "age": None if newest is None else newest / _HOUR_S,
            "vol": daily,
        }
    if isinstance(facts, FundamentalOutput):
        filed = [item.available_at for item in facts.evidence if item.kind == "filing"]
        votes = facts.signals
        return {
            "value": votes.get("valuation"),
            "growth": votes.get("growth"),
            "profit": votes.get("profitability"),
            "debt": votes.get("leverage"),
            "health": facts.financial_health,
            "quality": facts.growth_quality,
            "age": (facts.as_of - max(filed)).total_seconds() / _DAY_S if filed else None,
            "view": _VIEWS[facts.valuation],
        }
    return {**_opinions(cast(StrategistOutput, facts), request), "vol": daily}


def _technical(facts: TechnicalOutput) -> dict[str, Any]:
    indicators, price = facts.indicators, facts.current_price
    atr = indicators.get("atr_14") or None

    def in_atrs(value: float | None, reference: str, multiple: float = 1.0) -> float | None:
        if value is None or reference not in indicators or atr is None:
            return None
        return (value - indicators[reference]) / atr * multiple

    low, high = indicators.get("bb_lower"), indicators.get("bb_upper")
    within = (
        (price - low) / (high - low)
        if price is not None and low is not None and high is not None and high > low
        else None
    )
    return {
        "rsi": indicators.get("rsi_14"),
        "macd": in_atrs(indicators.get("macd"), "macd_signal", 10),
        "sma20": in_atrs(price, "sma_20"),
        "sma50": in_atrs(price, "sma_50"),
        "stoch": indicators.get("stoch_k"),
        "mfi": indicators.get("mfi_14"),
        "adx": indicators.get("adx_14"),
        "bb": within,
        "vol": atr / price * 100 if atr is not None and price is not None else None,
        "trend": _TRENDS[facts.trend],
    }


def _opinions(facts: StrategistOutput, request: PolicyRequest) -> dict[str, Any]:
    values: dict[str, Any] = {"vote": facts.signals.get("consensus")}
    for name, (call, conviction) in _VOTERS.items():
        output = request.agent_outputs.get(name)
        if output is not None and not output.abstained:
            values |= {call: output.recommendation, conviction: output.confidence}
    portfolio = request.portfolio
    if portfolio is not None and portfolio.equity > 0:
        values["held"] = 100 * portfolio.weights.get(request.snapshot.symbol, 0.0)
        values["cash"] = 100 * portfolio.cash / portfolio.equity
    return values


def _common(request: PolicyRequest) -> dict[str, Any]:
    values: dict[str, Any] = {"regime": request.regime.overall_regime}
    if request.experiences:
        values["past"] = len(request.experiences)
        for name, side in (("pbuy", 1), ("psell", -1)):
            values[name] = _mean_reward(request.experiences, side)
    return values


def _mean_reward(experiences: Sequence[PastExperience], side: int) -> float | None:
    rewards = [past.reward for past in experiences if direction(past.recommendation) == side]
    return sum(rewards) / len(rewards) if rewards else None


def technical_state_text(facts: TechnicalOutput) -> str:
    """Return the technical agent's own fields as a line: ``rsi:60 macd:2 sma20:1.5 ... vol:2.5 trend:up``."""
    return state_line("technical", _technical(facts))
