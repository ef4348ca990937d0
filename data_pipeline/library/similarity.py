"""Search for experiences by likeness: exact, filtered first, and never across embedding models or into the future."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import psycopg
from pgvector import HalfVector

from data_pipeline.library import trajectories
from data_pipeline.library.trajectories import Trajectory

_COLUMNS = (
    "trajectory_id", "embedding_model", "run_id", "agent_type", "symbol", "market_regime", "recommendation", "success",
    "reward", "matured_at", "embedding",
)  # fmt: skip
_TYPES = ("text", "text", "text", "text", "text", "text", "text", "bool", "float8", "timestamptz", "halfvec")


def embedding_rows(batch: Sequence[Trajectory], model: str) -> list[tuple[Any, ...]]:
    """Return the rows of trajectories' embeddings, with the copies of the columns that searches filter by.

    One without an embedding has no row, nor has an abstention, nor one that is zero in half precision: its similarity to
    anything is undefined.

    Raises
    ------
    ValueError
        If an embedding has not 384 finite values of half precision.
    """
    given = [t for t in batch if t.embedding is not None]
    if not given:
        return []
    vectors = trajectories.as_vectors([t.embedding for t in given if t.embedding is not None])
    halves = vectors.astype(np.float16)  # once for all: row by row it costs more than writing them
    return [
        (
            t.trajectory_id, model, t.run_id, t.agent_type, t.symbol, t.market_regime, t.recommendation, t.success, t.reward,
            t.matured_at, HalfVector(half),
        )
        for t, half in zip(given, halves, strict=True)
        if not t.abstained and half.any()
    ]  # fmt: skip


def copy_rows(cursor: psycopg.Cursor[Any], rows: Iterable[tuple[Any, ...]]) -> None:
    """Write new rows by binary COPY: a vector's text form would cost more than everything else."""
    with cursor.copy(f"COPY trajectory_embeddings ({', '.join(_COLUMNS)}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(_TYPES)
        for row in rows:
            copy.write_row(row)


def insert_row(cursor: psycopg.Cursor[Any], row: tuple[Any, ...]) -> None:
    """Write one row unless it is there."""
    cursor.execute(
        f"INSERT INTO trajectory_embeddings ({', '.join(_COLUMNS)}) VALUES ({', '.join(['%s'] * len(_COLUMNS))}) "
        "ON CONFLICT DO NOTHING",
        row,
    )


def find(
    cursor: psycopg.Cursor[Any],
    embedding: Sequence[float],
    model: str,
    run_ids: Sequence[str],
    *,
    agent_type: str | None,
    limit: int,
    as_of: datetime,
) -> list[tuple[Trajectory, float]]:
    """Return the nearest matured experiences and their cosine similarity, nearest first.

    The filter is materialised before the distances are computed: an index scan that filters afterwards loses most
    of its recall where the filter and the query's neighbourhood do not overlap.
    """
    agent_filter = "" if agent_type is None else "AND agent_type = %(agent_type)s"
    cursor.execute(
        f"""
        WITH candidates AS MATERIALIZED (
            SELECT trajectory_id, embedding FROM trajectory_embeddings
            WHERE embedding_model = %(model)s AND run_id = ANY(%(run_ids)s) AND matured_at < %(as_of)s {agent_filter}
        )
        SELECT trajectory_id, 1 - (embedding <=> %(embedding)s) AS similarity FROM candidates
        ORDER BY embedding <=> %(embedding)s, trajectory_id LIMIT %(limit)s
        """,
        {
            "model": model, "run_ids": list(run_ids), "as_of": as_of, "agent_type": agent_type, "limit": limit,
            "embedding": HalfVector(np.asarray(embedding, dtype=np.float32)),
        },
    )  # fmt: skip
    similarity = {row[0]: float(row[1]) for row in cursor.fetchall()}
    found = trajectories.select(cursor, "t.trajectory_id = ANY(%s)", [list(similarity)], "t.trajectory_id")
    found.sort(key=lambda t: (-similarity[t.trajectory_id], t.trajectory_id))
    return [(t, similarity[t.trajectory_id]) for t in found]
