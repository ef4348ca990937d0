"""Resolves a conflict between agents by one of five strategies, each a formula over their outputs.

Called by the validator's rules and by the analysis of past conflicts, which asks what every strategy would have said.
It weighs what is there: it never asks an agent again, and the order of the outputs makes no difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median
from typing import Any, Literal, Protocol

from pydantic import ValidationError

from agents.conflicts.detection import CONFLICT_TYPES, Conflict, opinions
from agents.expertise import EVENTFUL, OTHER_EXPERTISE, expertise
from utils.errors import ConfigError
from utils.schema import AgentOutput, Evidence, RegimeInputs, direction
from utils.setting_sections import Positive, Section, explained

Strategy = Literal[
    "temporal_priority", "domain_expertise", "confidence_weighted", "signal_strength", "ensemble_voting"
]  # fmt: skip
STRATEGIES: tuple[Strategy, ...] = (
    "temporal_priority",
    "domain_expertise",
    "confidence_weighted",
    "signal_strength",
    "ensemble_voting",
)
Side = Literal["buy", "sell", "hold"]

SIGNAL_SIDE = 0.3
"""|weighted signal| of a side."""

AGREEMENT_BONUS, DISSENT_DISCOUNT = 1.2, 0.8
_FILED_KINDS = frozenset(("filing", "derived"))
_NEWS_KINDS = frozenset(("news", "article"))
_HOUR_S = 3600.0
_INTERVAL_UNITS_S = {"min": 60.0, "h": _HOUR_S, "d": 24 * _HOUR_S}


class ResolutionSettings(Section):
    """Half-lives of evidence by kind, and the difference of ages (in half-lives) from which on the younger counts more."""

    news_half_life_h: Positive = 24.0
    indicator_half_life_bars: Positive = 1.0
    filing_half_life_d: Positive = 90.0
    stale_half_lives: Positive = 2.0


@dataclass(frozen=True, slots=True)
class ResolutionContext:
    """The market in which a conflict arose; the figures are those of `RegimeInputs`.

    `regime` and `as_of` matter only to what has been learned from earlier conflicts.
    """

    volatility: float = 0.5
    trend_strength: float = 0.0
    news_impact: float = 0.0
    regime: str = ""
    as_of: datetime | None = None

    @classmethod
    def of(cls, context: ResolutionContext | RegimeInputs | Mapping[str, Any] | None) -> ResolutionContext:
        """Read a context: of a mapping, the keys that are fields of it (and ``trend`` for trend_strength)."""
        if isinstance(context, ResolutionContext):
            return context
        if isinstance(context, RegimeInputs):
            return cls(context.volatility, context.trend_strength, context.news_impact)
        known = dict(context or {})
        known.setdefault("trend_strength", known.get("trend", 0.0))
        return cls(**{name: known[name] for name in cls.__dataclass_fields__ if known.get(name) is not None})


@dataclass(frozen=True, slots=True)
class ConflictResolution:
    """What became of a conflict.

    Attributes
    ----------
    strategy_used : Strategy
    final_recommendation : {"buy", "sell", "hold"}
    final_confidence : float
        0..1.
    reasoning : str
    contributing_agents : tuple of str
        Whose outputs were weighed, sorted.
    weights : mapping of str to float
        Share of each in the verdict, summing to 1 (all 0 where nobody had any weight).
    chosen_by : {"rule", "learned"}
        Whether the documented rule chose the strategy or what came of earlier conflicts.
    """

    strategy_used: Strategy
    final_recommendation: Side
    final_confidence: float
    reasoning: str
    contributing_agents: tuple[str, ...]
    weights: Mapping[str, float] = field(default_factory=dict)
    chosen_by: Literal["rule", "learned"] = "rule"


class StrategyPreference(Protocol):
    """Knows which strategy has been right where. Answers from what had matured before `as_of` alone; never raises."""

    def preferred(self, conflict_type: str, regime: str, as_of: datetime | None, default: Strategy) -> Strategy | None:
        """Return the strategy to use in place of `default`, None to keep it."""
        ...


class AdvancedConflictResolver:
    """Chooses a strategy for a conflict and applies it.

    Parameters
    ----------
    config : ResolutionSettings or mapping, optional
    preference : StrategyPreference, optional
        What has been learned; without it the documented rule chooses.

    Raises
    ------
    ConfigError
        If the configuration has an unknown key or a value that is not positive.
    """

    def __init__(
        self,
        config: ResolutionSettings | Mapping[str, Any] | None = None,
        preference: StrategyPreference | None = None,
    ) -> None:
        try:
            self.settings = config if isinstance(config, ResolutionSettings) else ResolutionSettings(**(config or {}))
        except ValidationError as error:
            raise ConfigError("; ".join(explained(item) for item in error.errors(include_url=False))) from None
        self._preference = preference

    def resolve_conflict(
        self,
        conflict: Conflict,
        outputs: Mapping[str, AgentOutput],
        context: ResolutionContext | RegimeInputs | Mapping[str, Any] | None = None,
    ) -> ConflictResolution:
        """Resolve one conflict.

        Parameters
        ----------
        conflict : Conflict
        outputs : mapping of str to AgentOutput
            Of all agents; abstentions are no votes.
        context : ResolutionContext, RegimeInputs or mapping, optional
            The market; a calm one by default.
        """
        market = ResolutionContext.of(context)
        votes = opinions(outputs)
        strategy = self._by_rule(conflict, votes, market)
        learned = (
            self._preference.preferred(conflict.conflict_type, market.regime, market.as_of, strategy)
            if self._preference
            else None
        )
        resolution = self._apply(learned or strategy, conflict, votes, market)
        if learned is None or learned == strategy:
            return resolution
        text = f"{resolution.reasoning}; in such conflicts it has been right more often than {strategy}"
        return ConflictResolution(
            resolution.strategy_used, resolution.final_recommendation, resolution.final_confidence, text,
            resolution.contributing_agents, resolution.weights, "learned",
        )  # fmt: skip

    def alternatives(
        self,
        conflict: Conflict,
        outputs: Mapping[str, AgentOutput],
        context: ResolutionContext | RegimeInputs | Mapping[str, Any] | None = None,
    ) -> dict[Strategy, Side]:
        """Return what each of the five strategies says of a conflict, so that all can be held against its outcome."""
        market, votes = ResolutionContext.of(context), opinions(outputs)
        return {name: self._apply(name, conflict, votes, market).final_recommendation for name in STRATEGIES}

    def default_strategy(self, conflict: Conflict, outputs: Mapping[str, AgentOutput], context: Any = None) -> Strategy:
        """Return the strategy that the documented rule chooses."""
        return self._by_rule(conflict, opinions(outputs), ResolutionContext.of(context))

    def pooled(self, outputs: Mapping[str, AgentOutput]) -> ConflictResolution:
        """Return the confidence-weighted view of outputs among which there is no conflict."""
        conflict = Conflict("confidence_disagreement", (), 0.0, "no conflict")
        return self._apply("confidence_weighted", conflict, opinions(outputs), ResolutionContext())

    def _by_rule(self, conflict: Conflict, votes: Mapping[str, AgentOutput], market: ResolutionContext) -> Strategy:
        ages = [age for name in conflict.agents if (age := self._age(votes.get(name))) is not None]
        if len(ages) > 1 and max(ages) - min(ages) > self.settings.stale_half_lives:
            return "temporal_priority"
        if conflict.conflict_type == CONFLICT_TYPES[1]:
            return "signal_strength"
        if conflict.conflict_type == CONFLICT_TYPES[2]:
            return "ensemble_voting"
        eventful = market.volatility > EVENTFUL or market.news_impact > EVENTFUL
        return "domain_expertise" if eventful else "confidence_weighted"

    def _apply(
        self, strategy: Strategy, conflict: Conflict, votes: Mapping[str, AgentOutput], market: ResolutionContext
    ) -> ConflictResolution:
        if strategy == "signal_strength":
            return _signal_strength(conflict, votes)
        if strategy == "ensemble_voting":
            return _ensemble(votes)
        if strategy == "temporal_priority":
            weights = self._by_youth(votes)
            return _weighted(strategy, votes, weights, "the younger the evidence the more a vote counts")
        if strategy == "domain_expertise":
            table = expertise(market.volatility, market.news_impact, market.trend_strength)
            weights = {name: table.get(name, OTHER_EXPERTISE) * out.confidence for name, out in votes.items()}
            return _weighted(strategy, votes, weights, "votes count by expertise in this market times confidence")
        weights = {name: out.confidence for name, out in votes.items()}
        return _weighted(strategy, votes, weights, "votes count by confidence")

    def _by_youth(self, votes: Mapping[str, AgentOutput]) -> dict[str, float]:
        """Return confidence times 0.5^age; who cites nothing counts as the oldest: no evidence earns no priority."""
        ages = {name: self._age(output) for name, output in votes.items()}
        oldest = max((age for age in ages.values() if age is not None), default=0.0)
        return {
            name: output.confidence * 0.5 ** (oldest if (age := ages[name]) is None else age)
            for name, output in votes.items()
        }

    def _age(self, output: AgentOutput | None) -> float | None:
        """Return the median age of an output's evidence, each piece in half-lives of its kind; None without evidence."""
        if output is None or not output.evidence:
            return None
        return float(median(self._half_lives(item, output.as_of) for item in output.evidence))

    def _half_lives(self, item: Evidence, as_of: datetime) -> float:
        if item.kind in _NEWS_KINDS:
            half_life_s = self.settings.news_half_life_h * _HOUR_S
        elif item.kind in _FILED_KINDS:
            half_life_s = self.settings.filing_half_life_d * 24 * _HOUR_S
        else:
            half_life_s = self.settings.indicator_half_life_bars * _interval_s(item.bar_interval)
        return max(0.0, (as_of - item.event_time).total_seconds()) / half_life_s


