"""How much error a gate may spend, so that all gates of an agent's year together promote what is no better at most so often.

The training pipelines ask `waits_until` before they train and `reserve` before the gate looks. What a gate spent stands with its
training run, so that a restart knows it. Never judges anything.

Formula
-------
With the budget B (`learning.error_budget_per_year`) and t, the elapsed part of the agent's year of 365 days of the Clock, which
begins with its first gate, all its gates of that year, of fine-tuning and reinforcement learning alike, may have spent
``B * (.4 + .6 t)``. A gate gets what is left of that, at most .02 (EVIDENCE.md), and waits while that is less than B / 10. Its
bound has the one-sided level 1 - alpha.

Statement
---------
A gate that promotes on a bound of level 1 - alpha promotes what is no better with probability alpha at most, as far as the bound
holds its level. The alphas of a year sum to B at most. By the union bound, whatever the dependence between gates whose held-out
periods overlap, the chance that any of them promotes what is no better is at most B a year.

Cost
----
``python -m benchmarks error_budget``: 20,000 simulated years, gates on the newest 60 sessions, blocks of 20, horizon 5, a look every 5
sessions. The edge, in standard deviations of a session's difference, is there from the start of the year. The chance is that of a
promotion within the year of 252 sessions; then follows how many of them are served better on average:

================  =====  ============  ===========  ===========  ===========
a gate waits for  gates  without edge  edge 0.4     edge 0.7     edge 1.0
================  =====  ============  ===========  ===========  ===========
no budget            51          .260  .87,  154    .99,  217   1.00,  241
B / 100              51          .020  .19,   43    .51,   113   .82,   188
B / 20               11          .030  .29,   54    .68,   135   .94,   206
B / 10 (taken)        6          .033  .31,   57    .70,   139   .94,   208
B / 5                 3          .032  .28,   55    .66,   134   .91,   203
================  =====  ============  ===========  ===========  ===========

Many gates of small levels are worth little: with three blocks of 20 sessions the bound of a level far out is very wide.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg

from utils.clock import isoformat
from utils.errors import TrainingFailed

YEAR = timedelta(days=365)
FIRST_SHARE = 0.4
"""Of the budget, at the beginning of the year: with the default budget the .02 of a single gate."""

LARGEST_ALPHA = 0.02
"""Of one gate, whatever is left: the level of EVIDENCE.md."""

LEAST_SHARE = 0.1
"""Of the budget; a gate with less would hardly pass anything, see the module."""

_SLACK = 1e-9  # of a budget's sums


@dataclass(frozen=True, slots=True)
class GateSpending:
    """What a gate has spent; `at` is of the Clock, `alpha` the one-sided error of its bounds."""

    at: datetime
    alpha: float


def allowed(budget: float, share_of_year: float) -> float:
    """Return what all gates together may have spent after a part 0..1 of the year."""
    return budget * (FIRST_SHARE + (1 - FIRST_SHARE) * min(max(share_of_year, 0.0), 1.0))


def year_start(first_gate: datetime, at: datetime) -> datetime:
    """Return when the agent's year around `at` began; years follow each other from the first gate on."""
    return first_gate + YEAR * max(0, math.floor((at - first_gate) / YEAR))


def next_alpha(budget: float, spent: Sequence[GateSpending], at: datetime, least_share: float = LEAST_SHARE) -> float:
    """Return the error that a gate at `at` may spend, 0 where it has to wait.

    Parameters
    ----------
    budget : float
        Of a year, 0..1.
    spent : sequence of GateSpending
        Of all gates of the agent so far, in any order.
    least_share : float
        Of the budget, that a gate waits for.
    """
    left = _left(budget, spent, at)
    return min(LARGEST_ALPHA, left) if left >= _least(budget, least_share) * (1 - _SLACK) else 0.0


def waits_until(budget: float, spent: Sequence[GateSpending], at: datetime) -> datetime | None:
    """Return from when on the budget allows a gate again; None where it does now."""
    if next_alpha(budget, spent, at) > 0:
        return None
    start = year_start(min(item.at for item in spent), at)
    used = sum(item.alpha for item in spent if start <= item.at < start + YEAR)
    share = ((used + _least(budget)) / budget - FIRST_SHARE) / (1 - FIRST_SHARE)
    return start + YEAR * min(share, 1.0)


def why_it_waits(budget: float, spent: Sequence[GateSpending], at: datetime) -> str | None:
    """Return in words that the budget allows no gate now; None where it does."""
    until = waits_until(budget, spent, at)
    if until is None:
        return None
    return f"the error budget of {budget:g} a year allows the next gate on {isoformat(until.replace(microsecond=0))}"


def spendings(cursor: psycopg.Cursor[Any], run_id: str, agent_type: str) -> list[GateSpending]:
    """Return what the gates of a run's agent have spent, oldest first; one of before the budget was kept spent the largest."""
    cursor.execute(
        "SELECT started_at, alpha FROM (SELECT started_at, CASE WHEN metrics ? 'error_spent' "
        "THEN (metrics->>'error_spent')::float8 WHEN metrics->>'verdict' IN ('promote', 'reject') THEN %s ELSE 0 END AS alpha "
        "FROM training_runs WHERE run_id = %s AND agent_type = %s) AS gates WHERE alpha > 0 ORDER BY started_at",
        (LARGEST_ALPHA, run_id, agent_type),
    )
    return [GateSpending(*row) for row in cursor]


def reserve(
    cursor: psycopg.Cursor[Any], training_run_id: uuid.UUID, run_id: str, agent_type: str, budget: float, at: datetime
) -> float:
    """Let a training's gate spend its part before it looks, inside the caller's transaction; return the part.

    What is reserved counts as spent until `settled` says otherwise, so that neither a kill nor a second process can look twice
    for the price of once. A training that goes on after a kill gets the same part again.

    Raises
    ------
    TrainingFailed
        If another training has spent it meanwhile.
    """
    cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"error budget {run_id} {agent_type}",))
    cursor.execute("SELECT metrics->>'error_spent' FROM training_runs WHERE training_run_id = %s", (training_run_id,))
    row = cursor.fetchone()
    if row is not None and row[0] is not None:
        return float(row[0])
    spent = spendings(cursor, run_id, agent_type)
    alpha = next_alpha(budget, spent, at)
    if alpha == 0:
        raise TrainingFailed(f"another training has spent what this one was to: {why_it_waits(budget, spent, at)}")
    cursor.execute(
        "UPDATE training_runs SET metrics = coalesce(metrics, '{}') || jsonb_build_object('error_spent', %s::float8, "
        "'level', %s::float8) WHERE training_run_id = %s",
        (alpha, 1 - alpha, training_run_id),
    )
    return alpha


def settled(alpha: float, verdict: str) -> dict[str, float]:
    """Return what the metrics of a training say of its gate; only a verdict that looked at the bound has spent anything."""
    return {"error_spent": 0.0 if verdict == "insufficient_evidence" else alpha, "level": 1 - alpha}


def _least(budget: float, least_share: float = LEAST_SHARE) -> float:
    return min(least_share * budget, LARGEST_ALPHA)


def _left(budget: float, spent: Sequence[GateSpending], at: datetime) -> float:
    if not spent:
        return allowed(budget, 0.0)
    start = year_start(min(item.at for item in spent), at)
    used = math.fsum(item.alpha for item in spent if start <= item.at < start + YEAR)
    return allowed(budget, (at - start) / YEAR) - used
