"""Judgements of trajectories: grades, and the backlog of what still waits for one."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from data_pipeline.library.trajectories import check_text, json_text
from utils.hashing import canonical_json


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the panel of judges made of one trajectory; scores 0..100, None while it is pending."""

    evaluation_id: uuid.UUID
    trajectory_id: str
    status: str
    final_score: float | None
    confidence: float | None
    agreement: float | None
    effective_votes: float | None
    method: str
    scores: list[dict[str, Any]]
    excluded: list[dict[str, Any]]
    attempts: int = 1
    next_retry_at: datetime | None = None
    cost_usd: float = 0.0


_COLUMNS = (
    "evaluation_id", "trajectory_id", "status", "final_score", "confidence", "agreement", "effective_votes", "method", "scores",
    "excluded", "attempts", "next_retry_at", "cost_usd",
)  # fmt: skip
_NUMBERS = ("final_score", "confidence", "agreement", "effective_votes", "cost_usd")


def check(evaluation: Evaluation, where: str = "") -> None:
    """Raise a ValueError that names the field, after `where`, if an evaluation cannot be stored."""
    for name in _NUMBERS:
        value = getattr(evaluation, name)
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise ValueError(f"{where}{name} must be finite, not {value!r}")
    if evaluation.final_score is not None and not 0 <= evaluation.final_score <= 100:
        raise ValueError(f"{where}final_score must lie in 0..100, not {evaluation.final_score!r}")
    scored = evaluation.final_score is not None
    if (evaluation.status == "ok" and not scored) or (evaluation.status in ("pending", "quarantined") and scored):
        raise ValueError(
            f"{where}final_score belongs to status ok and to no other, not {evaluation.final_score!r} to {evaluation.status}"
        )
    for name in ("trajectory_id", "status", "method"):
        check_text(f"{where}{name}", getattr(evaluation, name))
    for name in ("scores", "excluded"):
        json_text(f"{where}{name}", getattr(evaluation, name))


def store(cursor: psycopg.Cursor[Any], evaluations: Sequence[Evaluation]) -> int:
    """Write evaluations by COPY, and put a later attempt in the place of one that is pending. Returns how many were written.

    Any other that is stored already stays as it is, so that a write that is repeated changes nothing. One writer at a time.
    """
    cursor.execute(
        "SELECT evaluation_id, status, attempts FROM judge_evaluations WHERE evaluation_id = ANY(%s)",
        ([e.evaluation_id for e in evaluations],),
    )
    stored = {row[0]: (row[1], row[2]) for row in cursor}
    new = [e for e in evaluations if e.evaluation_id not in stored]
    with cursor.copy(f"COPY judge_evaluations ({', '.join(_COLUMNS)}) FROM STDIN") as copy:
        for e in new:
            copy.write_row(_row(e))
    again = [e for e in evaluations if e.evaluation_id in stored and _goes_on(stored[e.evaluation_id], e)]
    for e in again:
        cursor.execute(
            f"UPDATE judge_evaluations SET ({', '.join(_COLUMNS)}) = ({', '.join(['%s'] * len(_COLUMNS))}) WHERE evaluation_id = %s",
            (*_row(e), e.evaluation_id),
        )
    return len(new) + len(again)


def _goes_on(stored: tuple[str, int], later: Evaluation) -> bool:
    status, attempts = stored
    return status == "pending" and later.attempts > attempts


