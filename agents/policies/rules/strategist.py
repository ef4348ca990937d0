"""The strategist by rules: one signal from the analysts' votes, a volatility-targeted size, stop and target from ATR.

Called through `agents.senior.strategist_agent` once the juniors of a symbol have answered. It is long-only: a sell side
means to close what is held, and where nothing is held it holds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.base_agent import abstain
from agents.expertise import OTHER_EXPERTISE, expertise
from agents.policies.base import PastExperience, PolicyRequest
from agents.policies.rules.figures import bar_evidence, written
from agents.policies.rules.levels import Levels, LevelSettings, price_levels
from data_pipeline.rounding import clip, figure, price_figure
from utils.schema import (
    AgentOutput,
    AgentType,
    Evidence,
    MarketSnapshot,
    RegimeInputs,
    StrategistOutput,
    TechnicalOutput,
    ValidatorOutput,
)

VOTES = {"strong_buy": 1.0, "buy": 0.7, "hold": 0.0, "sell": -0.7, "strong_sell": -1.0}

SIDE_SIGNAL = 0.2
STRONG_SIGNAL = 0.75
STRONG_CONFIDENCE = 0.7
LEAST_CONFIDENCE = 0.5
"""Below it there is no side."""

NO_CONVICTION = 0.01
"""An opinion held with less is none."""

CONFLICT_CONFIDENCE = 0.5
"""Confidence from which on two analysts on opposite sides are a conflict that has to be named."""

SESSIONS_A_YEAR = 252
HORIZON_SESSIONS = 5
SKILL = 0.05
"""Information coefficient: the correlation of a good daily signal with what comes."""

FULL_SCORE = 2.0
"""Standard score of a signal of 1."""

MAX_EVIDENCE_EACH = 3


@dataclass(frozen=True, slots=True)
class StrategistSettings:
    """What a strategist is free to choose.

    Attributes
    ----------
    max_size : float
        Largest share of equity in one symbol.
    target_volatility : float
        Yearly volatility of a book that is full of positions like this one: a position's share of `max_size` is this
        over the symbol's own volatility, at most 1.
    levels : LevelSettings
        Distances of stop and take profit.
    lean : float
        Added to the signal; only sampling uses it.
    """

    max_size: float = 0.10
    target_volatility: float = 0.15
    levels: LevelSettings = field(default_factory=LevelSettings)
    lean: float = 0.0


@dataclass(frozen=True, slots=True)
class _Vote:
    name: str
    output: AgentOutput
    weight: float
    vote: float


@dataclass(frozen=True, slots=True)
class _Verdict:
    """The side (-1, 0, 1), its signal and confidence, and the reasons in the order in which they arose."""

    side: int
    signal: float
    confidence: float
    factors: tuple[str, ...]


class RulesStrategist:
    """A `Policy` of weighted votes.

    Notes
    -----
    signal = Σ e·c·v / Σ e·c with e the expertise of the analyst in this market, c its confidence, v its vote in -1..1.
    Confidence of a side = mean confidence of its supporters times 0.6 + 0.4·(their share of the weight). Expected return
    = volatility·IC·score (Grinold and Kahn, Active Portfolio Management, 2nd ed., chapter 10) over five sessions. Where a
    validator has spoken, its view takes the place of the votes that it replaces, with their weight: nobody counts twice.
    """

    agent_type: AgentType = "strategist"
    name = "rules"
    reads_experiences = False
    waits = False
    prompt_hash: str | None = None

    def __init__(self, settings: StrategistSettings | None = None) -> None:
        self.settings = settings or StrategistSettings()

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        """Answer every request; if no analyst has an opinion, or there is no fresh price, the answer is an abstention."""
        return [self._decide(request, self.settings) for request in requests]

    def sample(self, request: PolicyRequest, temperature: float, random_state: int) -> AgentOutput:
        """Return one of the answers that a strategist of other tastes would give.

        Parameters
        ----------
        temperature : float
            0 is the usual answer; signal, size and distances vary in proportion to it.
        random_state : int
            Equal states give equal answers.
        """
        if temperature < 0 or not math.isfinite(temperature):
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        rng = random.Random(random_state)
        base = self.settings
        stop, ratio, size = (math.exp(0.4 * temperature * clip(rng.gauss(0, 1), -3, 3)) for _ in range(3))
        levels = LevelSettings(base.levels.stop_atr * stop, base.levels.take_atr * stop * ratio)
        tastes = StrategistSettings(
            base.max_size, base.target_volatility * size, levels, 0.3 * temperature * clip(rng.gauss(0, 1), -3, 3)
        )
        return self._decide(request, tastes)

    def _decide(self, request: PolicyRequest, settings: StrategistSettings) -> AgentOutput:
        snapshot = request.snapshot
        analysts = _votes(request.agent_outputs, snapshot.inputs)
        votes = _validated(analysts, request.agent_outputs.get("validator"))
        reason = ""
        if not votes:
            reason = "every analyst abstains"
        elif snapshot.price is None or snapshot.stale:
            reason = "there is no price of the present session"
        if reason or snapshot.price is None:
            return abstain(self.agent_type, snapshot.symbol, snapshot.as_of, reason, self.name)
        verdict = _verdict(votes, settings.lean, _conflict(analysts))
        return self._carried_out(request, settings, analysts, votes, verdict)

    def carry_out(
        self, request: PolicyRequest, recommendation: str, confidence: float
    ) -> tuple[StrategistOutput, str | None]:
        """Return the decision that another mind's verdict becomes: size, stop and target as for the rules' own.

        Parameters
        ----------
        request : PolicyRequest
            One that the rules do not abstain from.
        recommendation : str
            One of the five. It becomes a hold where confidence, portfolio or levels allow no side.
        confidence : float
            0..1.

        Returns
        -------
        StrategistOutput
        str or None
            Why a side became a hold, one of the key factors; None where the verdict stands.
        """
        analysts = _votes(request.agent_outputs, request.snapshot.inputs)
        votes = _validated(analysts, request.agent_outputs.get("validator"))
        vote = VOTES[recommendation]
        side = (vote > 0) - (vote < 0)
        factors = [*_factors(votes), *_resolved(_conflict(analysts), "the model", side)]
        verdict = _Verdict(side, vote * confidence, confidence, tuple(factors))
        if side and confidence < LEAST_CONFIDENCE:
            verdict = _held(verdict, "confidence is too low for a side")
        output = self._carried_out(
            request, self.settings, analysts, votes, verdict, recommendation.startswith("strong")
        )
        if output.recommendation == recommendation:
            return output, None
        return output, output.key_factors[len(factors)]  # what came after the views is why

    def _carried_out(
        self,
        request: PolicyRequest,
        settings: StrategistSettings,
        analysts: Sequence[_Vote],
        votes: Sequence[_Vote],
        verdict: _Verdict,
        strong: bool | None = None,
    ) -> StrategistOutput:
        """Return a verdict as an output; without `strong` the signal decides whether a side is one."""
        snapshot = request.snapshot
        assert snapshot.price is not None
        price = price_figure(snapshot.price)
        atr = _atr(request.agent_outputs)
        spoken = [*analysts, *(vote for vote in votes if vote.name == "validator")]
        levels = None
        size = 0.0
        if verdict.side:
            levels = price_levels(verdict.side, price, atr, snapshot.inputs.daily_volatility, settings.levels)
            verdict, size = _allowed(verdict, levels, request, settings)
        side = verdict.side
        if not side:
            levels = None
        word = ("sell", "hold", "buy")[side + 1]
        if strong is None:
            strong = abs(verdict.signal) >= STRONG_SIGNAL and verdict.confidence >= STRONG_CONFIDENCE
        recommendation = f"strong_{word}" if side and strong else word
        return StrategistOutput.model_validate(
            {
                "symbol": snapshot.symbol,
                "as_of": snapshot.as_of,
                "recommendation": recommendation,
                "confidence": verdict.confidence,
                "reasoning": _reasoning(recommendation, spoken, verdict, request.regime.overall_regime, price),
                "signals": {
                    "consensus": figure(clip(verdict.signal)),
                    **{vote.name: figure(vote.vote * vote.output.confidence) for vote in spoken},
                },
                "evidence": _evidence(analysts, price, snapshot),
                "policy": self.name,
                "position_size": size,
                "entry_target": price if levels else None,
                "stop_loss": levels.stop if levels else None,
                "take_profit": levels.take if levels else None,
                "expected_return": _expected_return(verdict, snapshot.inputs.daily_volatility, atr, price),
                "risk_reward_ratio": levels.ratio if levels else None,
                "key_factors": (*verdict.factors, *_recollection(request.experiences)),
                "risk_assessment": _risk(levels, size, atr, request.regime.volatility_regime, side),
            }
        )


def _recollection(experiences: Sequence[PastExperience]) -> Iterator[str]:
    """Say what came of earlier decisions in markets like this; it informs people and weighs nothing."""
    if experiences:
        came_true = sum(experience.success for experience in experiences)
        yield f"{came_true} of {len(experiences)} earlier decisions in markets like this came true"


def _votes(outputs: Mapping[str, AgentOutput], inputs: RegimeInputs) -> list[_Vote]:
    """Return the votes of those who have an opinion, by name, weighted by expertise and confidence."""
    table = expertise(inputs.volatility, inputs.news_impact, inputs.trend_strength)
    return [
        _Vote(name, output, table.get(name, OTHER_EXPERTISE) * output.confidence, VOTES[output.recommendation])
        for name, output in sorted(outputs.items())
        if not output.abstained and output.confidence >= NO_CONVICTION and not isinstance(output, ValidatorOutput)
    ]


def _validated(votes: Sequence[_Vote], validator: AgentOutput | None) -> list[_Vote]:
    """Return the votes that count: where a validator has spoken, its view with the weight of all that it replaces."""
    if not isinstance(validator, ValidatorOutput) or validator.abstained or validator.confidence < NO_CONVICTION:
        return list(votes)
    replaced = [vote for vote in votes if vote.name in validator.replaces]
    if not replaced:
        return list(votes)
    weight = sum(vote.weight for vote in replaced)
    view = _Vote("validator", validator, weight, VOTES[validator.recommendation])
    return [*(vote for vote in votes if vote.name not in validator.replaces), view]


def _verdict(votes: Sequence[_Vote], lean: float, conflict: str) -> _Verdict:
    total = sum(vote.weight for vote in votes)
    signal = clip(sum(vote.weight * vote.vote for vote in votes) / total + lean)
    side = (1 if signal > 0 else -1) if abs(signal) >= SIDE_SIGNAL else 0
    factors = _factors(votes)
    supporters = [vote for vote in votes if vote.vote * side > 0]
    if side and supporters:
        weight = sum(vote.weight for vote in supporters)
        confidence = sum(vote.weight * vote.output.confidence for vote in supporters) / weight
        confidence = figure(confidence * (0.6 + 0.4 * weight / total))
    else:
        side = 0
        confidence = figure(sum(vote.weight * vote.output.confidence for vote in votes) / total * (1 - abs(signal)))
    if side and confidence < LEAST_CONFIDENCE:
        factors.append("confidence is too low for a side")
        side = 0
    how = "the validator" if votes[-1].name == "validator" else "confidence and expertise"
    return _Verdict(side, signal, confidence, (*factors, *_resolved(conflict, how, side)))


def _factors(votes: Sequence[_Vote]) -> list[str]:
    """Say who votes what."""
    return [f"{vote.name}: {vote.output.recommendation.replace('_', ' ')}" for vote in votes]


def _resolved(conflict: str, how: str, side: int) -> list[str]:
    """Say how a conflict was resolved, nothing where there is none."""
    return [f"conflict of {conflict} resolved by {how}: {('sell', 'hold', 'buy')[side + 1]}"] if conflict else []


def _conflict(votes: Sequence[_Vote]) -> str:
    """Return the two camps where confident analysts stand on both sides, an empty string otherwise."""
    firm = [vote for vote in votes if vote.output.confidence >= CONFLICT_CONFIDENCE]
    buyers = ", ".join(vote.name for vote in firm if vote.vote > 0)
    sellers = ", ".join(vote.name for vote in firm if vote.vote < 0)
    return f"{buyers} (buy) with {sellers} (sell)" if buyers and sellers else ""


def _allowed(
    verdict: _Verdict, levels: Levels | None, request: PolicyRequest, settings: StrategistSettings
) -> tuple[_Verdict, float]:
    """Return the verdict that portfolio and levels allow, and the size: target share of equity, 0 to close."""
    if levels is None:
        return _held(verdict, "the price moves too little for a stop and a target"), 0.0
    portfolio, symbol = request.portfolio, request.snapshot.symbol
    held = portfolio.weights.get(symbol, 0.0) if portfolio else 0.0
    if verdict.side < 0:
        if portfolio is not None and held <= 0:
            return _held(verdict, "nothing is held that could be sold, and short sales are off"), 0.0
        return verdict, 0.0
    size = _size(verdict.confidence, request.snapshot.inputs.daily_volatility, levels, settings)
    if portfolio is not None:
        free = max(0.0, portfolio.cash) / portfolio.equity if portfolio.equity > 0 else 0.0
        size = min(size, max(0.0, held) + free)
    size = math.floor(size * 1e4) / 1e4
    if size <= 0:
        return _held(verdict, "there is no cash for a purchase"), 0.0
    return verdict, size


def _held(verdict: _Verdict, reason: str) -> _Verdict:
    """Return the verdict as a hold, with the reason."""
    return _Verdict(0, verdict.signal, verdict.confidence, (*verdict.factors, reason))


def _size(confidence: float, daily_volatility: float, levels: Levels, settings: StrategistSettings) -> float:
    """Return the target share of equity: inverse to volatility, and growing with confidence from half to full."""
    yearly = (daily_volatility or levels.usual_move) * math.sqrt(SESSIONS_A_YEAR)
    conviction = 0.5 + 0.5 * clip((confidence - LEAST_CONFIDENCE) / 0.35, 0.0, 1.0)
    return settings.max_size * min(1.0, settings.target_volatility / yearly) * conviction


def _expected_return(verdict: _Verdict, daily_volatility: float, atr: float | None, price: float) -> float:
    """Return the instrument's expected return over the horizon; of a side it has the side's sign."""
    sigma = daily_volatility or (atr / price if atr else 0.0)
    expected = figure(SKILL * FULL_SCORE * verdict.signal * sigma * math.sqrt(HORIZON_SESSIONS))
    if verdict.side and expected * verdict.side <= 0:
        return verdict.side * 1e-6
    return expected


def _atr(outputs: Mapping[str, AgentOutput]) -> float | None:
    """Return the technical analyst's ATR in USD, None where there is none or it is 0."""
    technical = outputs.get("technical")
    if isinstance(technical, TechnicalOutput) and not technical.abstained:
        return technical.indicators.get("atr_14") or None
    return None


