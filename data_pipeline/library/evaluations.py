"""Judgements of trajectories: grades, and the backlog of what still waits for one."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
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
    for name in ("trajectory_id", "status", "method"):
        check_text(f"{where}{name}", getattr(evaluation, name))
    for name in ("scores", "excluded"):
        json_text(f"{where}{name}", getattr(evaluation, name))


def store(cursor: psycopg.Cursor[Any], evaluations: Sequence[Evaluation]) -> int:
    """Write evaluations by COPY; one that is stored already stays as it is. One writer at a time. Returns how many are new."""
    cursor.execute(
        "SELECT evaluation_id FROM judge_evaluations WHERE evaluation_id = ANY(%s)",
        ([e.evaluation_id for e in evaluations],),
    )
    stored = {row[0] for row in cursor}
    new = [e for e in evaluations if e.evaluation_id not in stored]
    with cursor.copy(f"COPY judge_evaluations ({', '.join(_COLUMNS)}) FROM STDIN") as copy:
        for e in new:
            copy.write_row(
                (
                    e.evaluation_id, e.trajectory_id, e.status, e.final_score, e.confidence, e.agreement, e.effective_votes, e.method,
                    canonical_json(e.scores), canonical_json(e.excluded), e.attempts, e.next_retry_at, e.cost_usd,
                )
            )  # fmt: skip
    return len(new)


def unjudged(cursor: psycopg.Cursor[Any], run_id: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (trajectory_id, agent type, workflow trace) of opinions without an evaluation, oldest first."""
    cursor.execute(
        "SELECT t.trajectory_id, t.agent_type, t.workflow_trace FROM trajectories t WHERE t.run_id = %s AND NOT t.abstained AND NOT EXISTS "
        "(SELECT 1 FROM judge_evaluations e WHERE e.trajectory_id = t.trajectory_id) ORDER BY t.as_of, t.trajectory_id",
        (run_id,),
    )
    return [(row[0], row[1], row[2]) for row in cursor]


def scores(cursor: psycopg.Cursor[Any], trajectory_ids: Sequence[str]) -> dict[str, float]:
    """Return the final score of each trajectory whose judgement is ok."""
    cursor.execute(
        "SELECT trajectory_id, final_score FROM judge_evaluations WHERE status = 'ok' AND trajectory_id = ANY(%s)",
        (list(trajectory_ids),),
    )
    return {row[0]: float(row[1]) for row in cursor}
