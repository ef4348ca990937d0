"""Settles the calls of a comparison: the same outcomes and the same reward rule for every arm, as the daemon has them.

Walks once over all symbols, lets an `OutcomeTracker` for each arm settle what is due, and aligns the results so that row i
is the same decision in every arm. The simple baselines are made here as well, from bars known at the decision.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from data_pipeline.asof_store import AsOfView
from data_pipeline.feeds.replay import ReplayFeed
from evaluation.comparison import Calls, Outcomes
from judge.reward_calculator import RewardCalculator, TradingOutcome
from orchestration.execution.outcomes import OpenDecision, Opinion, OutcomeTracker
from orchestration.history_walk import walk
from training.comparison_work import CallRecord, Thought
from utils.errors import ConfigError
from utils.hashing import file_sha256
from utils.schema import direction
from utils.settings import OrchestratorConfig

BASELINES = ("always up", "yesterday's direction", "200-day average", "12-1 momentum")
"""Buying and holding, and the simplest ways of following what prices did: over a day, and in the long run."""
BASELINE_ARM = "baselines"
_YEAR, _MONTH, _AVERAGED = 252, 21, 200
_BASELINE_CONVICTION = 0.5

Key = tuple[date, str]


@dataclass(frozen=True, slots=True)
class Settled:
    """All settled decisions, and every arm's calls on them by arm and agent.

    Attributes
    ----------
    decisions, unsettled : int
        Taken, and taken so late that their horizon reaches beyond the period, or without a bar in it.
    sessions : tuple of date
        Sessions with a settled decision.
    keys : tuple of (date, str)
        Session and symbol of each row.
    """

    decisions: int
    unsettled: int
    sessions: tuple[date, ...]
    keys: tuple[Key, ...]
    outcomes: Outcomes
    calls: Mapping[str, Mapping[str, Calls]]


@dataclass(frozen=True, slots=True)
class Expectations:
    """What a generated history says was to be expected: returns over the horizon from the next open, by session and symbol."""

    returns: Mapping[Key, float]
    hashes: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path, symbols: Sequence[str]) -> Expectations:
        """Read ``expected/SYMBOL.csv`` with ``Date,ExpectedReturn`` of those symbols that have one.

        Raises
        ------
        ConfigError
            If a file is not of that form.
        """
        returns: dict[Key, float] = {}
        hashes: dict[str, str] = {}
        for symbol in symbols:
            path = folder / "expected" / f"{symbol}.csv"
            if not path.is_file():
                continue
            hashes[f"expected/{path.name}"] = file_sha256(path)
            try:
                with path.open(encoding="utf-8", newline="") as handle:
                    for row in csv.DictReader(handle):
                        value = float(row["ExpectedReturn"])
                        if not math.isfinite(value):
                            raise ValueError("a return that is not finite")
                        returns[date.fromisoformat(row["Date"]), symbol] = value
            except (KeyError, TypeError, ValueError, OSError) as error:
                raise ConfigError(
                    f"{path}: needs lines of Date,ExpectedReturn ({type(error).__name__}: {error})"
                ) from None
        return cls(returns, hashes)

    def benchmark(self) -> dict[date, float]:
        """Return the expected return of the equal-weight universe by session."""
        by_session: dict[date, list[float]] = {}
        for (session, _), value in self.returns.items():
            by_session.setdefault(session, []).append(value)
        return {session: math.fsum(values) / len(values) for session, values in by_session.items()}


def settle(
    feed: ReplayFeed, thoughts: Sequence[Thought], config: OrchestratorConfig, expectations: Expectations
) -> Settled:
    """Settle every call on the bars of the feed, whose symbols are the universe.

    Parameters
    ----------
    feed : ReplayFeed
        Of all symbols and the whole period.
    thoughts : sequence of Thought
        All symbols' answers; every one holds the same arms and agents.
    """
    horizon, one_way = config.decision.horizon_sessions, config.execution.one_way_cost
    taken: dict[Key, tuple[Thought, int]] = {
        (session, thought.symbol): (thought, place)
        for thought in thoughts
        for place, session in enumerate(thought.sessions)
    }
    arms = [*(thoughts[0].calls if thoughts else ()), BASELINE_ARM]
    trackers = {
        arm: OutcomeTracker(feed.calendar, horizon, one_way, RewardCalculator(volatility_scaling=True), 0.0)
        for arm in arms
    }
    rows: dict[Key, tuple[float, float, float]] = {}
    rewards: dict[tuple[str, str, Key], tuple[float, bool]] = {}
    baseline: dict[str, dict[Key, CallRecord]] = {name: {} for name in BASELINES}
    for close in walk(feed):
        for symbol in feed.symbols:
            key = (close.session, symbol)
            if key not in taken:
                continue
            thought, place = taken[key]
            for name, record in _baselines(close.view, symbol).items():
                baseline[name][key] = record
            for arm, tracker in trackers.items():
                named = (
                    {name: records[key] for name, records in baseline.items()}
                    if arm == BASELINE_ARM
                    else {name: records[place] for name, records in thought.calls[arm].items()}
                )
                opinions = tuple(_opinion(name, record) for name, record in named.items() if not record.abstained)
                tracker.track(
                    OpenDecision(symbol, symbol, close.at, close.session, thought.volatility[place], opinions)
                )
        for arm, tracker in trackers.items():
            result = tracker.settle(close.view, close.session, close.at, feed.symbols)
            updates = iter(result.updates)
            for decision, outcome in result.outcomes:
                key = (decision.session, decision.symbol)
                rows[key] = (outcome.actual_return, outcome.benchmark_return, decision.volatility)
                for opinion in decision.opinions:
                    update = next(updates)
                    rewards[arm, opinion.agent_type, key] = (update.reward, bool(update.success))
    keys = tuple(sorted(rows))
    sessions = tuple(sorted({session for session, _ in keys}))
    place_of = {session: place for place, session in enumerate(sessions)}
    outcomes = Outcomes(
        np.array([place_of[session] for session, _ in keys], dtype=np.int64),
        len(sessions),
        np.array([rows[key][0] for key in keys], dtype=float),
        np.array([rows[key][1] for key in keys], dtype=float),
    )
    expected = _Expected(expectations, horizon, 2 * one_way)
    calls: dict[str, dict[str, Calls]] = {}
    for arm in arms:
        if arm == BASELINE_ARM:
            records = {name: [baseline[name][key] for key in keys] for name in BASELINES}
        else:
            agents = thoughts[0].calls[arm]
            records = {name: [taken[key][0].calls[arm][name][taken[key][1]] for key in keys] for name in agents}
        calls[arm] = {
            name: _aligned(arm, name, keys, found, rows, rewards, expected) for name, found in records.items()
        }
    return Settled(len(taken), len(taken) - len(keys), sessions, keys, outcomes, calls)


def _opinion(agent: str, record: CallRecord) -> Opinion:
    return Opinion(
        agent, agent, record.recommendation, record.confidence, record.p_correct, record.position_size,
        record.stop_loss, record.take_profit,
    )  # fmt: skip


class _Expected:
    """The return part of a reward at the expected return, above the universe's and net of costs."""

    def __init__(self, expectations: Expectations, horizon: int, round_trip: float) -> None:
        self._returns = expectations.returns
        self._benchmark = expectations.benchmark()
        self._horizon = horizon
        self.round_trip = round_trip
        self._calculator = RewardCalculator(1.0, 0.0, 0.0, 0.0, volatility_scaling=True)

    def reward(self, key: Key, recommendation: str, volatility: float) -> float:
        """Return it, NaN where nobody says what was to be expected."""
        value = self._returns.get(key)
        if value is None:
            return math.nan
        outcome = TradingOutcome(
            symbol=key[1],
            recommendation=recommendation,
            actual_return=value,
            holding_period=float(self._horizon),
            costs=self.round_trip if direction(recommendation) else 0.0,
            volatility=volatility or None,
        )
        return self._calculator.calculate_reward(outcome, self._benchmark[key[0]], apply_risk=False).return_reward


