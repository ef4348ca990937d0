"""Turns pairs of live opinions into what a trial folds: one mean reward difference a session, by the gate's own arithmetic but for base rates of .5."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Literal

from data_pipeline.library.shadow_pairs import ShadowPair, Side
from data_pipeline.library.trajectories import Trajectory
from judge.reward_calculator import RewardCalculator
from training.live_trial import SessionDifference
from training.pipelines import gate_evidence
from training.pipelines.gate_evidence import NO_CALL, Call

Subject = Literal["serving", "shadow"]
"""Which of the two opinions is the one on trial."""


def session_differences(
    pairs: Iterable[ShadowPair], subject: Subject, *, horizon_sessions: int, round_trip_cost: float
) -> Iterator[SessionDifference]:
    """Yield the mean difference of each decision time, the subject's reward minus the other's, in the order of the pairs.

    Where the subject has no opinion it earns what the other earned, as in the gate; where the other has none there is
    nothing to compare, and the pair is left out.

    Parameters
    ----------
    pairs : iterable of ShadowPair
        In order of maturity, then of decision time.
    round_trip_cost : float
        Fraction of the traded value.
    """
    calculator = RewardCalculator(volatility_scaling=True)
    for (matured_at, as_of), group in itertools.groupby(pairs, key=lambda pair: (pair.matured_at, pair.as_of)):
        chosen = [pair for pair in group if subject == "shadow" or not pair.shadow.abstained]
        if not chosen:
            continue
        total, valid = 0.0, 0
        for pair in chosen:
            calls = _call(pair.serving), _call(pair.shadow)
            reference, tried = calls if subject == "shadow" else calls[::-1]
            row, valid = _outcome(pair), valid + tried.valid
            tried = tried if tried.valid else reference
            earned, instead = (
                gate_evidence.reward(calculator, row, call, horizon_sessions, round_trip_cost)
                for call in (tried, reference)
            )
            total += earned - instead
        yield SessionDifference(as_of.date(), matured_at, total / len(chosen), len(chosen), valid)


def _call(side: Side) -> Call:
    return NO_CALL if side.abstained else Call(side.recommendation, side.confidence)


def _outcome(pair: ShadowPair) -> Trajectory:
    return Trajectory(
        trajectory_id=pair.trajectory_id,
        timestamp=pair.as_of.timestamp(),
        as_of=pair.as_of,
        symbol=pair.symbol,
        agent_type="",
        market_state={"inputs": {"daily_volatility": pair.daily_volatility}},
        agent_inputs={},
        reasoning="",
        confidence=pair.serving.confidence,
        actual_return=pair.actual_return,
        benchmark_return=pair.benchmark_return,
        matured_at=pair.matured_at,
    )
