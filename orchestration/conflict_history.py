"""What came of resolved conflicts: which strategy was right in which kind of conflict and market.

The coordinator notes every conflict; whoever knows outcomes hands over `past_conflicts` of stored traces. The validator's
resolver asks `preferred` before it chooses. Only what matured before the decision counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from agents.conflicts.detection import Conflict
from agents.conflicts.resolution import STRATEGIES, ConflictResolution, Strategy
from evaluation.bootstrap import lower_bound
from judge.reward_calculator import HOLD_BAND
from utils.clock import ensure_utc
from utils.schema import Outcome, ResolvedConflict, direction

LEAST_CASES = 30
"""Matured cases of a context below which nothing is learned from it."""

LEVEL = 0.95
"""Of the one-sided bound on how much more often another strategy was right."""

BLOCK_DAYS = 5
"""Decision days resampled together: outcomes of five sessions overlap that long."""

Context = tuple[str, str]
"""Type of the conflict and regime."""


@dataclass(frozen=True, slots=True)
class RealisedOutcome:
    """What the market did after a decision: return of the instrument and round-trip costs, as fractions."""

    actual_return: float
    costs: float
    matured_at: datetime


@dataclass(frozen=True, slots=True)
class PastConflict:
    """A resolved conflict whose outcome is known.

    Attributes
    ----------
    as_of, matured_at : datetime
        Of the decision, and from when on its outcome was known.
    conflict_type, regime : str
    right : mapping of str to bool
        By strategy: whether what it says came true. A side must earn its costs, a hold must not miss 2 %.
    """

    as_of: datetime
    matured_at: datetime
    conflict_type: str
    regime: str
    right: Mapping[str, bool]


def past_conflicts(
    rows: Iterable[tuple[datetime, Sequence[Mapping[str, Any]], RealisedOutcome | Outcome]],
) -> Iterator[PastConflict]:
    """Yield the conflicts of stored decisions.

    Parameters
    ----------
    rows : iterable of (datetime, trace, outcome)
        Time of the decision, its trace (`Decision.workflow`; in the library `workflow_trace["steps"]` of the strategist's
        trajectory) and what came of it.
    """
    for as_of, trace, outcome in rows:
        regime = next((str(event.get("regime", "")) for event in trace if event["event"] == "graph"), "")
        for event in trace:
            for item in event.get("resolutions", ()):
                resolved = ResolvedConflict.model_validate(item)
                right = {
                    strategy: came_true(said, outcome.actual_return, outcome.costs)
                    for strategy, said in resolved.alternatives.items()
                }
                yield PastConflict(
                    ensure_utc(as_of), ensure_utc(outcome.matured_at), resolved.conflict_type, regime, right
                )


def resolved_events(trace: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Return the part of a trace that `past_conflicts` reads, empty where no conflict was resolved."""
    if not any(event.get("resolutions") for event in trace):
        return ()
    return tuple(event for event in trace if event["event"] == "graph" or event.get("resolutions"))


def came_true(recommendation: str, actual_return: float, costs: float) -> bool:
    """Return whether a call was right, by the measure that rewards use."""
    side = direction(recommendation)
    return side * actual_return - costs > 0 if side else abs(actual_return) < HOLD_BAND


