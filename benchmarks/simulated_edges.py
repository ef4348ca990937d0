"""Are the edges of a simulated market there to be learned, and not had already: ``python -m benchmarks.simulated_edges``.

Rules, the signals themselves and a logistic regression on the technical state text decide on one generated market. What
they earn is measured by the known expected returns, so that no luck is in it; only the regression is fitted to what came.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyRequest
from agents.policies.local.states import state_values, technical_state_text
from agents.policies.rules import RulesFundamental, RulesNews, RulesTechnical
from data_pipeline.asof_store import AsOfStore
from data_pipeline.feeds.simulated import SimulatedFeed
from data_pipeline.simulation.scenario import AGENTS, Scenario
from data_pipeline.simulation.signals import SIGNALS
from evaluation.bootstrap import Interval, mean_interval
from utils.market_regime_detector import MarketRegimeDetector
from utils.schema import TechnicalOutput, direction
from utils.schema.market import FloatArray

ROUND_TRIP_COST = 0.0016
WARM_UP = 60
"""Sessions before which the rules have no opinion, or one on too little."""

_POLICIES = {"news": RulesNews(), "technical": RulesTechnical(), "fundamental": RulesFundamental()}
_STATE = ("rsi", "macd", "sma20", "sma50", "stoch", "mfi", "adx", "bb", "vol", "trend")
_TREND = {"up": 1.0, "flat": 0.0, "down": -1.0}
_RIDGE = 1.0
_NEWTON_STEPS = 12


@dataclass(frozen=True)
class Record:
    """Decisions by session (rows) and symbol (columns), after the warm-up.

    Attributes
    ----------
    rules, signals : dict of agent to array
        Sides -1, 0, 1 of the rules; the signals -1..1.
    states : array of shape (sessions, symbols, values)
        What the technical state text says.
    expected, came : array
        Return over the horizon against the market, as expected and as it came.
    scale : array of shape (sessions, 1)
        Volatility over the horizon: a return of this size is a reward of 1.
    """

    rules: dict[str, FloatArray]
    signals: dict[str, FloatArray]
    states: FloatArray
    expected: FloatArray
    came: FloatArray
    scale: FloatArray


@dataclass(frozen=True)
class Earned:
    """What sides earn, by the known expected returns: basis points and reward a decision, 0 for one without a side."""

    acting: float
    gross_bps: Interval
    reward: Interval


def record(scenario: Scenario) -> Record:
    """Let rules decide on every session and symbol of a market, and note what they and the signals say."""
    feed = SimulatedFeed(scenario)
    store = AsOfStore(feed.calendar)
    for update in feed.history():
        store.add(update)
    rules: dict[str, list[list[float]]] = {agent: [] for agent in AGENTS}
    signals: dict[str, list[list[float]]] = {agent: [] for agent in AGENTS}
    states: list[list[list[float]]] = []
    last = scenario.sessions - scenario.horizon_sessions
    detector = MarketRegimeDetector()
    for row, instant in enumerate(feed.instants()):
        for update in instant.updates:
            store.add(update)
        if not WARM_UP <= row < last:
            continue
        snapshots = [store.as_of(instant.at).snapshot(symbol, instant.session) for symbol in feed.symbols]
        requests = [PolicyRequest(snapshot, detector.detect_regime(snapshot.inputs)) for snapshot in snapshots]
        for agent in AGENTS:
            answers = _POLICIES[agent].decide_many(requests)
            rules[agent].append([float(direction(answer.recommendation)) for answer in answers])
            signals[agent].append([SIGNALS[agent](snapshot) for snapshot in snapshots])
            if agent == "technical":
                states.append([_state(answer) for answer in answers if isinstance(answer, TechnicalOutput)])
    paths, horizon = feed.market.paths, scenario.horizon_sessions
    chosen = slice(WARM_UP, last)
    came = paths.close[horizon:] / paths.open[1 : last + 1] - 1
    volatility = np.array([regime.volatility for regime in scenario.regimes])[paths.regimes]
    return Record(
        {agent: np.array(rows) for agent, rows in rules.items()},
        {agent: np.array(rows) for agent, rows in signals.items()},
        np.array(states),
        _relative(paths.expected[chosen]),
        _relative(came[chosen]),
        (volatility[chosen] * math.sqrt(horizon))[:, None],
    )


def earned(sides: FloatArray, found: Record, rows: slice = slice(None)) -> Earned:
    """Return what sides earn on some of the sessions."""
    expected = found.expected[rows]
    net = (sides * expected - np.abs(sides) * ROUND_TRIP_COST) / found.scale[rows]
    return Earned(
        float(np.abs(sides).mean()),
        mean_interval(1e4 * (sides * expected).mean(axis=1)),
        mean_interval(net.mean(axis=1)),
    )


def best_sides(found: Record) -> FloatArray:
    """Return the sides of the policy that knows the expected returns and acts where they exceed the costs."""
    return np.where(np.abs(found.expected) > ROUND_TRIP_COST, np.sign(found.expected), 0.0)


def regressed_sides(found: Record, half: int, horizon: int) -> FloatArray:
    """Return the sides, from session `half` on, of a logistic regression fitted to outcomes known before it.

    Only on the values of the technical state text and on the sign of what came; ridge 1 on standardised values, by
    iteratively reweighted least squares.
    """
    train = slice(0, half - horizon)
    seen = found.states[train].reshape(-1, len(_STATE))
    centre, spread = seen.mean(axis=0), seen.std(axis=0) + 1e-9
    inputs = np.column_stack([np.ones(len(seen)), (seen - centre) / spread])
    labels = (found.came[train].ravel() > 0).astype(np.float64)
    weights = np.zeros(inputs.shape[1])
    penalty = _RIDGE * np.eye(len(weights))
    for _ in range(_NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-inputs @ weights))
        curvature = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + penalty
        weights += np.linalg.solve(curvature, inputs.T @ (labels - chance) - penalty @ weights)
    later = (found.states[half:] - centre) / spread
    return np.sign(weights[0] + later @ weights[1:])


def main() -> int:
    """Measure one scenario and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulated_edges", description=__doc__)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--edge_bps", type=float, help="one edge for every agent in every regime")
    options = parser.parse_args()
    scenario = Scenario(seed=options.seed, sessions=options.sessions)
    if options.edge_bps is not None:
        scenario = scenario.with_edge(options.edge_bps)
    found = record(scenario)
    half = len(found.expected) // 2
    sys.stdout.write(
        f"{len(found.expected)} sessions, {len(scenario.symbols)} symbols; expected return against the market, 95 % intervals\n"
        f"{'':<34}{'acts':>6}{'gross bp a decision':>26}{'reward a decision, net':>30}\n"
    )
    for agent in AGENTS:
        _show(f"{agent}: rules", earned(found.rules[agent], found))
        _show(f"{agent}: side of the signal", earned(np.sign(found.signals[agent]), found))
    _show("best possible, all signals", earned(best_sides(found), found))
    later = slice(half, None)
    sys.stdout.write(f"second half, the regression fitted to the first ({half} sessions)\n")
    _show("technical: rules", earned(found.rules["technical"][later], found, later))
    _show("technical: side of the signal", earned(np.sign(found.signals["technical"][later]), found, later))
    _show("technical: regression", earned(regressed_sides(found, half, scenario.horizon_sessions), found, later))
    return 0


def _show(name: str, result: Earned) -> None:
    gross, reward = result.gross_bps, result.reward
    sys.stdout.write(
        f"{name:<34}{result.acting:>6.0%}{gross.estimate:>10.1f} [{gross.low:5.1f}, {gross.high:5.1f}]"
        f"{reward.estimate:>12.4f} [{reward.low:7.4f}, {reward.high:7.4f}]\n"
    )


def _state(answer: TechnicalOutput) -> list[float]:
    stated = state_values(technical_state_text(answer))
    return [_TREND[stated[name]] if name == "trend" else float(stated.get(name, 0.0)) for name in _STATE]


def _relative(returns: FloatArray) -> FloatArray:
    return np.asarray(returns - returns.mean(axis=1, keepdims=True), dtype=np.float64)


if __name__ == "__main__":
    sys.exit(main())