def _evidence(votes: Sequence[_Vote], price: float, snapshot: MarketSnapshot) -> list[Evidence | dict[str, Any]]:
    """Return the price and what the analysts rest on most: the strategist sees no market of its own."""
    evidence: list[Evidence | dict[str, Any]] = [bar_evidence("bar:close", "price", price, "USD", snapshot.as_of)]
    for vote in votes:
        taken = [item for item in vote.output.evidence if item.id != "bar:close"][:MAX_EVIDENCE_EACH]
        evidence += [item for item in vote.output.evidence if item.id == "ind:atr_14" and item not in taken]
        evidence += taken
    return evidence


def _risk(levels: Levels | None, size: float, atr: float | None, volatility: str, side: int) -> str:
    if levels is None or not side:
        return f"No position is asked for; volatility is {volatility}."
    basis = "average true range" if atr else "fixed shares of the price, for want of a range"
    text = (
        f"Volatility is {volatility}. The stop at {written(levels.stop)} ends the trade if it fails and the target at "
        f"{written(levels.take)} if it succeeds; both are set by {basis}. Overnight gaps can fill beyond the stop."
    )
    return text if side > 0 else f"{text} Selling closes the holding; a rise afterwards is missed."


def _reasoning(recommendation: str, votes: Sequence[_Vote], verdict: _Verdict, regime: str, price: float) -> str:
    """Say who voted what and how the votes add up; the numbers are those of the outputs behind it."""
    said = "; ".join(
        f"{vote.name} says {vote.output.recommendation.replace('_', ' ')} with confidence {written(vote.output.confidence)}"
        for vote in votes
    )
    return (
        f"In a {regime.replace('_', ' ')} regime at a price of {written(price)}, {said}. Weighted by expertise and "
        f"confidence the consensus is {written(figure(verdict.signal))}: {recommendation.replace('_', ' ')} with confidence "
        f"{written(verdict.confidence)}. Decisive: {'; '.join(verdict.factors[-2:])}."
    )
