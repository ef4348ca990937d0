"""How often calls came true by how sure they were: what convictions are calibrated on, counted by the database.

Recovery reads the counts of a run; retention keeps those of what it removes, so that a removal makes no difference to
them, however poor the experiences were that it took. Abstentions and shadow calls never count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg


@dataclass(frozen=True, slots=True)
class MaturedCalls:
    """Calls of one agent by one policy that stated about the same confidence.

    Attributes
    ----------
    agent_type, policy : str
    is_hold : bool
        Whether they were holds; the others took a side.
    percent : int
        The confidence they stated, 0..100, see `percent_of`.
    matured_at : datetime
        When the outcome of the last of them was known.
    calls, successes : int
        How many there were, and how many came true.
    """

    agent_type: str
    policy: str
    is_hold: bool
    percent: int
    matured_at: datetime
    calls: int
    successes: int


def percent_of(confidence: float) -> int:
    """Return a confidence (0..1) in whole percent, halves upwards; `_PERCENT` is the same in SQL, on the same doubles."""
    return math.floor(confidence * 100 + 0.5)


# the column is of single precision; the output is stored as it was given
_PERCENT = (
    "floor(coalesce((t.workflow_trace->'output'->>'confidence')::float8, t.confidence::float8) * 100 + 0.5)::integer"
)
_GROUPS = f"t.agent_type, t.policy, t.recommendation = 'hold' AS is_hold, {_PERCENT} AS percent"
_COUNTED = "t.matured_at IS NOT NULL AND t.policy IS NOT NULL AND t.recommendation IS NOT NULL AND NOT t.abstained AND NOT t.shadow"


def counts(cursor: psycopg.Cursor[Any], run_id: str) -> list[MaturedCalls]:
    """Return the matured calls of a run, removed ones included; those that matured last apart from all before them."""
    cursor.execute(
        f"SELECT agent_type, policy, is_hold, percent, max(matured_at), count(*), count(*) FILTER (WHERE success) FROM "
        f"(SELECT {_GROUPS}, t.matured_at, t.success, t.matured_at = max(t.matured_at) OVER () AS newest "
        f"FROM trajectories t WHERE t.run_id = %(run_id)s AND {_COUNTED}) AS found GROUP BY 1, 2, 3, 4, newest "
        "UNION ALL SELECT agent_type, policy, is_hold, percent, matured_at, calls, successes FROM removed_calls "
        "WHERE run_id = %(run_id)s ORDER BY 5, 1, 2, 3, 4",
        {"run_id": run_id},
    )
    return [MaturedCalls(*row) for row in cursor]


def keep(cursor: psycopg.Cursor[Any], trajectory_ids: Sequence[str]) -> None:
    """Count trajectories that are about to be removed by the same transaction."""
    cursor.execute(
        "INSERT INTO removed_calls AS r (run_id, agent_type, policy, is_hold, percent, matured_at, calls, successes) "
        f"SELECT t.run_id, {_GROUPS}, max(t.matured_at), count(*), count(*) FILTER (WHERE t.success) FROM trajectories t "
        f"WHERE t.trajectory_id = ANY(%s) AND {_COUNTED} GROUP BY 1, 2, 3, 4, 5 "
        "ON CONFLICT (run_id, agent_type, policy, is_hold, percent) DO UPDATE SET calls = r.calls + excluded.calls, "
        "successes = r.successes + excluded.successes, matured_at = greatest(r.matured_at, excluded.matured_at)",
        (list(trajectory_ids),),
    )