class ConflictAnalyzer:
    """Counts conflicts and learns from their outcomes; a `StrategyPreference`.

    Notes
    -----
    In a context (type, regime) with at least 30 matured cases, a strategy takes the place of the rule's choice if it was
    right more often: the lower bound (one-sided, 95 %) of the mean difference lies above 0. Both are scored on the same
    conflicts, whatever was chosen at the time. Cases of one day count as one value and days are resampled in blocks
    (`evaluation.bootstrap.lower_bound`), because symbols move together and horizons overlap. Of several such strategies
    the one with the highest bound is preferred.
    """

    def __init__(self) -> None:
        self._types: Counter[str] = Counter()
        self._strategies: Counter[str] = Counter()
        self._regimes: Counter[str] = Counter()
        self._learned = 0
        self._unresolved = 0
        self._cases: defaultdict[Context, list[PastConflict]] = defaultdict(list)
        self._known: defaultdict[Context, dict[tuple[str, int], Strategy | None]] = defaultdict(dict)

    def add_conflict(
        self,
        conflict: Conflict | ResolvedConflict,
        resolution: ConflictResolution | None = None,
        regime: str = "",
    ) -> None:
        """Count a conflict and how it was resolved; a `ResolvedConflict` says both."""
        self._types[conflict.conflict_type] += 1
        if regime:
            self._regimes[regime] += 1
        if isinstance(conflict, ResolvedConflict):
            self._strategies[conflict.strategy] += 1
            self._learned += conflict.chosen_by == "learned"
        elif resolution is not None:
            self._strategies[resolution.strategy_used] += 1
            self._learned += resolution.chosen_by == "learned"
        else:
            self._unresolved += 1

    def restore(self, cases: Iterable[PastConflict]) -> None:
        """Know these cases and no others, as after a restart."""
        self._cases.clear()
        self._known.clear()
        self.learn(cases)

    def learn(self, cases: Iterable[PastConflict]) -> None:
        """Take in conflicts whose outcome is known, each once, in any order."""
        touched = set()
        for case in cases:
            context = (case.conflict_type, case.regime)
            self._cases[context].append(case)
            touched.add(context)
        for context in touched:
            self._cases[context].sort(key=_matured_at)
            self._known.pop(context, None)

    def preferred(self, conflict_type: str, regime: str, as_of: datetime | None, default: Strategy) -> Strategy | None:
        """Return the strategy to use in place of `default`, None to keep it; see `StrategyPreference`."""
        context = (conflict_type, regime)
        cases = self._cases.get(context, [])
        count = len(cases) if as_of is None else bisect_left(cases, ensure_utc(as_of), key=_matured_at)
        if count < LEAST_CASES:
            return None
        known = self._known[context]
        if (default, count) not in known:
            complete = [case for case in cases[:count] if set(STRATEGIES) <= set(case.right)]
            known[default, count] = _better(complete, default) if len(complete) >= LEAST_CASES else None
        return known[default, count]

    def get_statistics(self) -> dict[str, Any]:
        """Return counts of conflicts by type, strategy and regime, and how often each strategy was right by context."""
        return {
            "total_conflicts": sum(self._types.values()),
            "by_type": dict(sorted(self._types.items())),
            "by_strategy": dict(sorted(self._strategies.items())),
            "by_regime": dict(sorted(self._regimes.items())),
            "unresolved": self._unresolved,
            "learned_choices": self._learned,
            "matured": sum(len(cases) for cases in self._cases.values()),
            "success_rates": [
                {
                    "conflict_type": conflict_type,
                    "regime": regime,
                    "cases": len(cases),
                    **{s: sum(case.right.get(s, False) for case in cases) / len(cases) for s in STRATEGIES},
                }
                for (conflict_type, regime), cases in sorted(self._cases.items())
            ],
        }


def _matured_at(case: PastConflict) -> datetime:
    return case.matured_at


def _better(cases: Sequence[PastConflict], default: Strategy) -> Strategy | None:
    """Return the strategy whose advantage over the default is most certain, None if none is certain."""
    best: tuple[float, Strategy] | None = None
    days: defaultdict[date, list[PastConflict]] = defaultdict(list)
    for case in cases:
        days[case.as_of.date()].append(case)
    for strategy in STRATEGIES:
        if strategy == default:
            continue
        daily = [
            sum(case.right[strategy] - case.right[default] for case in same) / len(same)
            for _, same in sorted(days.items())
        ]
        if len(daily) < 3 * BLOCK_DAYS or sum(daily) <= 0:  # no bound of what is no advantage lies above 0
            continue
        low = lower_bound(daily, BLOCK_DAYS, LEVEL).low
        if low > 0 and (best is None or low > best[0]):
            best = (low, strategy)
    return best[1] if best else None