def _interval_s(interval: str | None) -> float:
    """Return the length of a bar in seconds, a day where it is not said."""
    for unit, seconds in _INTERVAL_UNITS_S.items():
        if interval and interval.endswith(unit) and interval.removesuffix(unit).isdigit():
            return max(1, int(interval.removesuffix(unit))) * seconds
    return _INTERVAL_UNITS_S["d"]


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(weights.values())
    return {name: weight / total if total > 0 else 0.0 for name, weight in weights.items()}


def _winner(totals: Mapping[Side, float]) -> Side:
    """Return the side with most weight; where two have it, hold."""
    most = max(totals.values())
    leading: list[Side] = [side for side, total in totals.items() if math.isclose(total, most, rel_tol=1e-9)]
    return leading[0] if len(leading) == 1 else "hold"


def _side(output: AgentOutput) -> Side:
    sides: tuple[Side, Side, Side] = ("sell", "hold", "buy")
    return sides[direction(output.recommendation) + 1]


def _weighted(
    strategy: Strategy, votes: Mapping[str, AgentOutput], weights: Mapping[str, float], how: str
) -> ConflictResolution:
    """Return the side with most weight, and as confidence its share; of a tie, the share of each of the tied."""
    shares = _shares(weights)
    totals: dict[Side, float] = {
        side: math.fsum(share for name, share in shares.items() if _side(votes[name]) == side)
        for side in ("buy", "sell", "hold")
    }
    side = _winner(totals)
    text = f"{strategy}: {how}; {_written(totals)}, so {side}"
    return ConflictResolution(strategy, side, min(1.0, max(totals.values())), text, tuple(sorted(shares)), shares)


