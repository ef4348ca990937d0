"""The deployment gate: may a challenger replace the champion, judged on held-out decisions that both have taken.

The learning loop calls `evaluate_gate` with paired records and stores the verdict whole, promotions and rejections
alike. A pure function of evidence and settings: no file, no clock, no randomness beyond the seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import MIN_BLOCKS, Interval, few_blocks_factor, lower_bound

Verdict = Literal["promote", "reject", "insufficient_evidence"]

POWER = 0.80
_POWER_DEVIATE = NormalDist().inv_cdf(POWER)


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
        Label at the decision, for the figures by regime.
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
    min_validity, min_grounding : float
        Floors of the shares of outputs that are valid, and that are valid and grounded.
    min_activity : float
        Share of the champion's calls with a side that the challenger must still make. Less means that it has stopped
        trading: that beats a losing champion without any skill, and yields nothing by which it could be judged later.
    draws, seed : int
        Of the bootstrap.
    """

    min_sessions: int = 60
    min_decisions: int = 200
    level: float = 0.98
    min_block_sessions: int = 20
    block_horizons: int = 4
    independent_sessions: bool = False
    return_margin: float = 0.0016
    min_validity: float = 0.90
    min_grounding: float = 0.80
    min_activity: float = 0.25
    draws: int = 4000
    seed: int = 42

    def __post_init__(self) -> None:
        if not 0.5 < self.level < 1:
            raise ValueError(f"level must lie between .5 and 1, not {self.level}")
        if self.return_margin < 0:
            raise ValueError(f"return_margin must not be negative, not {self.return_margin}")
        for name in ("min_validity", "min_grounding", "min_activity"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share 0..1, not {getattr(self, name)}")
        for name in ("min_sessions", "min_decisions", "min_block_sessions", "block_horizons", "draws"):
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
    """The reward's difference within one regime: reported, never decided on."""

    regime: str
    decisions: int
    sessions: int
    mean_difference: float
    lower_bound: float | None


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The verdict, why, and every number behind it; `to_dict` gives JSON values."""

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
    power: float
    settings: GateSettings
    by_regime: tuple[RegimeFigures, ...] = field(default=())

    @property
    def promoted(self) -> bool:
        """Whether the challenger may go on."""
        return self.verdict == "promote"

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON values: no NaN, dates in ISO form."""
        values = dataclasses.asdict(self)
        for name in ("first_session", "last_session"):
            values[name] = values[name] and values[name].isoformat()
        values["reasons"] = list(self.reasons)
        values["by_regime"] = list(values["by_regime"])
        return values


def evaluate_gate(evidence: GateEvidence, settings: GateSettings | None = None) -> GateVerdict:
    """Judge a challenger against the champion.

    It is promoted where all of this holds: the one-sided lower bound of the paired reward difference lies above zero;
    that of the net return above the margin; validity, grounding and activity reach their floors. Differences are
    averaged within a session first, because decisions of one day share the market, and then bootstrapped in blocks of
    sessions.

    Returns
    -------
    GateVerdict
        ``insufficient_evidence`` below the minimum of sessions or decisions or with fewer than three blocks; the
        figures that can be computed are there all the same.
    """
    settings = settings or GateSettings()
    decisions = evidence.decisions
    count = len(decisions)
    block = _block(evidence.horizon_sessions, settings)
    sessions = sorted({item.session for item in decisions})
    missing = _missing(count, len(sessions), block, settings)
    share = _share_of(decisions)
    validity = share(lambda d: d.challenger_valid)
    grounding = share(lambda d: d.challenger_valid and d.challenger_grounded)
    champion_activity = share(lambda d: d.champion_net_return != 0)
    challenger_activity = share(lambda d: d.challenger_net_return != 0)
    reward = net = None
    if decisions:
        reward = _difference(
            _by_session(decisions, lambda d: (d.champion_reward, d.challenger_reward)), block, settings
        )
        net = _difference(
            _by_session(decisions, lambda d: (d.champion_net_return, d.challenger_net_return)), block, settings
        )
    verdict: Verdict = "insufficient_evidence"
    reasons = missing
    if not missing and reward and net:
        criteria = [
            _reward_criterion(reward, settings),
            _return_criterion(net, settings),
            _floor("valid outputs", validity, settings.min_validity),
            _floor("outputs that are grounded in their evidence", grounding, settings.min_grounding),
            _activity_criterion(champion_activity, challenger_activity, settings),
        ]
        verdict = "promote" if all(met for met, _ in criteria) else "reject"
        reasons = [text for met, text in criteria if met == (verdict == "promote")]
    return GateVerdict(
        verdict=verdict,
        reasons=tuple(reasons),
        decisions=count,
        sessions=len(sessions),
        first_session=sessions[0] if sessions else None,
        last_session=sessions[-1] if sessions else None,
        horizon_sessions=evidence.horizon_sessions,
        reward=reward,
        net_return=net,
        validity=validity,
        grounding=grounding,
        champion_activity=champion_activity,
        challenger_activity=challenger_activity,
        block=block,
        few_blocks_factor=few_blocks_factor(len(sessions), block, settings.level) if len(sessions) > block else None,
        power=POWER,
        settings=settings,
        by_regime=_by_regime(decisions, block, settings),
    )


def _block(horizon: int, settings: GateSettings) -> int:
    if settings.independent_sessions:
        return 1
    return max(settings.min_block_sessions, settings.block_horizons * horizon)


def _missing(count: int, sessions: int, block: int, settings: GateSettings) -> list[str]:
    """Return what the evidence lacks, as sentences."""
    found = []
    if sessions < settings.min_sessions:
        found.append(f"There are {sessions} sessions; at least {settings.min_sessions} are needed.")
    if count < settings.min_decisions:
        found.append(f"There are {count} paired decisions; at least {settings.min_decisions} are needed.")
    if sessions < MIN_BLOCKS * block:
        found.append(
            f"{sessions} sessions hold fewer than {MIN_BLOCKS} blocks of {block}, the least that shows a spread."
        )
    return found


def _share_of(decisions: Sequence[PairedDecision]) -> Callable[[Callable[[PairedDecision], bool]], float | None]:
    def share(holds: Callable[[PairedDecision], bool]) -> float | None:
        return sum(map(holds, decisions)) / len(decisions) if decisions else None

    return share


def _by_session(
    decisions: Iterable[PairedDecision], pair: Callable[[PairedDecision], tuple[float, float]]
) -> NDArray[np.float64]:
    """Return means of champion and challenger a session, shape (sessions, 2), in order of time."""
    groups: dict[date, list[tuple[float, float]]] = {}
    for item in decisions:
        groups.setdefault(item.session, []).append(pair(item))
    rows = []
    for session in sorted(groups):
        group = groups[session]
        rows.append((math.fsum(a for a, _ in group) / len(group), math.fsum(b for _, b in group) / len(group)))
    return np.array(rows)


def _bound(differences: NDArray[np.float64], block: int, settings: GateSettings) -> Interval | None:
    if len(differences) < MIN_BLOCKS * block:
        return None
    return lower_bound(differences, block, settings.level, settings.draws, settings.seed)


def _difference(rows: NDArray[np.float64], block: int, settings: GateSettings) -> Difference:
    champion, challenger = (float(value) for value in rows.mean(axis=0))
    differences = rows[:, 1] - rows[:, 0]
    bound = _bound(differences, block, settings)
    return Difference(
        champion_mean=champion,
        challenger_mean=challenger,
        mean=float(differences.mean()),
        standard_error=bound.standard_error if bound else None,
        lower_bound=bound.low if bound else None,
        minimum_detectable_edge=_detectable(bound) if bound else None,
    )


def _detectable(bound: Interval) -> float:
    """Return the smallest true difference whose bound would have lain above zero with the power of the gate."""
    return (bound.estimate - bound.low) + _POWER_DEVIATE * bound.standard_error


def _by_regime(decisions: Sequence[PairedDecision], block: int, settings: GateSettings) -> tuple[RegimeFigures, ...]:
    """Return the reward's difference by regime; sessions of one regime are joined, which shortens their dependence."""
    figures = []
    for regime in sorted({item.regime for item in decisions if item.regime is not None}):
        chosen = [item for item in decisions if item.regime == regime]
        rows = _by_session(chosen, lambda d: (d.champion_reward, d.challenger_reward))
        differences = rows[:, 1] - rows[:, 0]
        bound = _bound(differences, block, settings) if len(rows) >= settings.min_sessions else None
        figures.append(
            RegimeFigures(regime, len(chosen), len(rows), float(differences.mean()), bound.low if bound else None)
        )
    return tuple(figures)


def _reward_criterion(reward: Difference, settings: GateSettings) -> tuple[bool, str]:
    bound, edge = reward.lower_bound, reward.minimum_detectable_edge
    if bound is None or edge is None:
        return False, "The paired reward difference has no bound."
    figures = f"the difference is {reward.mean:+.4f} with a {settings.level:.1%} lower bound of {bound:+.4f}"
    if bound > 0:
        return True, f"The challenger earns more reward: {figures}."
    return False, (
        f"The challenger is not shown to earn more reward: {figures}, and the smallest edge that this evidence "
        f"would have shown with a power of {POWER:.0%} is {edge:.4f}."
    )


def _return_criterion(net: Difference, settings: GateSettings) -> tuple[bool, str]:
    bound = net.lower_bound
    if bound is None:
        return False, "The paired net-return difference has no bound."
    met = bound > -settings.return_margin
    return met, (
        f"The challenger's net return is {'not' if met else 'not shown to be not'} inferior: the difference is "
        f"{net.mean:+.5f} a decision with a {settings.level:.1%} lower bound of {bound:+.5f}, "
        f"{'above' if met else 'at or below'} the margin of {-settings.return_margin:+.5f}."
    )


def _floor(what: str, share: float | None, floor: float) -> tuple[bool, str]:
    met = share is not None and share >= floor
    shown = "unknown" if share is None else f"{share:.1%}"
    return met, f"The share of {what} is {shown}, {'at or above' if met else 'below'} the floor of {floor:.0%}."


def _activity_criterion(champion: float | None, challenger: float | None, settings: GateSettings) -> tuple[bool, str]:
    champion, challenger = champion or 0.0, challenger or 0.0
    met = challenger >= settings.min_activity * champion
    return met, (
        f"The challenger takes a side in {challenger:.1%} of the decisions, the champion in {champion:.1%}; "
        f"{'at least' if met else 'fewer than'} {settings.min_activity:.0%} of the champion's calls remain."
    )
