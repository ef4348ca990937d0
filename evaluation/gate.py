"""The deployment gate: may a challenger replace the champion, judged on held-out decisions that both have taken.

The learning loop calls `evaluate_gate` with paired records and stores the verdict whole, promotions and rejections
alike. A pure function of evidence and settings: no file, no clock, no judge, no randomness beyond the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import (
    MIN_BLOCKS,
    Interval,
    degrees_of_freedom,
    few_blocks_factor,
    lower_bound,
    overlap_factor,
)
from evaluation.gate_answers import answer_criteria
from evaluation.gate_records import (
    Answered,
    Criterion,
    Difference,
    GateEvidence,
    GateSettings,
    GateVerdict,
    PairedDecision,
    RegimeFigures,
    Verdict,
)

__all__ = [
    "POWER",
    "Answered",
    "Criterion",
    "Difference",
    "GateEvidence",
    "GateSettings",
    "GateVerdict",
    "PairedDecision",
    "RegimeFigures",
    "Verdict",
    "evaluate_gate",
    "sessions_needed",
]

POWER = 0.80
_ROUNDING = 1e-12
"""A bound that is no farther from zero is the rounding of means that are equal."""


def evaluate_gate(evidence: GateEvidence, settings: GateSettings | None = None) -> GateVerdict:
    """Judge a challenger against the champion.

    It is promoted where all of this holds, and each is a `Criterion` of the verdict:

    - ``reward``: the one-sided lower bound of the paired reward difference lies above zero;
    - ``net_return``: that of the net return lies above the margin;
    - ``regimes``: no regime with sessions enough to be judged shows the challenger inferior by more than a margin;
    - ``validity``, ``grounding``, ``activity``: shares that reach their floors;
    - ``fatal_errors``, ``attacks``: none that the champion's outputs do not have as well;
    - ``same_side``, ``same_confidence``, ``response``, ``citations``: answers that follow the state.

    Differences are averaged within a session first, because decisions of one day share the market, and then bootstrapped
    in blocks of sessions. What cannot be judged for want of data is said and rejects nobody.

    Returns
    -------
    GateVerdict
        ``insufficient_evidence`` below the minimum of sessions or decisions or with fewer than three blocks; the
        figures that can be computed are there all the same.
    """
    settings = settings or GateSettings()
    decisions = evidence.decisions
    count = len(decisions)
    blocks = _Blocks.of(evidence.horizon_sessions, settings)
    block = blocks.sessions
    sessions = sorted({item.session for item in decisions})
    missing = _missing(count, len(sessions), block, settings)
    share = _share_of(decisions)
    validity = share(lambda d: d.challenger_valid)
    grounding = share(lambda d: d.challenger_valid and d.challenger_grounded)
    champion_activity = share(lambda d: d.champion_net_return != 0)
    challenger_activity = share(lambda d: d.challenger_valid and d.challenger_net_return != 0)
    reward = net = None
    if decisions:
        reward = _difference(
            _by_session(decisions, lambda d: (d.champion_reward, d.challenger_reward)), blocks, settings
        )
        net = _difference(
            _by_session(decisions, lambda d: (d.champion_net_return, d.challenger_net_return)), blocks, settings
        )
    by_regime = _by_regime(decisions, blocks, settings)
    criteria: list[Criterion] = []
    if reward and net:
        criteria = [
            _reward_criterion(reward, settings),
            _return_criterion(net, settings),
            _regime_criterion(by_regime, settings),
            _floor("validity", "valid outputs", validity, settings.min_validity),
            _floor("grounding", "outputs that are grounded in their evidence", grounding, settings.min_grounding),
            _activity_criterion(champion_activity, challenger_activity, settings),
            *answer_criteria(decisions, settings),
        ]
    verdict: Verdict = "insufficient_evidence"
    reasons = missing
    if not missing:
        verdict = "reject" if any(item.met is False for item in criteria) else "promote"
        reasons = [item.text for item in criteria if item.met is (verdict == "promote")]
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
        overlap_factor=blocks.overlap,
        power=POWER,
        settings=settings,
        by_regime=by_regime,
        criteria=tuple(criteria),
    )


def sessions_needed(horizon_sessions: int, settings: GateSettings) -> int:
    """Return how many sessions a verdict takes: the minimum, or three blocks where outcomes over a horizon need longer ones."""
    return max(settings.min_sessions, MIN_BLOCKS * _Blocks.of(horizon_sessions, settings).sessions)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """How sessions are resampled: sessions a block, and by how much overlapping outcomes widen a bound."""

    sessions: int
    overlap: float

    @classmethod
    def of(cls, horizon: int, settings: GateSettings) -> _Blocks:
        if settings.independent_sessions:
            return cls(1, 1.0)
        block = max(settings.min_block_sessions, settings.block_horizons * horizon)
        return cls(block, overlap_factor(horizon, block))


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


def _bound(
    differences: NDArray[np.float64], blocks: _Blocks, settings: GateSettings, level: float | None = None
) -> Interval | None:
    if len(differences) < MIN_BLOCKS * blocks.sessions:
        return None
    found = lower_bound(differences, blocks.sessions, level or settings.level, settings.draws, settings.seed)
    low = found.estimate - blocks.overlap * (found.estimate - found.low)
    return replace(found, low=low, standard_error=blocks.overlap * found.standard_error)


def _difference(rows: NDArray[np.float64], blocks: _Blocks, settings: GateSettings) -> Difference:
    champion, challenger = (float(value) for value in rows.mean(axis=0))
    differences = rows[:, 1] - rows[:, 0]
    bound = _bound(differences, blocks, settings)
    return Difference(
        champion_mean=champion,
        challenger_mean=challenger,
        mean=float(differences.mean()),
        standard_error=bound.standard_error if bound else None,
        lower_bound=bound.low if bound else None,
        minimum_detectable_edge=_detectable(bound) if bound else None,
    )


def _detectable(bound: Interval) -> float:
    """Return the smallest true difference whose bound would have lain above zero with the power of the gate.

    By the noncentral t, for the standard error is an estimate too: at 60 sessions 5 % more than the sum of two quantiles.
    """
    if bound.standard_error == 0:
        return 0.0
    from scipy.special import nctdtrinc  # scipy.stats has it as well and takes a second to import

    degrees = degrees_of_freedom(bound.n, bound.block)
    critical = (bound.estimate - bound.low) / bound.standard_error
    return float(nctdtrinc(degrees, 1 - POWER, critical)) * bound.standard_error


def _by_regime(
    decisions: Sequence[PairedDecision], blocks: _Blocks, settings: GateSettings
) -> tuple[RegimeFigures, ...]:
    """Return the reward's difference by regime; sessions of one regime are joined, which shortens their dependence."""
    groups: dict[str, list[PairedDecision]] = {}
    for item in decisions:
        if item.regime is not None:
            groups.setdefault(item.regime, []).append(item)
    series = {}
    for regime in sorted(groups):
        rows = _by_session(groups[regime], lambda d: (d.champion_reward, d.challenger_reward))
        series[regime] = rows[:, 1] - rows[:, 0]
    least = max(settings.min_regime_sessions, MIN_BLOCKS * blocks.sessions)
    judged = sum(len(differences) >= least for differences in series.values())
    figures = []
    for regime, differences in series.items():
        lower = upper = None
        if len(differences) >= least:
            lower = _bound(differences, blocks, settings)
            upper = _bound(-differences, blocks, settings, 1 - (1 - settings.regime_level) / judged)
        figures.append(
            RegimeFigures(
                regime,
                len(groups[regime]),
                len(differences),
                float(differences.mean()),
                lower.low if lower else None,
                -upper.low if upper else None,
            )
        )
    return tuple(figures)


