"""Simulated gates for ``benchmarks gates``: markets with a common factor, policies without skill, edges planted exactly.

A trial makes one held-out period and two policies on it. It uses the product's own reward rule and gate; only the market and
the sides are made up here.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.feeds.replay_folder import ReplayFolder
from data_pipeline.simulation.scenario import Scenario
from evaluation.gate import GateEvidence, PairedDecision
from judge.reward_calculator import RewardCalculator, TradingOutcome

Floats = NDArray[np.float64]
Bets = Literal["market-wide", "per-symbol"]

HORIZON = 5
COST = 0.0016
CONFIDENCE = 0.6
SPELL_SESSIONS = 10.0
"""Mean length of a spell of one side: longer than the horizon, as opinions on daily data are."""

REGIME_SESSIONS = 60.0
_FIRST = date(2001, 1, 1)
_WORDS = {1: "buy", -1: "sell"}


@dataclass(frozen=True, slots=True)
class Market:
    """How returns are made: daily volatility (fraction) and the share of variance that symbols have in common."""

    source: str
    volatility: float
    market_share: float

    def returns(self, rng: np.random.Generator, sessions: int, symbols: int) -> Floats:
        """Return daily returns of shape (sessions, symbols), normal and independent from session to session."""
        shared = rng.standard_normal((sessions, 1))
        own = rng.standard_normal((sessions, symbols))
        return self.volatility * (np.sqrt(self.market_share) * shared + np.sqrt(1 - self.market_share) * own)


def simulated_market() -> Market:
    """Return the market of the simulator's default scenario."""
    scenario = Scenario()
    calm = scenario.regimes[0]
    return Market("the simulator's default", calm.volatility, scenario.market_share)


def real_returns(folder: Path) -> Floats:
    """Return daily returns, shape (sessions, symbols), of the symbols of a replay folder that trade on all its sessions."""
    history = ReplayFolder(folder)
    series: dict[str, dict[str, float]] = {}
    for symbol in history.symbols:
        rows = csv.DictReader(text for _, text in history.prices(symbol).lines)
        series[symbol] = {row["Date"]: float(row["Adj Close"]) for row in rows}
    counts = Counter(session for closes in series.values() for session in closes)
    most = max(len(closes) for closes in series.values())
    whole = [closes for closes in series.values() if len(closes) == most]
    sessions = sorted(session for session in counts if all(session in closes for closes in whole))
    prices = np.array([[closes[session] for closes in whole] for session in sessions])
    return np.asarray(prices[1:] / prices[:-1] - 1, dtype=np.float64)


def calibrated_market(returns: Floats) -> Market:
    """Return the market whose volatility and mean correlation are those of real returns."""
    deviation = returns.std(axis=0, ddof=1)
    correlation = np.corrcoef(returns.T)
    above = correlation[np.triu_indices_from(correlation, 1)]
    return Market("calibrated from REPLAY_DATA_DIR", float(np.median(deviation)), float(above.mean()))


def horizon_returns(daily: Floats) -> Floats:
    """Return the sums of the next five daily returns, which overlap from session to session."""
    return np.lib.stride_tricks.sliding_window_view(daily, HORIZON, axis=0).sum(axis=-1)


def sides(rng: np.random.Generator, sessions: int, symbols: int, bets: Bets) -> Floats:
    """Return sides -1 and 1 of a policy without skill, which lasts in an opinion: spells of geometric length."""
    columns = 1 if bets == "market-wide" else symbols
    turned = rng.random((sessions, columns)) < 1 / SPELL_SESSIONS
    turned[0] = True
    drawn = np.where(rng.random((sessions, columns)) < 0.5, -1.0, 1.0)
    last = np.maximum.accumulate(np.where(turned, np.arange(sessions)[:, None], 0), axis=0)
    return np.broadcast_to(np.take_along_axis(drawn, last, axis=0), (sessions, symbols))


def regimes(rng: np.random.Generator, sessions: int) -> NDArray[np.int64]:
    """Return which of two regimes each session has; spells of geometric length."""
    turned = rng.random(sessions) < 1 / REGIME_SESSIONS
    return (np.cumsum(turned) + rng.integers(2)) % 2