def _aligned(
    arm: str,
    agent: str,
    keys: Sequence[Key],
    records: Sequence[CallRecord],
    rows: Mapping[Key, tuple[float, float, float]],
    rewards: Mapping[tuple[str, str, Key], tuple[float, bool]],
    expected: _Expected,
) -> Calls:
    side = np.array([direction(record.recommendation) for record in records], dtype=np.int64)
    actual, benchmark = (np.array([rows[key][column] for key in keys], dtype=float) for column in (0, 1))
    nothing = (math.nan, False)
    earned = [rewards.get((arm, agent, key), nothing) for key in keys]
    worth = [
        math.nan if record.abstained else expected.reward(key, record.recommendation, rows[key][2])
        for key, record in zip(keys, records, strict=True)
    ]
    return Calls(
        abstained=np.array([record.abstained for record in records], dtype=bool),
        side=side,
        conviction=np.array([record.confidence for record in records], dtype=float),
        p_correct=np.array([math.nan if r.p_correct is None else r.p_correct for r in records], dtype=float),
        success=np.array([success for _, success in earned], dtype=bool),
        reward=np.array([reward for reward, _ in earned], dtype=float),
        expected_reward=np.array(worth, dtype=float),
        net_return=side * (actual - benchmark) - np.abs(side) * expected.round_trip,
    )


def _baselines(view: AsOfView, symbol: str) -> dict[str, CallRecord]:
    """Return the simple forecasts of a symbol; one whose bars do not reach back far enough abstains."""
    closes = view.bars(symbol, _YEAR + 1).close
    yesterday = float(closes[-1] - closes[-2]) if len(closes) > 1 else None
    trend = float(closes[-1] - closes[-_AVERAGED:].mean()) if len(closes) >= _AVERAGED else None
    momentum = float(closes[-1 - _MONTH] - closes[0]) if len(closes) > _YEAR else None
    moves = dict(zip(BASELINES, (1.0 if len(closes) else None, yesterday, trend, momentum), strict=True))
    return {name: _forecast(move) for name, move in moves.items()}


def _forecast(move: float | None) -> CallRecord:
    word = "hold" if not move else ("buy" if move > 0 else "sell")
    return CallRecord(
        word, _BASELINE_CONVICTION, None, move is None, 0.0, None, None, False, False, True, 0.0, 0.0
    )  # fmt: skip
