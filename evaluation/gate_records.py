"""What the deployment gate reads and what it says: paired decisions, settings, and the verdict with every number behind it.

`evaluation.gate` judges them, training fills and stores them. Values only: nothing is computed here but checks of what is
given, and nothing of a judge's grade has a place in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal

Verdict = Literal["promote", "reject", "insufficient_evidence"]


@dataclass(frozen=True, slots=True)
class Answered:
    """What a policy said on one state, as far as it can be examined without knowing the outcome.

    Attributes
    ----------
    recommendation : str
        As stated, before anything refuses to carry it out.
    confidence : float
        0..1, as stated.
    cited, truthful : str
        The citation, and what the state says under the same names; both empty where a policy cites nothing.
    fatal : frozenset of str or None
        Categories of fatal findings in the output; None where the output could not be rebuilt.
    attacks : frozenset of str
        Families of attacks on judges that its texts show.
    """

    recommendation: str
    confidence: float
    cited: str = ""
    truthful: str = ""
    fatal: frozenset[str] | None = None
    attacks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PairedDecision:
    """One held-out decision, taken by both policies on the same snapshot and matured since.

    Attributes
    ----------
    champion_reward, challenger_reward : float
        Their rewards; an output that is not valid earns what its fallback earned.
    champion_net_return, challenger_net_return : float
        Return of the side they took, market-relative where it can be, net of costs (fraction); exactly 0 for a hold.
    challenger_valid : bool
        The challenger's output could be parsed and obeys the schema.
    challenger_grounded : bool
        What it cites is what it was given.
    regime : str or None
        Label at the decision.
    state : str
        Identifies what both were shown; equal states have equal texts.
    champion_answer, challenger_answer : Answered or None
        What they said; None where nothing is known of it beyond its worth.
    """

    session: date
    symbol: str
    champion_reward: float
    challenger_reward: float
    champion_net_return: float
    challenger_net_return: float
    challenger_valid: bool
    challenger_grounded: bool
    regime: str | None = None
    state: str = ""
    champion_answer: Answered | None = None
    challenger_answer: Answered | None = None


@dataclass(frozen=True, slots=True)
class GateEvidence:
    """What the gate looks at. `horizon_sessions` is the horizon of the outcomes, so that blocks outlast their overlap.

    Raises
    ------
    ValueError
        If a symbol stands twice in a session, a number is not finite or the horizon is below one session.
    """

    decisions: tuple[PairedDecision, ...]
    horizon_sessions: int = 5

    def __post_init__(self) -> None:
        if self.horizon_sessions < 1:
            raise ValueError(f"horizon_sessions must be at least 1, not {self.horizon_sessions}")
        seen: set[tuple[date, str]] = set()
        for item in self.decisions:
            key = (item.session, item.symbol)
            if key in seen:
                raise ValueError(f"{item.symbol} stands twice on {item.session}; pair each decision once")
            seen.add(key)
            # a sum is finite only if its parts are, save for opposite infinities, which give NaN
            total = (
                item.champion_reward + item.challenger_reward + item.champion_net_return + item.challenger_net_return
            )
            if not math.isfinite(total):
                raise ValueError(f"{item.symbol} on {item.session} has a reward or return that is not finite")


@dataclass(frozen=True, slots=True)
class GateSettings:
    """Thresholds of the gate.

    Attributes
    ----------
    min_sessions, min_decisions : int
        Below either there is no verdict on quality.
    min_regime_sessions : int
        Below it a regime is not judged.
    level : float
        One-sided level of the lower bounds. An iid test at 5 % promotes policies without skill in up to 83 % of trials
        on dependent decisions; blocks of 20 sessions leave 9 %, hence 2 %. It is the error of one gate: successive
        gates each spend it anew.
    min_block_sessions, block_horizons : int
        A block is the longer of the first and of that many horizons.
    independent_sessions : bool
        Generated data without dependence between sessions: blocks of one.
    return_margin : float
        How far the lower bound of the net-return difference may lie below zero, a decision (fraction). The default is
        what one round trip costs the paper broker (2 x 8 bp): a difference below that is within the cost model's doubt.
    regime_margin, regime_level : float
        A regime rejects where it is shown, at this level over all regimes together, that the challenger loses more than
        the margin there (reward). The default is `return_margin` in units of a usual move over five sessions (3 %).
    min_validity, min_grounding : float
        Floors of the shares of outputs that are valid, and that are valid and grounded.
    min_activity : float
        Share of the champion's calls with a side that the challenger must still make. Less means that it has stopped
        trading: that beats a losing champion without any skill, and yields nothing by which it could be judged later.
    max_same_side, max_same_confidence : float
        Share of one side, and of one confidence in tenths, from which on answers count as constant, unless the champion's
        are as uniform. Sides of a policy that reads its state keep below it even in a year that mostly rises.
    max_confidence_gap : float
        One confidence for everything is honest where it is a base rate: so near to the share of the challenger's sides that
        paid. A small model that cannot tell its chances apart says the commonest one; .15 is two standard errors of that
        share on 60 sessions that hold some 50 independent decisions.
    min_response : float
        How often two different states must get different answers, as a share of how often they do from the champion.
    min_variety : float
        Different citations as a share of those that the same names would truthfully give; a truthful policy has 1.
    min_states : int
        Different states (or truthful citations) below which nothing is said about how answers follow them.
    draws, seed : int
        Of the bootstrap.
    """

    min_sessions: int = 60
    min_regime_sessions: int = 60
    min_decisions: int = 200
    level: float = 0.98
    min_block_sessions: int = 20
    block_horizons: int = 4
    independent_sessions: bool = False
    return_margin: float = 0.0016
    regime_margin: float = 0.05
    regime_level: float = 0.98
    min_validity: float = 0.90
    min_grounding: float = 0.80
    min_activity: float = 0.25
    max_same_side: float = 0.95
    max_same_confidence: float = 0.98
    max_confidence_gap: float = 0.15
    min_response: float = 0.25
    min_variety: float = 0.5
    min_states: int = 8
    draws: int = 4000
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("level", "regime_level"):
            if not 0.5 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between .5 and 1, not {getattr(self, name)}")
        for name in ("return_margin", "regime_margin"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        for name in (
            "min_validity", "min_grounding", "min_activity", "max_same_side", "max_same_confidence", "max_confidence_gap",
            "min_response",
            "min_variety",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share 0..1, not {getattr(self, name)}")
        for name in (
            "min_sessions",
            "min_regime_sessions",
            "min_decisions",
            "min_block_sessions",
            "block_horizons",
            "min_states",
            "draws",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Difference:
    """Challenger minus champion, the mean over sessions of the mean within a session.

    `lower_bound`, `standard_error` and `minimum_detectable_edge` are None where there are fewer than three blocks. The
    edge is the smallest true difference that would have been found with a power of .80.
    """

    champion_mean: float
    challenger_mean: float
    mean: float
    standard_error: float | None
    lower_bound: float | None
    minimum_detectable_edge: float | None


@dataclass(frozen=True, slots=True)
class RegimeFigures:
    """The reward's difference within one regime.

    `lower_bound` has the gate's level; `upper_bound` that of the regimes together, corrected for how many are judged. Both
    are None in a regime that has too few sessions to be judged.
    """

    regime: str
    decisions: int
    sessions: int
    mean_difference: float
    lower_bound: float | None
    upper_bound: float | None = None


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that the gate asks for: whether it is met (None where it cannot be judged), in words and in numbers."""

    name: str
    met: bool | None
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The verdict, why, and every number behind it; `to_dict` gives JSON values.

    `reasons` are the texts of the criteria that decided: those not met, or all that were met; without a verdict, what the
    evidence lacks. `criteria` are all of them.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    decisions: int
    sessions: int
    first_session: date | None
    last_session: date | None
    horizon_sessions: int
    reward: Difference | None
    net_return: Difference | None
    validity: float | None
    grounding: float | None
    champion_activity: float | None
    challenger_activity: float | None
    block: int
    few_blocks_factor: float | None
    overlap_factor: float
    power: float
    settings: GateSettings
    by_regime: tuple[RegimeFigures, ...] = ()
    criteria: tuple[Criterion, ...] = ()

    @property
    def promoted(self) -> bool:
        """Whether the challenger may go on."""
        return self.verdict == "promote"

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON values: no NaN, dates in ISO form."""
        values = dataclasses.asdict(self)
        for name in ("first_session", "last_session"):
            values[name] = values[name] and values[name].isoformat()
        for name in ("reasons", "by_regime", "criteria"):
            values[name] = list(values[name])
        return values
