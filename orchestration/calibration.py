"""Calibrated convictions: how often calls like this one have come true, as far as it was known when the call was made.

The coordinator asks it for `p_correct` of every opinion; the trading cycle teaches it outcomes as they mature, a restart
what the database knows of them. It never changes a call, and never looks at an outcome of the call's own instant.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from data_pipeline.library.matured_calls import MaturedCalls
from evaluation.isotonic import MIN_LABELS, Tally, isotonic_steps, rate_at
from utils.schema import AgentOutput, direction

P_CORRECT_DECIMALS = 6
"""What is stored and hashed is rounded to this."""

Kind = tuple[str, str, bool]
"""Agent, policy, and whether the calls are holds."""


@dataclass(frozen=True, slots=True)
class _Curve:
    confidences: tuple[float, ...]
    rates: tuple[float, ...]


class ConvictionCalibrator:
    """Turns the confidence that an agent states into the share of such calls that came true. Safe in several threads.

    Notes
    -----
    A policy has two curves of isotonic regression for each agent it thinks for: one of holds, one of calls that take a
    side. A hold comes true where the price stays about where it is and a side where it earns its costs, so the same
    confidence means something else in each; either curve needs 200 matured calls of its own. Another policy, such as the
    next version of a model or the rules that stand in for a vendor, begins with none.

    Calls are counted by whole percent of confidence and forgotten: memory does not grow with them, and nothing depends
    on their order. Only the newest instant's are held apart, because what matures at an instant was not known before it:
    a decision of that very instant is calibrated without them. For a time before that the counts tell too much, and
    nothing is said.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Kind, dict[int, tuple[int, int]]] = {}
        self._curves: dict[Kind, _Curve | None] = {}
        self._known_until: datetime | None = None
        self._newest: list[MaturedCalls] = []
        self._newest_at: datetime | None = None

    def restore(self, matured: Iterable[MaturedCalls]) -> None:
        """Know these calls and no others, as after a restart."""
        with self._lock:
            self._counts.clear()
            self._curves.clear()
            self._newest, self._newest_at, self._known_until = [], None, None
            self._learn(matured)

    def learn(self, matured: Iterable[MaturedCalls]) -> None:
        """Take in calls whose outcome is known, each once, in any order."""
        with self._lock:
            self._learn(matured)

    def p_correct(self, output: AgentOutput) -> float | None:
        """Return the share of calls like this one that came true.

        Returns
        -------
        float or None
            0..1. None for an abstention, below 200 calls of the kind that had matured before the output's `as_of`, and
            where later ones have been counted already.
        """
        if output.abstained:
            return None
        kind = (output.agent_type, output.policy, not direction(output.recommendation))
        with self._lock:
            if self._newest_at is not None and self._newest_at < output.as_of:
                self._count_newest()
            if self._known_until is not None and self._known_until >= output.as_of:
                return None
            if kind not in self._curves:
                self._curves[kind] = self._fitted(kind)
            curve = self._curves[kind]
        if curve is None:
            return None
        return round(rate_at(output.confidence, curve.confidences, curve.rates), P_CORRECT_DECIMALS)

    def _learn(self, matured: Iterable[MaturedCalls]) -> None:
        for calls in matured:
            if self._newest_at is None or calls.matured_at > self._newest_at:
                self._count_newest()
                self._newest_at = calls.matured_at
            if calls.matured_at == self._newest_at:
                self._newest.append(calls)
            else:
                self._count(calls)

    def _count_newest(self) -> None:
        for calls in self._newest:
            self._count(calls)
        self._newest = []

    def _count(self, calls: MaturedCalls) -> None:
        kind = (calls.agent_type, calls.policy, calls.is_hold)
        counts = self._counts.setdefault(kind, {})
        before, right = counts.get(calls.percent, (0, 0))
        counts[calls.percent] = (before + calls.calls, right + calls.successes)
        self._curves.pop(kind, None)
        if self._known_until is None or calls.matured_at > self._known_until:
            self._known_until = calls.matured_at

    def _fitted(self, kind: Kind) -> _Curve | None:
        counts = self._counts.get(kind, {})
        if sum(calls for calls, _ in counts.values()) < MIN_LABELS:
            return None
        steps = isotonic_steps(Tally(percent / 100, calls, right) for percent, (calls, right) in counts.items())
        return _Curve(tuple(step.value for step in steps), tuple(step.rate for step in steps))
