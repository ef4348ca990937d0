"""A generated market whose technical rules have decided and whose outcomes are known: what gates are tried on.

The signal that is planted is strong, so that an honest fit finds it and a sabotaged one could. It says nothing of markets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray

from agents.policies.base import PolicyRequest
from agents.policies.local.decisions import cited_evidence, encode_decision, recorded_state, stored_state
from agents.policies.local.states import StateWriter, state_values
from agents.policies.rules import RulesTechnical
from data_pipeline.asof_store import AsOfStore
from data_pipeline.feeds.simulated import SimulatedFeed
from data_pipeline.library.trajectories import Trajectory
from data_pipeline.simulation.scenario import Scenario
from evaluation.gate import GateSettings, GateVerdict, evaluate_gate
from training.pipelines.gate_evidence import Call, pair, read_call, stored_call
from utils.market_regime_detector import MarketRegimeDetector

WARM_UP = 60
COST = 0.0016
SETTINGS = GateSettings(draws=1000)

Policy = Callable[[str], str]
"""From the text of a state to all that a model writes."""


def decided_rows(scenario: Scenario) -> list[Trajectory]:
    """Let the technical rules decide on every session and symbol after the warm-up; add what came."""
    feed = SimulatedFeed(scenario)
    store = AsOfStore(feed.calendar)
    for update in feed.history():
        store.add(update)
    paths, horizon = feed.market.paths, scenario.horizon_sessions
    last = scenario.sessions - horizon
    came = paths.close[horizon:] / paths.open[1 : last + 1] - 1
    rules, writer, detector = RulesTechnical(), StateWriter(), MarketRegimeDetector()
    rows = []
    for number, instant in enumerate(feed.instants()):
        for update in instant.updates:
            store.add(update)
        if not WARM_UP <= number < last:
            continue
        view = store.as_of(instant.at)
        snapshots = [view.snapshot(symbol, instant.session) for symbol in feed.symbols]
        requests = [PolicyRequest(snapshot, detector.detect_regime(snapshot.inputs)) for snapshot in snapshots]
        for column, (request, output) in enumerate(zip(requests, rules.decide_many(requests), strict=True)):
            rows.append(
                Trajectory(
                    trajectory_id=f"{output.symbol}-{number}",
                    timestamp=output.as_of.timestamp(),
                    as_of=output.as_of,
                    symbol=output.symbol,
                    agent_type="technical",
                    recommendation=output.recommendation,
                    market_regime=request.regime.overall_regime,
                    market_state={"inputs": {"daily_volatility": request.snapshot.inputs.daily_volatility}},
                    agent_inputs={"state": recorded_state(writer.write(output, request))},
                    reasoning=output.reasoning,
                    confidence=output.confidence,
                    policy="rules",
                    workflow_trace={"output": output.model_dump(mode="json", exclude_defaults=True)},
                    actual_return=float(came[number, column]),
                    benchmark_return=float(came[number].mean()),
                    matured_at=output.as_of + timedelta(days=10),
                )
            )
    return rows


def state_of(row: Trajectory) -> str:
    """Return the text of a row's state."""
    return stored_state(row.agent_inputs) or ""


def judged(rows: Sequence[Trajectory], policy: Policy, champion: Mapping[str, Call] | None = None) -> GateVerdict:
    """Take a policy through the path of a trained one: its answers, the pairing, the gate; against the rules by default."""
    served = {row.trajectory_id: stored_call(row) for row in rows} if champion is None else champion
    answers = calls(rows, policy)
    return evaluate_gate(pair(rows, served, answers, horizon_sessions=5, round_trip_cost=COST), SETTINGS)


def calls(rows: Sequence[Trajectory], policy: Policy) -> dict[str, Call]:
    """Return what a policy says on each row."""
    return {row.trajectory_id: read_call("technical", state_of(row), policy(state_of(row))) for row in rows}


def saying(recommendation: str, confidence: float, state: str, cited: str | None = None) -> str:
    """Write an answer; it cites the state truthfully unless a citation is given."""
    evidence = cited_evidence("technical", state) if cited is None else cited
    return encode_decision(recommendation, confidence, evidence)


@dataclass(frozen=True)
class Fitted:
    """A ridge regression of the relative return on the state's figures: the smallest policy that can be trained."""

    centre: NDArray[np.float64]
    spread: NDArray[np.float64]
    weights: NDArray[np.float64]

    @classmethod
    def on(cls, rows: Sequence[Trajectory], ridge: float = 30.0) -> Fitted:
        """Fit it to the outcomes of rows."""
        inputs = np.array([_figures(state_of(row)) for row in rows])
        moves = np.array([(row.actual_return or 0.0) - (row.benchmark_return or 0.0) for row in rows])
        centre, spread = inputs.mean(axis=0), inputs.std(axis=0) + 1e-9
        scaled = (inputs - centre) / spread
        weights = np.linalg.solve(scaled.T @ scaled + ridge * np.eye(scaled.shape[1]), scaled.T @ moves)
        return cls(centre, spread, weights)

    def __call__(self, state: str) -> str:
        expected = float((np.array(_figures(state)) - self.centre) / self.spread @ self.weights)
        confidence = min(0.9, 0.5 + round(20 * abs(expected), 1))
        return saying("buy" if expected > 0 else "sell", confidence, state)


def _figures(state: str) -> list[float]:
    said = state_values(state)
    trend = {"up": 1.0, "down": -1.0}.get(said.get("trend", "flat"), 0.0)
    names = ("rsi", "macd", "sma20", "sma50", "stoch", "mfi", "adx", "bb", "vol")
    return [*(float(said.get(name, 0.0)) for name in names), trend]


def poisoned(rows: Sequence[Trajectory]) -> list[Trajectory]:
    """Return the rows with the sign of every relative return flipped, as a poisoned data set has them."""
    return [replace(row, actual_return=2 * (row.benchmark_return or 0.0) - (row.actual_return or 0.0)) for row in rows]
