"""What one writes with psycopg and pgvector alone: the same rows into the same tables, and five ways to search them.

The floor of the library's benchmark. The rows are ready-made parameters, a search is one statement that fetches the
trajectories' columns with the ids, on a session prepared for its method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from pgvector import HalfVector, Vector
from pgvector.psycopg import register_vector

from benchmarks.library_cases import LIMIT, Conditions
from benchmarks.library_data import row_of
from data_pipeline.embeddings import FeatureHashingEmbedder
from data_pipeline.library import similarity, trajectories
from data_pipeline.library.trajectories import CONTENT_COLUMNS, OUTCOME_COLUMNS, Trajectory

MODEL = FeatureHashingEmbedder.model
_JSON = frozenset(("market_state", "agent_inputs", "workflow_trace"))
_COLUMNS = (*CONTENT_COLUMNS, *OUTCOME_COLUMNS)
_SELECTED = ", ".join(f"t.{name}" for name in _COLUMNS)
_EMBEDDING_COLUMNS = (
    "trajectory_id", "embedding_model", "run_id", "agent_type", "symbol", "market_regime", "recommendation", "success",
    "reward", "matured_at", "embedding",
)  # fmt: skip
_FILTER_COLUMNS = ("agent_type", "market_regime", "symbol", "reward", "matured_at", "recommendation")
_MEMORY = "SET maintenance_work_mem = '512MB'"
"""As much as the library takes; a graph that does not fit is built several times slower."""

Rows = list[tuple[Any, ...]]


def parameters(batch: Sequence[Trajectory]) -> tuple[Rows, Rows]:
    """Return the rows of both tables; made before the clock starts."""
    return (
        [trajectories.as_row(item) for item in batch],
        similarity.embedding_rows(batch, MODEL),
    )


def insert_many(connection: psycopg.Connection[Any], rows: Rows, embeddings: Rows) -> None:
    """Write by executemany and commit."""
    columns = (*_COLUMNS, "content_hash")
    values = ", ".join("%s::jsonb" if name in _JSON else "%s" for name in columns)
    with connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO trajectories ({', '.join(columns)}) VALUES ({values})", rows)
        cursor.executemany(
            f"INSERT INTO trajectory_embeddings ({', '.join(_EMBEDDING_COLUMNS)}) "
            f"VALUES ({', '.join(['%s'] * (len(_EMBEDDING_COLUMNS) - 1))}, %b)",
            embeddings,
        )
    connection.commit()


def copy(connection: psycopg.Connection[Any], rows: Rows, embeddings: Rows) -> None:
    """Write by COPY and commit."""
    with connection.cursor() as cursor:
        trajectories.copy_rows(cursor, rows)
        similarity.copy_rows(cursor, embeddings)
    connection.commit()


def prepare_searches(connection: psycopg.Connection[Any], vectors: Sequence[tuple[str, Any]]) -> None:
    """Build what the methods need: an index on each column that filters, a full-precision copy, both HNSW indexes.

    More than the library has: the floor should be the best that raw SQL can do.
    """
    register_vector(connection)
    connection.execute(_MEMORY)
    connection.execute("CREATE TABLE full_vectors (LIKE trajectory_embeddings INCLUDING DEFAULTS)")
    connection.execute("ALTER TABLE full_vectors ALTER embedding TYPE vector(384) USING embedding::vector(384)")
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE given (trajectory_id text, embedding vector(384))")
        with cursor.copy("COPY given FROM STDIN (FORMAT BINARY)") as target:
            target.set_types(("text", "vector"))
            for identity, vector in vectors:
                target.write_row((identity, Vector(vector)))
        others = ", ".join(name for name in _EMBEDDING_COLUMNS[1:-1])
        cursor.execute(
            f"INSERT INTO full_vectors (trajectory_id, {others}, embedding) SELECT trajectory_id, {others}, given.embedding "
            "FROM trajectory_embeddings JOIN given USING (trajectory_id)"
        )
    for table in ("trajectory_embeddings", "full_vectors"):
        for column in _FILTER_COLUMNS:
            connection.execute(f"CREATE INDEX ON {table} ({column})")
    connection.execute("CREATE INDEX ON full_vectors USING hnsw (embedding vector_cosine_ops)")
    build_hnsw(connection)
    connection.commit()
    connection.autocommit = True
    connection.execute("VACUUM ANALYZE")


def build_hnsw(connection: psycopg.Connection[Any]) -> None:
    """Index the half-precision vectors with pgvector's defaults, unless they are."""
    found = connection.execute(
        "SELECT 1 FROM pg_indexes WHERE tablename = 'trajectory_embeddings' AND indexdef LIKE '%USING hnsw%'"
    ).fetchone()
    if found is None:
        connection.execute(_MEMORY)
        connection.execute("CREATE INDEX ON trajectory_embeddings USING hnsw (embedding halfvec_cosine_ops)")


@dataclass(frozen=True)
class Method:
    """One way to search: the settings of its session, its table, and whether the filter comes first."""

    name: str
    settings: tuple[str, ...]
    table: str = "trajectory_embeddings"
    two_steps: bool = False


_EXACT = ("enable_indexscan = off",)  # bitmap scans of the filters' indexes stay; only an index scan can be HNSW's
METHODS = (
    Method("exact, vector", _EXACT, "full_vectors"),
    Method("exact, halfvec", _EXACT),
    Method("HNSW vector, ef 40, iterative off", ("hnsw.ef_search = 40",), "full_vectors"),
    Method("HNSW halfvec, ef 100, relaxed", ("hnsw.ef_search = 100", "hnsw.iterative_scan = relaxed_order")),
    Method("two steps, halfvec", (), two_steps=True),
)


class RawSearch:
    """A session that searches by one method."""

    def __init__(self, url: str, method: Method) -> None:
        self.name = method.name
        self._method = method
        self._wrap = Vector if method.table == "full_vectors" else HalfVector
        self._connection = psycopg.connect(url, autocommit=True)
        register_vector(self._connection)
        for setting in ("plan_cache_mode = force_custom_plan", *method.settings):
            self._connection.execute(f"SET {setting}")

    def search(self, embedding: Sequence[float], conditions: Conditions) -> list[int]:
        """Return the rows found, nearest first; their whole content has been fetched."""
        where, values = conditions.sql()
        vector = self._wrap(np.asarray(embedding, dtype=np.float32))
        table = self._method.table
        if self._method.two_steps:
            source = (
                f"SELECT trajectory_id, embedding FROM {table} WHERE {where}",
                "SELECT trajectory_id, embedding <=> %b AS distance FROM allowed",
            )
            steps = f"WITH allowed AS MATERIALIZED ({source[0]}), nearest AS MATERIALIZED ({source[1]} ORDER BY distance LIMIT {LIMIT})"
            arguments = [*values, vector]
        else:
            steps = (
                f"WITH nearest AS MATERIALIZED (SELECT trajectory_id, embedding <=> %b AS distance FROM {table} "
                f"WHERE {where} ORDER BY embedding <=> %b LIMIT {LIMIT})"
            )
            arguments = [vector, *values, vector]
        found = self._connection.execute(
            f"{steps} SELECT nearest.distance, {_SELECTED} FROM nearest JOIN trajectories t USING (trajectory_id) "
            "ORDER BY nearest.distance",
            arguments,
        ).fetchall()
        return [row_of(row[1]) for row in found]

    def close(self) -> None:
        """Close the session."""
        self._connection.close()