def _signal_strength(conflict: Conflict, votes: Mapping[str, AgentOutput]) -> ConflictResolution:
    """Return the side of w = Σv·|v|/Σ|v| over the readings of the signal, of all signals where the conflict is of none."""
    readings = {
        name: [v for signal, v in output.signals.items() if conflict.signal in (None, signal)]
        for name, output in votes.items()
    }
    readings = {name: values for name, values in readings.items() if values}
    values = [value for found in readings.values() for value in found]
    magnitude = math.fsum(abs(value) for value in values)
    strength = math.fsum(value * abs(value) for value in values) / magnitude if magnitude > 0 else 0.0
    side: Side = "buy" if strength > SIGNAL_SIDE else "sell" if strength < -SIGNAL_SIDE else "hold"
    shares = _shares({name: math.fsum(abs(value) for value in found) for name, found in readings.items()})
    what = conflict.signal or "the signals"
    text = f"signal_strength: {what} weighted by magnitude is {strength:.3g}, so {side}"
    return ConflictResolution("signal_strength", side, min(1.0, abs(strength)), text, tuple(sorted(readings)), shares)


def _ensemble(votes: Mapping[str, AgentOutput]) -> ConflictResolution:
    weighed = _weighted("confidence_weighted", votes, {name: out.confidence for name, out in votes.items()}, "")
    counts: dict[Side, float] = {
        side: float(sum(_side(output) == side for output in votes.values())) for side in ("buy", "sell", "hold")
    }
    majority = _winner(counts)
    agrees = majority == weighed.final_recommendation
    factor = AGREEMENT_BONUS if agrees else DISSENT_DISCOUNT
    text = (
        f"ensemble_voting: most say {majority}, by confidence it is {weighed.final_recommendation}: "
        f"{'they agree' if agrees else 'they differ'}, so {weighed.final_recommendation}"
    )
    return ConflictResolution(
        "ensemble_voting", weighed.final_recommendation, min(1.0, weighed.final_confidence * factor), text,
        weighed.contributing_agents, weighed.weights,
    )  # fmt: skip


def _written(totals: Mapping[Side, float]) -> str:
    return ", ".join(f"{side} {total:.3g}" for side, total in totals.items() if total > 0) or "nobody has any weight"
