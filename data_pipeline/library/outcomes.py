"""Outcomes: what a trajectory was worth once its horizon had passed, written once and mirrored into the search table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from operator import attrgetter
from typing import Any

import psycopg

from utils.errors import LibraryConflict


@dataclass(frozen=True, slots=True)
class OutcomeUpdate:
    """The outcome of one trajectory; returns and costs are fractions."""

    trajectory_id: str
    actual_return: float
    success: bool
    reward: float
    matured_at: datetime
    benchmark_return: float | None = None
    max_drawdown: float | None = None
    costs: float | None = None


@dataclass(frozen=True, slots=True)
class SessionTally:
    """An agent's matured calls of one decision time: how many, how many came true, when the last outcome was known."""

    as_of: datetime
    decisions: int
    successes: int
    matured_at: datetime


_AS_TUPLE = attrgetter(*(field.name for field in fields(OutcomeUpdate)))


def apply(cursor: psycopg.Cursor[Any], updates: Sequence[OutcomeUpdate]) -> None:
    """Write outcomes of trajectories that have none yet, and mirror them into the search table.

    Two statements: an embedding that is being stored meanwhile makes the first one wait, and only a statement that
    begins after it sees the new row.
    """
    columns = [list(column) for column in zip(*map(_AS_TUPLE, updates), strict=True)]
    cursor.execute(
        """
        UPDATE trajectories t SET actual_return = v.actual_return, success = v.success, reward = v.reward,
            matured_at = v.matured_at, benchmark_return = v.benchmark_return, max_drawdown = v.max_drawdown, costs = v.costs
        FROM unnest(%s::text[], %s::float8[], %s::bool[], %s::float8[], %s::timestamptz[], %s::float8[], %s::float8[],
            %s::float8[]) AS v (trajectory_id, actual_return, success, reward, matured_at, benchmark_return, max_drawdown, costs)
        WHERE t.trajectory_id = v.trajectory_id AND t.matured_at IS NULL
        """,
        columns,
    )
    cursor.execute(
        """
        UPDATE trajectory_embeddings e SET success = t.success, reward = t.reward, matured_at = t.matured_at
        FROM trajectories t WHERE t.trajectory_id = e.trajectory_id AND e.trajectory_id = ANY(%s) AND e.matured_at IS NULL
        """,
        columns[:1],
    )


def update(cursor: psycopg.Cursor[Any], outcome: OutcomeUpdate, *, revise: bool, dated: bool = True) -> bool:
    """Write one outcome; return False for an unknown trajectory.

    Where `dated` is False the time it matured was not given, and a stored one stays.

    Raises
    ------
    LibraryConflict
        If another outcome is stored and `revise` is False.
    """
    cursor.execute(
        "SELECT actual_return, success, reward, benchmark_return, max_drawdown, costs, matured_at FROM trajectories "
        "WHERE trajectory_id = %s FOR UPDATE",
        (outcome.trajectory_id,),
    )
    stored = cursor.fetchone()
    if stored is None:
        return False
    given = (
        outcome.actual_return, outcome.success, outcome.reward, outcome.benchmark_return, outcome.max_drawdown,
        outcome.costs, outcome.matured_at,
    )  # fmt: skip
    if stored[0] is not None:
        if stored[:6] == given[:6] and (stored[6] == given[6] or not dated):
            return True
        if not revise:
            raise LibraryConflict(
                f"trajectory {outcome.trajectory_id} has the outcome (return, success, reward, benchmark, drawdown, costs, "
                f"matured) {stored}, not {given}; pass revise=True to replace it"
            )
    cursor.execute(
        "UPDATE trajectories SET actual_return = %s, success = %s, reward = %s, matured_at = %s, benchmark_return = %s, "
        "max_drawdown = %s, costs = %s WHERE trajectory_id = %s",
        (
            *given[:3],
            outcome.matured_at,
            outcome.benchmark_return,
            outcome.max_drawdown,
            outcome.costs,
            outcome.trajectory_id,
        ),
    )
    cursor.execute(
        "UPDATE trajectory_embeddings SET success = %s, reward = %s, matured_at = %s WHERE trajectory_id = %s",
        (outcome.success, outcome.reward, outcome.matured_at, outcome.trajectory_id),
    )
    return True


def tallies(
    cursor: psycopg.Cursor[Any],
    run_ids: Sequence[str],
    agent_type: str,
    before: datetime,
    state_language: int | None = None,
) -> list[SessionTally]:
    """Return an agent's calls that had matured before an instant, by decision time, oldest first.

    With `state_language` only those count that were stored with a state of that language.
    """
    cursor.execute(
        "SELECT as_of, count(*), count(*) FILTER (WHERE success), max(matured_at) FROM trajectories "
        "WHERE agent_type = %s AND matured_at < %s AND run_id = ANY(%s) AND NOT shadow "
        "AND (%s::int IS NULL OR agent_inputs->'state'->'language' = to_jsonb(%s::int)) GROUP BY as_of ORDER BY as_of",
        (agent_type, before, list(run_ids), state_language, state_language),
    )
    return [SessionTally(*row) for row in cursor]
