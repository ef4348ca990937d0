"""Outcomes: what became of each decision once its horizon had passed, and the reward that every opinion earned by it.

Keeps the open decisions in memory (the database holds them too), measures them on bars as of the present instant, and
turns outcome and grade into a reward. Knows nothing of portfolios: an opinion is judged by the instrument, not by luck
of execution.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import numpy as np

from data_pipeline.asof_store import AsOfView
from data_pipeline.calendar import ExchangeCalendar
from data_pipeline.library.matured_calls import MaturedCalls, percent_of
from data_pipeline.library.outcomes import OutcomeUpdate
from judge.reward_calculator import RewardCalculator, RewardHistory, TradingOutcome, trajectory_reward
from utils.schema import CorporateAction, Outcome, direction


@dataclass(frozen=True, slots=True)
class Opinion:
    """One agent's call within a decision, as far as its reward and its agent's calibration need it."""

    trajectory_id: str
    agent_type: str
    recommendation: str
    confidence: float
    p_correct: float | None = None
    position_size: float = 0.0
    stop_loss: float | None = None
    take_profit: float | None = None
    policy: str = "rules"


@dataclass(frozen=True, slots=True)
class OpenDecision:
    """A decision whose horizon has not passed; `volatility` is the daily one at decision time (fraction).

    `conflicts` holds the events of its trace that tell of resolved conflicts, for whoever learns from their outcome;
    `shadows` the opinions of policies that do not serve, which are settled and count for nothing else.
    """

    decision_id: str
    symbol: str
    as_of: datetime
    session: date
    volatility: float
    opinions: tuple[Opinion, ...]
    conflicts: tuple[Mapping[str, Any], ...] = ()
    shadows: tuple[Opinion, ...] = ()


@dataclass(slots=True)
class Settlement:
    """What one instant settled: rows for the library, figures for metrics, calls to calibrate by, and what no bar settles."""

    updates: list[OutcomeUpdate] = field(default_factory=list)
    outcomes: list[tuple[OpenDecision, Outcome]] = field(default_factory=list)
    successes: dict[str, int] = field(default_factory=dict)
    unsettled: list[OpenDecision] = field(default_factory=list)
    matured: list[MaturedCalls] = field(default_factory=list)


class OutcomeTracker:
    """Holds open decisions and settles those that are due.

    Parameters
    ----------
    calendar : ExchangeCalendar
    horizon_sessions : int
        Sessions from the decision's next open to the close that settles it.
    one_way_cost : float
        Cost of one trade as a fraction of its value; a side pays it twice.
    calculator : RewardCalculator
    judge_weight : float
        Share of the judges' grade in the reward, 0..1.
    """

    def __init__(
        self,
        calendar: ExchangeCalendar,
        horizon_sessions: int,
        one_way_cost: float,
        calculator: RewardCalculator,
        judge_weight: float,
    ) -> None:
        self._calendar = calendar
        self._horizon = horizon_sessions
        self._round_trip = 2 * one_way_cost
        self._calculator = calculator
        self._judge_weight = judge_weight
        self._open: dict[date, list[OpenDecision]] = {}
        self._scores: dict[str, float] = {}
        self._awaited: set[str] = set()
        self._histories: dict[str, RewardHistory] = {}

    @property
    def backlog(self) -> int:
        """Number of decisions that wait for their outcome."""
        return sum(map(len, self._open.values()))

    def track(self, decision: OpenDecision) -> None:
        """Begin to wait for a decision's outcome."""
        self._open.setdefault(decision.session, []).append(decision)
        self._awaited.update(opinion.trajectory_id for opinion in decision.opinions)

    def graded(self, scores: Mapping[str, float]) -> None:
        """Take in the judges' final scores (0..100) by trajectory id; one that comes after the outcome changes nothing."""
        self._scores.update((name, score) for name, score in scores.items() if name in self._awaited)

    def restore_history(self, agent_type: str, signed: Iterable[tuple[str, float, bool]]) -> None:
        """Take in matured calls of an agent, oldest first: recommendation, signed net return, success."""
        for recommendation, value, success in signed:
            self._remember(agent_type, recommendation, value, success)

    def settle(self, view: AsOfView, session: date, at: datetime, universe: Sequence[str]) -> Settlement:
        """Settle every decision whose horizon ends with `session`.

        A decision whose symbol has no bar in its horizon can never be settled; it is dropped and counted.
        """
        result = Settlement()
        earned: list[tuple[Opinion, OutcomeUpdate]] = []
        for decided in sorted(day for day in self._open if self._calendar.next_session(day, self._horizon) <= session):
            end = self._calendar.next_session(decided, self._horizon)
            window = len(self._calendar.sessions(decided, session))
            paths = {symbol: path for symbol in universe if (path := _path(view, symbol, decided, end, window))}
            benchmark = float(np.mean([path.total_return for path in paths.values()])) if paths else 0.0
            for decision in self._open.pop(decided):
                path = paths.get(decision.symbol)
                if path is None:
                    result.unsettled.append(decision)
                    for opinion in decision.opinions:
                        self._score_of(opinion)
                    continue
                outcome = Outcome(
                    decision.decision_id, decision.symbol, decision.as_of, at, self._horizon, path.entry_session,
                    round(path.total_return, 10), round(benchmark, 10), round(path.drawdown, 10), round(path.rise, 10),
                    self._round_trip, decision.volatility,
                )  # fmt: skip
                result.outcomes.append((decision, outcome))
                for opinion in decision.opinions:
                    update = self._reward(opinion, outcome)
                    result.updates.append(update)
                    result.matured.append(_matured(opinion, update))
                    earned.append((opinion, update))
                result.updates.extend(self._reward(shadow, outcome) for shadow in decision.shadows)
        # calls that mature together must not see one another: history grows only now
        for opinion, update in earned:
            agent_type, recommendation = opinion.agent_type, opinion.recommendation
            value = direction(recommendation) * update.actual_return - (update.costs or 0.0)
            self._remember(agent_type, recommendation, value, update.success)
            if update.success:
                result.successes[agent_type] = result.successes.get(agent_type, 0) + 1
        return result

    def _reward(self, opinion: Opinion, outcome: Outcome) -> OutcomeUpdate:
        side = direction(opinion.recommendation)
        costs = outcome.costs if side else 0.0
        drawdown = -outcome.max_rise if side < 0 else outcome.max_drawdown
        components = self._calculator.calculate_reward(
            TradingOutcome(
                symbol=outcome.symbol,
                recommendation=opinion.recommendation,
                position_size=opinion.position_size,
                stop_loss=opinion.stop_loss,
                take_profit=opinion.take_profit,
                actual_return=outcome.actual_return,
                max_drawdown=drawdown,
                holding_period=float(outcome.horizon_sessions),
                predicted_confidence=opinion.confidence,
                p_correct=opinion.p_correct,
                costs=costs,
                volatility=outcome.volatility or None,
            ),
            benchmark_return=outcome.benchmark_return,
            history=self._histories.get(opinion.agent_type),
            apply_risk=opinion.agent_type == "strategist",
        )
        reward = trajectory_reward(components, self._score_of(opinion), self._judge_weight)
        return OutcomeUpdate(
            opinion.trajectory_id, outcome.actual_return, bool(components.success), round(reward, 10), outcome.matured_at,
            outcome.benchmark_return, drawdown, costs,
        )  # fmt: skip

    def _score_of(self, opinion: Opinion) -> float | None:
        """Return an opinion's grade, if it has one by now; nothing more is awaited for it."""
        self._awaited.discard(opinion.trajectory_id)
        return self._scores.pop(opinion.trajectory_id, None)

    def _remember(self, agent_type: str, recommendation: str, value: float, success: bool) -> None:
        history = self._histories.get(agent_type, RewardHistory())
        self._histories[agent_type] = history.extended(recommendation, value, success)