@dataclass(frozen=True, slots=True)
class Trial:
    """One held-out period: arrays of shape (sessions, symbols), and the regime of each session.

    `edge` is added to whatever the challenger's sides return (fraction; one a session): planted exactly.
    """

    outcome: Floats
    benchmark: Floats
    champion: Floats
    challenger: Floats
    edge: Floats
    regime: NDArray[np.int64]
    volatility: float

    def with_edge(self, edge_bps: float) -> Trial:
        """Return the same draw with one edge in all sessions."""
        return replace(self, edge=np.full(len(self.outcome), edge_bps / 1e4))

    def differences(self) -> Floats:
        """Return the challenger's net return minus the champion's; both pay the same costs."""
        moves = self.outcome - self.benchmark
        return np.asarray((self.challenger - self.champion) * moves + self.edge[:, None])

    def by_session(self, horizon: int = HORIZON) -> GateEvidence:
        """Return evidence with one decision a session that holds the means of all, which is all that the gate's statistics read.

        The reward is the net return in units of an ordinary move over the horizon; nothing clamps it.
        """
        moves = self.outcome - self.benchmark
        old = (self.champion * moves).mean(axis=1) - COST
        new = old + self.differences().mean(axis=1)
        unit = self.volatility * horizon**0.5
        return GateEvidence(
            tuple(
                PairedDecision(
                    _FIRST + timedelta(days=row), "all", before / unit, after / unit, before, after, True, True,
                    self._regime_of(row),
                )
                for row, (before, after) in enumerate(zip(old.tolist(), new.tolist(), strict=True))
            ),
            horizon,
        )  # fmt: skip

    def _regime_of(self, row: int) -> str:
        return "one" if self.regime[row] else "other"

    def evidence(self, horizon: int = HORIZON) -> GateEvidence:
        """Return the gate's evidence, with the rewards that the product gives."""
        names = [f"S{number:02d}" for number in range(self.outcome.shape[1])]
        calculator = RewardCalculator(volatility_scaling=True)
        planted = self.outcome + self.challenger * self.edge[:, None]
        old = self._rewards(calculator, self.outcome, self.champion, horizon)
        new = self._rewards(calculator, planted, self.challenger, horizon)
        old_net = self.champion * (self.outcome - self.benchmark) - COST
        new_net = self.challenger * (planted - self.benchmark) - COST
        return GateEvidence(
            tuple(
                PairedDecision(
                    _FIRST + timedelta(days=row), symbol, before, after, old_return, new_return, True, True,
                    self._regime_of(row),
                )
                for row, rows in enumerate(zip(old, new, old_net.tolist(), new_net.tolist(), strict=True))
                for symbol, before, after, old_return, new_return in zip(names, *rows, strict=True)
            ),
            horizon,
        )  # fmt: skip

    def _rewards(self, calculator: RewardCalculator, came: Floats, taken: Floats, horizon: int) -> list[list[float]]:
        names = [f"S{number:02d}" for number in range(came.shape[1])]
        return [
            [
                calculator.calculate_reward(
                    TradingOutcome(
                        symbol=symbol, recommendation=_WORDS[int(side)], actual_return=value, holding_period=float(horizon),
                        predicted_confidence=CONFIDENCE, costs=COST, volatility=self.volatility,
                    ),
                    benchmark_return=market,
                    apply_risk=False,
                ).total_reward
                for symbol, value, side, market in zip(names, *columns, strict=True)
            ]
            for columns in zip(came.tolist(), taken.tolist(), self.benchmark.tolist(), strict=True)
        ]  # fmt: skip


def trial(
    rng: np.random.Generator,
    outcome: Floats,
    volatility: float,
    bets: Bets,
    *,
    relative: bool,
    edges_bps: tuple[float, float] = (0.0, 0.0),
) -> Trial:
    """Return a trial on given outcomes; the two edges are those of the two regimes, in basis points a decision.

    Parameters
    ----------
    relative : bool
        Outcomes against the equally weighted universe; else plain returns, where a bet on the market counts in full.
    """
    sessions, symbols = outcome.shape
    which = regimes(rng, sessions)
    benchmark = np.broadcast_to(outcome.mean(axis=1, keepdims=True) if relative else 0.0, outcome.shape)
    return Trial(
        outcome,
        benchmark,
        sides(rng, sessions, symbols, bets),
        sides(rng, sessions, symbols, bets),
        np.array(edges_bps)[which] / 1e4,
        which,
        volatility,
    )
