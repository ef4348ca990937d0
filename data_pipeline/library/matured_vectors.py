"""Matured experiences of a run with their vectors, read once and kept as arrays, for whoever measures what retrieval is worth.

Called by `evaluation.retrieval_quality`. Reads abstentions, shadows and pending trajectories never: nothing came of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.library.pool import Connection

_PAGE = 2_000
_FIELDS = "decision_id symbol market_regime recommendation".split()


@dataclass(frozen=True, slots=True)
class VectorSet:
    """One model's vectors of one run: how many experiences it covers, and until when."""

    run_id: str
    model: str
    experiences: int


@dataclass(frozen=True, slots=True)
class MaturedVectors:
    """The matured experiences of one agent in one run, oldest decision first.

    Attributes
    ----------
    vectors : array of shape (n, 384)
        float32, of length 1.
    as_of, matured_at : array of shape (n,)
        Unix epoch seconds.
    decision_id, symbol, market_regime, recommendation : array of shape (n,)
        Text, empty where there is none.
    success : array of shape (n,)
        bool.
    horizon : str or None
        As the newest of them states it, for example 5d.
    """

    vectors: NDArray[np.float32]
    as_of: NDArray[np.float64]
    matured_at: NDArray[np.float64]
    decision_id: NDArray[np.str_]
    symbol: NDArray[np.str_]
    market_regime: NDArray[np.str_]
    recommendation: NDArray[np.str_]
    success: NDArray[np.bool_]
    horizon: str | None


def available(connection: Connection, run_id: str | None = None) -> list[VectorSet]:
    """Return what there is to measure, the newest run first, within it the model with the most vectors."""
    rows = connection.execute(
        "SELECT e.run_id, e.embedding_model, count(*) FROM trajectory_embeddings e JOIN runs r USING (run_id) "
        "WHERE e.matured_at IS NOT NULL AND (%(run)s::text IS NULL OR e.run_id = %(run)s) "
        "GROUP BY 1, 2, r.started_at ORDER BY r.started_at DESC, 3 DESC, 2",
        {"run": run_id},
    ).fetchall()
    return [VectorSet(row[0].strip(), row[1], row[2]) for row in rows]


def read(connection: Connection, run_id: str, model: str) -> Iterator[tuple[str, MaturedVectors]]:
    """Yield the experiences of each agent that has any, by name."""
    agents = connection.execute(
        "SELECT DISTINCT agent_type FROM trajectory_embeddings WHERE run_id = %s AND embedding_model = %s "
        "AND matured_at IS NOT NULL ORDER BY 1",
        (run_id, model),
    ).fetchall()
    for (agent_type,) in agents:
        found = _read_agent(connection, run_id, model, agent_type)
        if len(found.success):
            yield agent_type, found


def _read_agent(connection: Connection, run_id: str, model: str, agent_type: str) -> MaturedVectors:
    columns: dict[str, list[Any]] = {name: [] for name in (*_FIELDS, "as_of", "matured_at", "success", "embedding")}
    horizon: str | None = None
    with connection.cursor("matured_vectors") as cursor:
        cursor.itersize = _PAGE
        cursor.execute(
            f"SELECT {', '.join(f't.{name}' for name in _FIELDS)}, extract(epoch FROM t.as_of)::float8, "
            "extract(epoch FROM t.matured_at)::float8, t.success, e.embedding, t.horizon "
            "FROM trajectories t JOIN trajectory_embeddings e USING (trajectory_id) "
            "WHERE t.run_id = %s AND e.embedding_model = %s AND t.agent_type = %s AND t.matured_at IS NOT NULL "
            "AND t.success IS NOT NULL AND NOT t.abstained AND NOT t.shadow "
            'ORDER BY t.as_of, t.trajectory_id COLLATE "C"',
            (run_id, model, agent_type),
        )
        for *values, vector, horizon in cursor:  # noqa: B007 - the newest one counts
            for name, value in zip(columns, (*values, vector.to_numpy().astype(np.float32)), strict=True):
                columns[name].append(value)
    texts = {name: np.array([value or "" for value in columns[name]], dtype=np.str_) for name in _FIELDS}
    return MaturedVectors(
        vectors=_unit(np.array(columns["embedding"], dtype=np.float32).reshape(len(columns["success"]), -1)),
        as_of=np.array(columns["as_of"], dtype=np.float64),
        matured_at=np.array(columns["matured_at"], dtype=np.float64),
        success=np.array(columns["success"], dtype=np.bool_),
        horizon=horizon,
        **texts,
    )


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors of length 1: half precision has shortened or stretched them a little."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)
