"""Pairs champion and challenger on the held-out decisions: same states, same outcomes, same reward rule.

The judges have no part in it: realised outcome is the only ground truth of the gate. A row's stored reward, which may hold a
judge's grade, is never read; rewards are computed anew from what came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from agents.policies.local.decisions import ParsedDecision, is_grounded, parse_decision, stored_state
from agents.policies.local.states import state_values
from data_pipeline.library.trajectories import Trajectory
from evaluation.gate import Answered, GateEvidence, PairedDecision
from judge.reward_calculator import RewardCalculator, RewardHistory, TradingOutcome
from training.executable import executable
from training.pipelines.held_out_answers import HeldOutExaminer
from training.rl.dataset import Rates, base_rates
from utils.hashing import sha256_hex
from utils.schema import direction


@dataclass(frozen=True, slots=True)
class Call:
    """A policy's opinion on one held-out decision; an invalid one earns what its counterpart earned.

    `recommendation` is what would have been carried out, `stated` the decision as a model stated it, `text` all that it
    wrote; both are None for what was served at the time, of which the row itself tells.
    """

    recommendation: str
    confidence: float
    valid: bool = True
    grounded: bool = True
    stated: ParsedDecision | None = None
    text: str | None = None


NO_CALL = Call("hold", 0.0, valid=False, grounded=False, text="")


def read_call(agent_type: str, state_text: str, answer: str) -> Call:
    """Return the opinion that a model's answer to a state holds, as it would have been carried out."""
    decision = parse_decision(answer)
    if decision is None:
        return replace(NO_CALL, text=answer)
    taken = executable(agent_type, state_text, decision.recommendation, decision.confidence)
    return Call(taken, decision.confidence, True, is_grounded(state_text, decision), decision, answer)


def stored_call(row: Trajectory) -> Call:
    """Return the opinion that was served at the time."""
    return Call(row.recommendation or "hold", row.confidence)


def once_each(rows: Sequence[Trajectory], run_id: str) -> list[Trajectory]:
    """Return one decision of each session and symbol, in the order of the rows.

    Two runs that a library reads together may both have decided on it: the run's own counts, else the first of its sources.
    """
    chosen: dict[tuple[date | None, str], Trajectory] = {}
    for row in rows:
        key = (row.as_of.date() if row.as_of else None, row.symbol)
        if key not in chosen or (row.run_id == run_id and chosen[key].run_id != run_id):
            chosen[key] = row
    return list(chosen.values())


def pair(
    rows: Sequence[Trajectory],
    champion: Mapping[str, Call],
    challenger: Mapping[str, Call],
    *,
    horizon_sessions: int,
    round_trip_cost: float,
) -> GateEvidence:
    """Return the gate's evidence.

    Parameters
    ----------
    rows : sequence of Trajectory
        Held out, matured, in order of decision. Confidence is rewarded for what it knows beyond the share of calls of its
        side that the held-out outcomes known at the decision would have made right: that most days move little is no skill.
    champion, challenger : mapping of trajectory id to Call
        A missing call is an invalid one.
    horizon_sessions : int
    round_trip_cost : float
        Fraction of the traded value; paid by a side, not by a hold.
    """
    calculator, examiner = RewardCalculator(volatility_scaling=True), HeldOutExaminer()
    decisions = []
    known = [row for row in rows if row.as_of and row.matured_at and row.actual_return is not None]
    for row, rates in zip(known, base_rates(known, round_trip_cost), strict=True):
        assert row.as_of is not None
        old, new = champion.get(row.trajectory_id, NO_CALL), challenger.get(row.trajectory_id, NO_CALL)
        served = (
            new if new.valid else old
        )  # where the challenger says nothing valid, it earns no better than what serves
        decisions.append(
            PairedDecision(
                row.as_of.date(),
                row.symbol,
                reward(calculator, row, old, horizon_sessions, round_trip_cost, rates),
                reward(calculator, row, served, horizon_sessions, round_trip_cost, rates),
                _net_return(row, old, round_trip_cost),
                _net_return(row, served, round_trip_cost),
                new.valid,
                new.grounded,
                row.market_regime,
                sha256_hex(stored_state(row.agent_inputs) or row.trajectory_id),
                _answered(examiner, row, old),
                _answered(examiner, row, new),
            )
        )
    return GateEvidence(tuple(decisions), horizon_sessions)


def _answered(examiner: HeldOutExaminer, row: Trajectory, call: Call) -> Answered:
    """Return what can be said of an answer without its outcome; one that is no decision has texts and no errors."""
    attacks = examiner.attacks(row, call.stated, call.text)
    if not call.valid:
        return Answered("hold", 0.0, fatal=frozenset(), attacks=attacks)
    fatal = examiner.fatal(row, call.stated)
    if call.stated is None:
        return Answered(call.recommendation, call.confidence, fatal=fatal, attacks=attacks)
    said = state_values(stored_state(row.agent_inputs) or "")
    cited = sorted(call.stated.evidence.items())
    return Answered(
        call.stated.recommendation,
        call.confidence,
        " ".join(f"{name}:{word}" for name, word in cited),
        " ".join(f"{name}:{said.get(name)}" for name, _ in cited),
        fatal,
        attacks,
    )


def reward(
    calculator: RewardCalculator,
    row: Trajectory,
    call: Call,
    horizon: int,
    cost: float,
    rates: Rates = (0.5, 0.5, 0.5),
) -> float:
    """Return what a call earns by the outcome of its decision; 0 for an invalid one. `rates` are those of sells, holds, buys."""
    if not call.valid:
        return 0.0
    volatility = float(row.market_state["inputs"]["daily_volatility"])
    outcome = TradingOutcome(
        symbol=row.symbol,
        recommendation=call.recommendation,
        actual_return=row.actual_return,
        holding_period=float(horizon),
        predicted_confidence=call.confidence,
        costs=cost if direction(call.recommendation) else 0.0,
        volatility=volatility or None,
    )
    history = RewardHistory(base_rates=rates)
    return calculator.calculate_reward(outcome, row.benchmark_return, history, apply_risk=False).total_reward


def _net_return(row: Trajectory, call: Call, cost: float) -> float:
    side = direction(call.recommendation)
    if side == 0 or not call.valid:
        return 0.0
    return side * ((row.actual_return or 0.0) - (row.benchmark_return or 0.0)) - cost