def _reward_criterion(reward: Difference, settings: GateSettings) -> Criterion:
    name, figures = "reward", {**asdict(reward), "level": settings.level}
    bound, edge = reward.lower_bound, reward.minimum_detectable_edge
    if bound is None or edge is None:
        return Criterion(name, None, "The paired reward difference has no bound.", figures)
    shown = f"the difference is {reward.mean:+.4f} with a {settings.level:.1%} lower bound of {bound:+.4f}"
    if bound > _ROUNDING:
        return Criterion(name, True, f"The challenger earns more reward: {shown}.", figures)
    text = (
        f"The challenger is not shown to earn more reward: {shown}, and the smallest edge that this evidence "
        f"would have shown with a power of {POWER:.0%} is {edge:.4f}."
    )
    return Criterion(name, False, text, figures)


def _return_criterion(net: Difference, settings: GateSettings) -> Criterion:
    name, figures = "net_return", {**asdict(net), "margin": settings.return_margin, "level": settings.level}
    bound = net.lower_bound
    if bound is None:
        return Criterion(name, None, "The paired net-return difference has no bound.", figures)
    met = bound > -settings.return_margin
    text = (
        f"The challenger's net return is {'not' if met else 'not shown to be not'} inferior: the difference is "
        f"{net.mean:+.5f} a decision with a {settings.level:.1%} lower bound of {bound:+.5f}, "
        f"{'above' if met else 'at or below'} the margin of {-settings.return_margin:+.5f}."
    )
    return Criterion(name, met, text, figures)