def _row(e: Evaluation) -> tuple[Any, ...]:
    return (
        e.evaluation_id, e.trajectory_id, e.status, e.final_score, e.confidence, e.agreement, e.effective_votes, e.method,
        canonical_json(e.scores), canonical_json(e.excluded), e.attempts, e.next_retry_at, e.cost_usd,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Waiting:
    """A stored opinion that no grade exists of, with what the judges are told; `attempts` counts those that failed."""

    trajectory_id: str
    decision_id: str | None
    agent_type: str
    as_of: datetime
    output: Mapping[str, Any]
    market_state: Mapping[str, Any]
    agent_inputs: Mapping[str, Any]
    not_checked: Sequence[str] | None
    attempts: int
    cost_usd: float


_WAITING = (
    "SELECT t.trajectory_id, t.decision_id, t.agent_type, t.as_of, t.workflow_trace->'output', t.market_state, t.agent_inputs, "
    "t.workflow_trace->'not_checked', coalesce(e.attempts, 0), coalesce(e.cost_usd, 0) FROM trajectories t "
)
_OLDEST_FIRST = ' ORDER BY t.as_of, t.symbol COLLATE "C", t.agent_type'


def unjudged(cursor: psycopg.Cursor[Any], run_id: str) -> list[Waiting]:
    """Return the opinions of a run that no judge was asked about, oldest first."""
    cursor.execute(
        _WAITING + "LEFT JOIN judge_evaluations e USING (trajectory_id) "
        "WHERE t.run_id = %s AND NOT t.abstained AND NOT t.shadow AND e.evaluation_id IS NULL" + _OLDEST_FIRST,
        (run_id,),
    )
    return [Waiting(*row) for row in cursor]


def due(cursor: psycopg.Cursor[Any], run_id: str, at: datetime) -> list[Waiting]:
    """Return the opinions of a run whose pending evaluation is to be tried again by `at`, oldest first."""
    cursor.execute(
        _WAITING + "JOIN judge_evaluations e USING (trajectory_id) "
        "WHERE t.run_id = %s AND e.status = 'pending' AND e.next_retry_at <= %s" + _OLDEST_FIRST,
        (run_id, at),
    )
    return [Waiting(*row) for row in cursor]


def colleagues(cursor: psycopg.Cursor[Any], decision_ids: Sequence[str]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Return, for each decision, the stored outputs of the agents that its strategist heard, by agent."""
    cursor.execute(
        "SELECT decision_id, agent_type, workflow_trace->'output' FROM trajectories "
        "WHERE decision_id = ANY(%s) AND agent_type <> 'strategist' AND NOT shadow ORDER BY agent_type",
        (list(decision_ids),),
    )
    heard: dict[str, dict[str, Mapping[str, Any]]] = {}
    for decision_id, agent_type, output in cursor:
        heard.setdefault(decision_id, {})[agent_type] = output
    return heard


def pending(cursor: psycopg.Cursor[Any], run_id: str) -> tuple[int, int, datetime | None]:
    """Return how many evaluations of a run are pending, how many of them were given up, and when the next is due."""
    cursor.execute(
        "SELECT count(*), count(*) FILTER (WHERE e.next_retry_at IS NULL), min(e.next_retry_at) FROM judge_evaluations e "
        "JOIN trajectories t USING (trajectory_id) WHERE t.run_id = %s AND e.status = 'pending'",
        (run_id,),
    )
    row = cursor.fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def labelled(cursor: psycopg.Cursor[Any], run_id: str, before: datetime, limit: int) -> list[tuple[str, float, bool]]:
    """Return (judge id, score 0..100, whether the call came true) of the newest `limit` graded opinions that matured before.

    Newest first; an opinion has one row for each judge that graded it.
    """
    cursor.execute(
        "SELECT s->>'judge_id', (s->>'score')::float8, o.success FROM ("
        " SELECT e.scores, t.success, t.matured_at, t.trajectory_id FROM judge_evaluations e JOIN trajectories t USING (trajectory_id)"
        " WHERE t.run_id = %s AND t.matured_at < %s AND e.status = 'ok' AND t.success IS NOT NULL"
        " ORDER BY t.matured_at DESC, t.trajectory_id LIMIT %s) o, jsonb_array_elements(o.scores) s"
        " ORDER BY o.matured_at DESC, o.trajectory_id",
        (run_id, before, limit),
    )
    return [(row[0], row[1], row[2]) for row in cursor]


def scores(cursor: psycopg.Cursor[Any], trajectory_ids: Sequence[str]) -> dict[str, float]:
    """Return the final score of each trajectory whose judgement is ok."""
    cursor.execute(
        "SELECT trajectory_id, final_score FROM judge_evaluations WHERE status = 'ok' AND trajectory_id = ANY(%s)",
        (list(trajectory_ids),),
    )
    return {row[0]: float(row[1]) for row in cursor}
