"""Decisions that two policies took side by side: what the serving one said, what one in its shadow said, what came of it.

Read by the trials of model versions and by the gate, and by nobody else: shadow opinions are no experiences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two opinions; an abstention says nothing."""

    recommendation: str
    confidence: float
    abstained: bool


@dataclass(frozen=True, slots=True)
class ShadowPair:
    """A decision whose outcome is known.

    Attributes
    ----------
    trajectory_id : str
        Of the serving opinion.
    actual_return, benchmark_return : float
        Over the horizon (fraction).
    daily_volatility : float
        At the decision (fraction).
    """

    trajectory_id: str
    symbol: str
    as_of: datetime
    matured_at: datetime
    actual_return: float
    benchmark_return: float | None
    daily_volatility: float
    serving: Side
    shadow: Side


@dataclass(frozen=True, slots=True)
class FatalTally:
    """Of decisions with both opinions: how many there are, and in how many each has a fatal finding; the last one's time."""

    pairs: int
    serving: int
    shadow: int
    newest: datetime | None


@dataclass(frozen=True, slots=True)
class PairFilter:
    """Which decisions are meant: of an agent, by the names of both policies, decided after an instant.

    `serving` None is whatever served.
    """

    run_id: str
    agent_type: str
    serving: str | None
    shadow: str
    decided_after: datetime


_PAIRS = """
    FROM trajectories s JOIN trajectories x ON x.decision_id = s.decision_id AND x.agent_type = s.agent_type AND x.shadow
    WHERE s.run_id = %(run_id)s AND s.agent_type = %(agent_type)s AND NOT s.shadow AND NOT s.abstained
        AND (%(serving)s::text IS NULL OR s.policy = %(serving)s) AND x.run_id = s.run_id AND x.policy = %(shadow)s
        AND s.as_of > %(decided_after)s
"""


def settled(
    cursor: psycopg.Cursor[Any], chosen: PairFilter, since: datetime | None, until: datetime
) -> Iterator[ShadowPair]:
    """Yield the pairs whose outcome was known after `since` (None: any) and by `until`, in order of maturity."""
    cursor.execute(
        "SELECT s.trajectory_id, s.symbol, s.as_of, s.matured_at, s.actual_return, s.benchmark_return, "
        "(s.market_state->'inputs'->>'daily_volatility')::float8, s.recommendation, s.confidence, x.recommendation, "
        f"x.confidence, x.abstained {_PAIRS} AND s.matured_at <= %(until)s AND s.matured_at > %(since)s "
        'ORDER BY s.matured_at, s.as_of, s.symbol COLLATE "C"',
        # no outcome is known before its decision: without this bound every outcome of the agent would be looked at
        {**_parameters(chosen), "since": since or chosen.decided_after, "until": until},
    )
    for identity, symbol, as_of, matured_at, actual, benchmark, volatility, call, confidence, *beside in cursor:
        serving = Side(call or "hold", confidence, False)
        shadow = Side(beside[0] or "hold", beside[1], beside[2])
        yield ShadowPair(identity, symbol, as_of, matured_at, actual, benchmark, volatility or 0.0, serving, shadow)


def said_beside(cursor: psycopg.Cursor[Any], trajectory_ids: Sequence[str], not_by: Sequence[str]) -> dict[str, Side]:
    """Return what was said in the shadow of these opinions, by any policy but those named; of several the first by name."""
    cursor.execute(
        "SELECT DISTINCT ON (s.trajectory_id) s.trajectory_id, x.recommendation, x.confidence, x.abstained "
        "FROM trajectories s JOIN trajectories x ON x.decision_id = s.decision_id AND x.agent_type = s.agent_type "
        "AND x.run_id = s.run_id AND x.shadow WHERE s.trajectory_id = ANY(%s) AND x.policy <> ALL(%s) "
        'ORDER BY s.trajectory_id, x.policy COLLATE "C"',
        (list(trajectory_ids), list(not_by)),
    )
    return {identity: Side(call or "hold", confidence, abstained) for identity, call, confidence, abstained in cursor}


def fatal_findings(
    cursor: psycopg.Cursor[Any], chosen: PairFilter, since: datetime | None, until: datetime
) -> FatalTally:
    """Count the pairs decided after `since` (None: any) and by `until`, whatever came of them, and the fatal findings in them."""
    fatal = "EXISTS (SELECT 1 FROM error_findings f WHERE f.trajectory_id = {}.trajectory_id AND f.severity = 'fatal')"
    cursor.execute(
        f"SELECT count(*), count(*) FILTER (WHERE {fatal.format('s')}), count(*) FILTER (WHERE {fatal.format('x')}), "
        f"max(s.as_of) {_PAIRS} AND s.as_of <= %(until)s AND s.as_of > %(since)s",
        {**_parameters(chosen), "since": since or chosen.decided_after, "until": until},
    )
    row = cursor.fetchone()
    assert row is not None
    return FatalTally(*row)


def silent_sessions(cursor: psycopg.Cursor[Any], chosen: PairFilter, until: datetime) -> int:
    """Count the sessions (UTC days) by `until` in which the agent gave an opinion, since the shadow last said anything.

    An abstention of the shadow is an answer, too.
    """
    cursor.execute(
        "SELECT count(DISTINCT (s.as_of AT TIME ZONE 'UTC')::date) FROM trajectories s WHERE s.run_id = %(run_id)s "
        "AND s.agent_type = %(agent_type)s AND NOT s.shadow AND NOT s.abstained AND s.as_of <= %(until)s "
        "AND s.as_of > coalesce((SELECT max(x.as_of) FROM trajectories x WHERE x.run_id = %(run_id)s "
        "AND x.agent_type = %(agent_type)s AND x.shadow AND x.policy = %(shadow)s AND x.as_of > %(decided_after)s "
        "AND x.as_of <= %(until)s), %(decided_after)s)",
        {**_parameters(chosen), "until": until},
    )
    row = cursor.fetchone()
    assert row is not None
    return int(row[0])


def _parameters(chosen: PairFilter) -> dict[str, Any]:
    return {
        "run_id": chosen.run_id,
        "agent_type": chosen.agent_type,
        "serving": chosen.serving,
        "shadow": chosen.shadow,
        "decided_after": chosen.decided_after,
    }