def _regime_criterion(by_regime: Sequence[RegimeFigures], settings: GateSettings) -> Criterion:
    """No judged regime is shown to be worse: its upper bound lies above minus the margin.

    The bounds are corrected for the number of judged regimes (Bonferroni), so a challenger that loses no more than the
    margin anywhere is wrongly rejected in at most 1 - `regime_level` of gates. A lower bound above minus the margin in every
    regime would err less often for a loser, but a regime has only a part of the sessions: where the edge lies in one of two
    regimes it promotes 30 % in place of 77 % (252 sessions, ``benchmarks gates``).
    """
    margin = settings.regime_margin
    judged = [item for item in by_regime if item.upper_bound is not None]
    worse = [item for item in judged if item.upper_bound is not None and item.upper_bound < -margin]
    left_out = [f"{item.regime} ({item.sessions} sessions)" for item in by_regime if item.upper_bound is None]
    figures = {
        "margin": margin,
        "level": settings.regime_level,
        "judged": [item.regime for item in judged],
        "not_judged": [item.regime for item in by_regime if item.upper_bound is None],
        "worse": [item.regime for item in worse],
    }
    rest = f" Too few sessions to be judged: {', '.join(left_out)}." if left_out else ""
    if not judged:
        return Criterion("regimes", None, f"No regime has sessions enough to be judged apart.{rest}", figures)
    shown = ", ".join(
        f"{item.regime} {item.mean_difference:+.4f} with an upper bound of {item.upper_bound:+.4f} over {item.sessions} sessions"
        for item in (worse or judged)
    )
    said = "The challenger is inferior in a regime" if worse else "In no judged regime is the challenger inferior"
    text = f"{said} by more than {margin:g} of reward, at {settings.regime_level:.1%} over all of them: {shown}.{rest}"
    return Criterion("regimes", not worse, text, figures)


def _floor(name: str, what: str, share: float | None, floor: float) -> Criterion:
    met = share is not None and share >= floor
    shown = "unknown" if share is None else f"{share:.1%}"
    text = f"The share of {what} is {shown}, {'at or above' if met else 'below'} the floor of {floor:.0%}."
    return Criterion(name, met, text, {"share": share, "floor": floor})


def _activity_criterion(champion: float | None, challenger: float | None, settings: GateSettings) -> Criterion:
    champion, challenger = champion or 0.0, challenger or 0.0
    met = challenger >= settings.min_activity * champion
    text = (
        f"The challenger takes a side in {challenger:.1%} of the decisions, the champion in {champion:.1%}; "
        f"{'at least' if met else 'fewer than'} {settings.min_activity:.0%} of the champion's calls remain."
    )
    figures = {"champion": champion, "challenger": challenger, "floor": settings.min_activity}
    return Criterion("activity", met, text, figures)