def _matured(opinion: Opinion, update: OutcomeUpdate) -> MaturedCalls:
    return MaturedCalls(
        opinion.agent_type,
        opinion.policy,
        not direction(opinion.recommendation),
        percent_of(opinion.confidence),
        update.matured_at,
        1,
        int(update.success),
    )


@dataclass(frozen=True, slots=True)
class _Path:
    entry_session: date
    total_return: float
    drawdown: float
    rise: float


def _path(view: AsOfView, symbol: str, decided: date, end: date, window: int) -> _Path | None:
    """Measure a symbol from the open after `decided` to the close of `end`, dividends included.

    `window` is the number of sessions from `decided` to the present: more than the horizon where it settles late.
    """
    bars = view.bars(symbol, window)
    inside = (bars.sessions > np.datetime64(decided)) & (bars.sessions <= np.datetime64(end))
    if not inside.any():
        return None
    sessions = bars.sessions[inside]
    entry = float(bars.open[inside][0])
    closes = bars.close[inside]
    entry_session: date = sessions[0].astype(object)
    dividends = _dividends(view.actions(symbol, entry_session), end)
    before = np.concatenate(([entry], closes[:-1]))
    return _Path(
        entry_session,
        (float(closes[-1]) + dividends) / entry - 1,
        min(0.0, float((bars.low[inside] / np.maximum.accumulate(before)).min()) - 1),
        max(0.0, float((bars.high[inside] / np.minimum.accumulate(before)).max()) - 1),
    )


def _dividends(actions: Sequence[CorporateAction], end: date) -> float:
    """Return the cash a share earned, in share units of the end: a later split divides an earlier dividend."""
    total = 0.0
    for action in sorted(actions, key=lambda a: a.session):
        if action.session > end:
            break
        if action.kind == "split":
            total /= action.value
        else:
            total += action.value
    return total
