"""The record of training runs and datasets in the database: what was started, on what, how it ended."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import psycopg

from data_pipeline.library import lineage
from data_pipeline.library.trajectories import json_value


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One row of training_runs; times are of the Clock, virtual in a replay."""

    training_run_id: uuid.UUID
    run_id: str
    agent_type: str
    kind: str
    state: str
    trigger: dict[str, Any]
    metrics: dict[str, Any] | None
    data_cutoff: datetime | None
    dataset_id: str | None
    error: str | None
    started_at: datetime
    ended_at: datetime | None


_COLUMNS = "training_run_id, run_id, agent_type, kind, state, trigger, metrics, data_cutoff, dataset_id, error, started_at, ended_at"


def start(
    cursor: psycopg.Cursor[Any],
    training_run_id: uuid.UUID,
    run_id: str,
    agent_type: str,
    kind: str,
    *,
    trigger: Mapping[str, Any],
    config: Mapping[str, Any],
    data_cutoff: datetime,
    dataset_id: str,
    started_at: datetime,
) -> None:
    """Record that a run begins; one that was interrupted begins again under its identity.

    What it is trained with and on is then that of the new attempt, since its child resumes no checkpoint of other parameters
    or data. The trigger stays: it says why the run began at all.
    """
    cursor.execute(
        "INSERT INTO training_runs (training_run_id, run_id, agent_type, kind, state, trigger, config, data_cutoff, dataset_id, started_at) "
        "VALUES (%s, %s, %s, %s, 'running', %s, %s, %s, %s, %s) "
        "ON CONFLICT (training_run_id) DO UPDATE SET state = 'running', error = NULL, config = excluded.config, "
        "data_cutoff = excluded.data_cutoff, dataset_id = excluded.dataset_id, "
        "trigger = coalesce(training_runs.trigger, excluded.trigger)",
        (
            training_run_id,
            run_id,
            agent_type,
            kind,
            json_value(trigger),
            json_value(config),
            data_cutoff,
            dataset_id,
            started_at,
        ),
    )


def end(
    cursor: psycopg.Cursor[Any],
    training_run_id: uuid.UUID,
    state: str,
    ended_at: datetime,
    *,
    metrics: Mapping[str, Any] | None = None,
    checkpoint: str | None = None,
    error: str | None = None,
) -> None:
    """Record how a run ended: completed, failed or blocked."""
    cursor.execute(
        "UPDATE training_runs SET state = %s, ended_at = %s, metrics = %s, checkpoint = %s, error = %s WHERE training_run_id = %s",
        (state, ended_at, None if metrics is None else json_value(metrics), checkpoint, error, training_run_id),
    )


def record_failure(
    cursor: psycopg.Cursor[Any],
    training_run_id: uuid.UUID,
    run_id: str,
    agent_type: str,
    kind: str,
    at: datetime,
    error: str,
    state: Literal["failed", "blocked"] = "failed",
) -> None:
    """Record a run that failed or was blocked, also before it was recorded as begun: retries wait by what is recorded."""
    cursor.execute(
        "INSERT INTO training_runs (training_run_id, run_id, agent_type, kind, state, started_at, ended_at, error) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (training_run_id) "
        "DO UPDATE SET state = excluded.state, ended_at = excluded.ended_at, error = excluded.error",
        (training_run_id, run_id, agent_type, kind, state, at, at, error),
    )


def register_dataset(
    cursor: psycopg.Cursor[Any],
    dataset_id: str,
    kind: str,
    agent_type: str,
    path: Path,
    rows: int,
    span: tuple[datetime | None, datetime | None],
    query: Mapping[str, Any],
    trajectory_ids: Sequence[str],
) -> None:
    """Record an immutable dataset and the experiences it holds; the same content again changes nothing.

    Parameters
    ----------
    trajectory_ids : sequence of str
        Of every row. Fewer than `rows`: the dataset protects whatever its agent had decided until its end.

    Raises
    ------
    LibraryConflict
        If one of the experiences is no longer in the library.
    """
    cursor.execute(
        "INSERT INTO datasets (dataset_id, kind, agent_type, path, rows, from_at, to_at, query) VALUES (%s, %s, %s, %s, %s, %s, %s, %s) "
        "ON CONFLICT (dataset_id) DO NOTHING",
        (dataset_id, kind, agent_type, str(path), rows, *span, json_value(query)),
    )
    lineage.record(cursor, dataset_id, trajectory_ids)


def of_run(
    cursor: psycopg.Cursor[Any], run_id: str, agent_type: str | None = None, kind: str | None = None
) -> list[TrainingRun]:
    """Return the training runs of a run, newest first."""
    cursor.execute(
        f"SELECT {_COLUMNS} FROM training_runs WHERE run_id = %s AND (%s::text IS NULL OR agent_type = %s) "
        "AND (%s::text IS NULL OR kind = %s) ORDER BY started_at DESC, training_run_id",
        (run_id, agent_type, agent_type, kind, kind),
    )
    return [TrainingRun(row[0], row[1].strip(), *row[2:]) for row in cursor]


def data_cutoffs(cursor: psycopg.Cursor[Any], training_run_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, datetime]:
    """Return until when each training run has seen outcomes; a run that failed before it began has none."""
    cursor.execute(
        "SELECT training_run_id, data_cutoff FROM training_runs WHERE training_run_id = ANY(%s) "
        "AND data_cutoff IS NOT NULL",
        (list(training_run_ids),),
    )
    return dict(cursor.fetchall())
