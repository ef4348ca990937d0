"""Embeddings that are made after their trajectories were stored: what has none of a model gets one, once.

The facade's `backfill_embeddings` and `embed_stored` call it, for the daemon's stage and for the command line. Each batch
is a transaction of its own, so that a kill loses at most the batch in hand. Nothing in here computes a vector.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from pgvector import HalfVector

from data_pipeline.embeddings import Embedder, Vector
from data_pipeline.library.pool import Connection
from data_pipeline.library.trajectories import has_direction

_NO_DIRECTION = "#no-direction"
"""Ends the model's name in the row of a zero vector: no search compares rows of that name, and none is tried again."""

_MISSING = """
    NOT t.abstained AND NOT t.shadow AND (%(run_ids)s::text[] IS NULL OR t.run_id = ANY(%(run_ids)s)) AND NOT EXISTS (
        SELECT FROM trajectory_embeddings e WHERE e.trajectory_id = t.trajectory_id AND e.embedding_model = ANY(%(models)s)
    )
"""
_STORE = """
    INSERT INTO trajectory_embeddings (trajectory_id, embedding_model, run_id, agent_type, symbol, market_regime,
        recommendation, success, reward, matured_at, embedding)
    SELECT t.trajectory_id, %s, t.run_id, t.agent_type, t.symbol, t.market_regime, t.recommendation, t.success, t.reward,
        t.matured_at, %s
    FROM trajectories t WHERE t.trajectory_id = %s FOR SHARE
    ON CONFLICT DO NOTHING
"""
"""The lock keeps an outcome from being written between the reading of its columns here and this commit: it would be
mirrored into no row."""


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """How far a back-fill is: trajectories done and to do, and how many were done a second so far."""

    done: int
    total: int
    rows_per_s: float


OnProgress = Callable[[BackfillProgress], None]


def run(
    connection: Connection,
    embedder: Embedder,
    run_ids: Sequence[str] | None,
    batch: int,
    on_progress: OnProgress | None,
    stop: Callable[[], bool],
) -> int:
    """Embed what has no embedding of the embedder's model, in batches that are committed one by one; return how many.

    Parameters
    ----------
    run_ids : sequence of str or None
        Whose trajectories; None: of every run.
    """
    done, total = 0, _count_missing(connection, embedder.model, run_ids)
    started = time.perf_counter()

    def tell() -> None:
        if on_progress is not None:
            elapsed = max(time.perf_counter() - started, 1e-9)
            on_progress(BackfillProgress(done, max(total, done), done / elapsed))

    tell()
    for identities in _missing(connection, embedder.model, run_ids, batch):
        if stop():
            break
        states = _states(connection, identities)
        embed(connection, embedder, states)
        done += len(states)
        tell()
    return done


def embed(connection: Connection, embedder: Embedder, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Embed and commit one batch of stored trajectories, given by their states; what has a vector keeps it."""
    identities = sorted(states)
    vectors = embedder.embed_many([states[identity] for identity in identities])
    with connection.cursor() as cursor:
        store(cursor, embedder.model, identities, vectors)
    connection.commit()


def store(cursor: psycopg.Cursor[Any], model: str, trajectory_ids: Sequence[str], vectors: Vector) -> None:
    """Write the vectors of stored trajectories; one that is there stays, one of a trajectory that is gone is dropped."""
    cursor.executemany(
        _STORE,
        [
            (
                model if has_direction(vector) else model + _NO_DIRECTION,
                HalfVector(np.asarray(vector, np.float32)),
                identity,
            )
            for identity, vector in zip(trajectory_ids, vectors, strict=True)
        ],
    )


def _count_missing(connection: Connection, model: str, run_ids: Sequence[str] | None) -> int:
    row = connection.execute(f"SELECT count(*) FROM trajectories t WHERE {_MISSING}", _scope(model, run_ids)).fetchone()
    return int(row[0]) if row else 0


def _missing(connection: Connection, model: str, run_ids: Sequence[str] | None, batch: int) -> Iterator[list[str]]:
    """Yield the identities of trajectories without an embedding, oldest decision first, in batches.

    Read once, from a cursor on the server that outlives its transaction: what is stored meanwhile is not among them,
    and hours of embedding hold no old snapshot, which would keep the server from vacuuming.
    """
    with connection.cursor("missing_embeddings", withhold=True) as cursor:
        cursor.execute(
            f"SELECT t.trajectory_id FROM trajectories t WHERE {_MISSING} "
            'ORDER BY t.as_of, t.trajectory_id COLLATE "C"',
            _scope(model, run_ids),
        )
        connection.commit()
        while rows := cursor.fetchmany(batch):
            connection.commit()
            yield [row[0] for row in rows]


def _states(connection: Connection, trajectory_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    rows = connection.execute(
        "SELECT trajectory_id, market_state FROM trajectories WHERE trajectory_id = ANY(%s)", (list(trajectory_ids),)
    ).fetchall()
    connection.commit()  # embedding takes its time, and a transaction that waits for it holds up others
    return dict(rows)


def _scope(model: str, run_ids: Sequence[str] | None) -> dict[str, Any]:
    return {"run_ids": None if run_ids is None else list(run_ids), "models": [model, model + _NO_DIRECTION]}
