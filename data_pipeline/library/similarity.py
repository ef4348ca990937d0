"""Search for experiences by likeness: filtered, never across embedding models, never into the future.

How a search is answered is decided in `search_plan`; what it may see is decided here, in one WHERE clause for every
method. Called by the library's facade and by nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import HalfVector

from data_pipeline.library import trajectories
from data_pipeline.library.trajectories import Trajectory

_COLUMNS = (
    "trajectory_id", "embedding_model", "run_id", "agent_type", "symbol", "market_regime", "recommendation", "success",
    "reward", "matured_at", "embedding",
)  # fmt: skip
_TYPES = ("text", "text", "text", "text", "text", "text", "text", "bool", "float8", "timestamptz", "halfvec")
_FILTERS = ", ".join(_COLUMNS[:-1])


def embedding_rows(batch: Sequence[Trajectory], model: str) -> list[tuple[Any, ...]]:
    """Return the rows of trajectories' embeddings, with the copies of the columns that searches filter by.

    One without an embedding has no row, nor has an abstention or a shadow opinion, nor one that is zero in half precision: its similarity to
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
        if not t.abstained and not t.shadow and half.any()
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


@dataclass(frozen=True, slots=True)
class SearchFilter:
    """What an experience must be to be found; None does not restrict.

    Attributes
    ----------
    run_ids : tuple of str
        Runs whose experiences are visible.
    as_of : datetime
        Only what had matured before.
    agent_type, symbol, market_regime, recommendation, success
        Equal to the experience's.
    min_reward : float
        The experience's reward is at least this.
    """

    run_ids: tuple[str, ...]
    as_of: datetime
    agent_type: str | None = None
    symbol: str | None = None
    market_regime: str | None = None
    recommendation: str | None = None
    success: bool | None = None
    min_reward: float | None = None

    def where(self) -> tuple[str, dict[str, Any]]:
        """Return the condition on a row of trajectory_embeddings, and its parameters; the model is the caller's."""
        conditions = ["run_id = ANY(%(run_ids)s)", "matured_at < %(as_of)s"]
        parameters: dict[str, Any] = {"run_ids": list(self.run_ids), "as_of": self.as_of}
        for name in ("agent_type", "symbol", "market_regime", "recommendation", "success"):
            value = getattr(self, name)
            if value is not None:
                conditions.append(f"{name} = %({name})s")
                parameters[name] = value
        if self.min_reward is not None:
            conditions.append("reward >= %(min_reward)s")
            parameters["min_reward"] = self.min_reward
        return " AND ".join(conditions), parameters


class Search:
    """One search on one cursor: the methods that `search_plan` chooses from, each one round trip.

    Parameters
    ----------
    cursor : psycopg.Cursor
    embedding : array of float32, shape (384,)
        The query.
    model : str
        Embedding model of query and experiences.
    filter_by : SearchFilter
    limit : int
    """

    def __init__(
        self,
        cursor: psycopg.Cursor[Any],
        embedding: NDArray[np.float32],
        model: str,
        filter_by: SearchFilter,
        limit: int,
    ) -> None:
        self.cursor = cursor
        self.filter_by = filter_by
        self.limit = limit
        self._where, self._parameters = filter_by.where()
        self._parameters |= {
            "model": model,
            "limit": limit,
            "embedding": HalfVector(embedding),
        }

    def exact(self) -> list[tuple[Trajectory, float]]:
        """Compare the query with every experience that passes the filter.

        Adding zero hides the distance from the vector index, which would filter only after its own approximate choice;
        the server is left to find the rows by the ordinary indexes. Nothing is materialised, which halves the time of the
        usual two-step query.
        """
        return self._fetch(
            f"""
            SELECT trajectory_id, (embedding <=> %(embedding)b) + 0 AS distance FROM trajectory_embeddings
            WHERE embedding_model = %(model)s AND {self._where} ORDER BY distance, trajectory_id LIMIT %(limit)s
            """
        )

    def nearest(self, candidates: int) -> list[tuple[Trajectory, float]]:
        """Take the approximate nearest `candidates` of all, then filter; fewer than `limit` are all that pass."""
        return self._fetch(
            f"SELECT trajectory_id, distance FROM ({self._by_index()} LIMIT %(candidates)s) near WHERE {self._where} "
            "ORDER BY distance, trajectory_id LIMIT %(limit)s",
            candidates=candidates,
        )

    def filtered_scan(self) -> list[tuple[Trajectory, float]]:
        """Walk the vector index outwards until enough experiences pass the filter or its limit of tuples is reached."""
        return self._fetch(
            f"""
            SELECT trajectory_id, distance FROM (
                SELECT trajectory_id, distance FROM ({self._by_index()} OFFSET 0) walk WHERE {self._where} LIMIT %(limit)s
            ) found ORDER BY distance, trajectory_id
            """
        )

    def _by_index(self) -> str:
        """Return the rows of the model in approximate order of distance."""
        return (
            f"SELECT {_FILTERS}, embedding <=> %(embedding)b AS distance FROM trajectory_embeddings "
            "WHERE embedding_model = %(model)s ORDER BY embedding <=> %(embedding)b"
        )

    def _fetch(self, found: str, **parameters: Any) -> list[tuple[Trajectory, float]]:
        """Read the trajectories that a query of (trajectory_id, distance) names, nearest first."""
        self.cursor.execute(
            f"SELECT {trajectories.SELECTED}, f.distance FROM ({found}) f JOIN trajectories t USING (trajectory_id) "
            "ORDER BY f.distance, t.trajectory_id",
            {**self._parameters, **parameters},
        )
        return [(trajectories.from_row(row[:-1]), 1.0 - row[-1]) for row in self.cursor.fetchall()]
