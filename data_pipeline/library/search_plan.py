"""Chooses how a similarity search is answered, so that no filter costs recall.

An approximate index filters after it has chosen: where the filter and the neighbourhood of the query do not overlap it
returns next to nothing. So few matching rows are compared exactly, many are looked up in the index, and in between the
nearest hundred of all say how dense the filter is around this very query. Also creates the index once it pays.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg import sql

from data_pipeline.library.similarity import Search, SearchFilter
from data_pipeline.library.trajectories import Trajectory
from utils.hashing import sha256_hex

Method = Literal["exact", "nearest", "filtered_scan"]

INDEX_ROWS = 10_000
"""Experiences of a model from which on the vector index pays for what it costs each write."""

EXACT_ROWS = 1_500
"""Matching rows up to which comparing all of them is as fast as one look into the index (2 to 3 ms either way)."""

CANDIDATES = 100
"""Most of the nearest experiences looked at before a filter; also the breadth of the index search (`hnsw.ef_search`)."""

_EXACT_ROW_COST = 1.0
_SCAN_TUPLE_COST = 4.0
"""Time of a walked index tuple in units of an exactly compared row (about 2 microseconds), measured at 100,000 rows."""

_SURPLUS = 2.0
"""Candidates looked at, relative to those that would do if the filter let through as many here as everywhere."""

_SPARSE = 1
"""Fewer passing candidates than this say that the filter lies elsewhere than the query: the index would lose recall."""

_ESTIMATE_S = 60.0
_MOST_ESTIMATES = 1_000

SESSION_SETTINGS = (
    f"SET hnsw.ef_search = {CANDIDATES}",
    "SET hnsw.iterative_scan = relaxed_order",
)
"""Of every connection that searches."""


@dataclass(frozen=True, slots=True)
class Found:
    """The answer of a search: experiences with their cosine similarity, nearest first, and the method that gave it."""

    experiences: list[tuple[Trajectory, float]]
    method: Method


class SearchPlanner:
    """Answers searches; remembers for a minute how many rows a filter lets through.

    Parameters
    ----------
    model : str
        The embedding model whose experiences are searched.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._guard = threading.Lock()
        self._estimates: dict[Any, tuple[tuple[int, int], float]] = {}
        self._indexed: tuple[bool, float] = (False, 0.0)

    def search(self, search: Search, cursor: psycopg.Cursor[Any], filter_by: SearchFilter, *, exact: bool) -> Found:
        """Answer a search.

        Parameters
        ----------
        exact : bool
            Compare with every matching experience, whatever it costs: a replay must not depend on how an index was built.
        """
        if exact or not self._has_index(cursor):
            return Found(search.exact(), "exact")
        rows, total = self._rows(search, filter_by)
        if rows <= EXACT_ROWS:
            return Found(search.exact(), "exact")
        likely = math.ceil(_SURPLUS * search.limit * max(1.0, total / rows))
        candidates = max(search.limit, min(CANDIDATES, likely))
        experiences, passed = search.nearest(candidates)
        if len(experiences) == search.limit:
            return Found(experiences, "nearest")
        if passed >= _SPARSE:
            walked = candidates * search.limit / passed
            if walked * _SCAN_TUPLE_COST < rows * _EXACT_ROW_COST:
                experiences = search.filtered_scan()
                if len(experiences) == search.limit:
                    return Found(experiences, "filtered_scan")
        return Found(search.exact(), "exact")

    def maintain(self, connection: psycopg.Connection[Any]) -> bool:
        """Create the vector index of the model once it pays; return whether it was created now. Writers are not kept out.

        Parameters
        ----------
        connection : psycopg.Connection
            In autocommit mode: the index is built beside running transactions.
        """
        with connection.cursor() as cursor:
            name = index_name(self._model)
            cursor.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", (name,))
            state = cursor.fetchone()
            if state is not None and state[0]:
                return False
            cursor.execute(
                "SELECT count(*) FROM (SELECT 1 FROM trajectory_embeddings WHERE embedding_model = %s LIMIT %s) counted",
                (self._model, INDEX_ROWS),
            )
            counted = cursor.fetchone()
            if counted is None or counted[0] < INDEX_ROWS:
                return False
            if state is not None:  # left behind by a build that was cut off
                cursor.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(name)))
            cursor.execute("SET maintenance_work_mem = '512MB'")
            cursor.execute("SET statement_timeout = 0")
            cursor.execute(
                sql.SQL(
                    "CREATE INDEX CONCURRENTLY {} ON trajectory_embeddings USING hnsw (embedding halfvec_cosine_ops) "
                    "WHERE embedding_model = {}"
                ).format(sql.Identifier(name), sql.Literal(self._model))
            )
            cursor.execute("ANALYZE trajectory_embeddings")
        with self._guard:
            self._estimates.clear()
            self._indexed = (False, 0.0)
        return True

    def _has_index(self, cursor: psycopg.Cursor[Any]) -> bool:
        known, until = self._indexed
        if time.monotonic() >= until:
            cursor.execute(
                "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND indisvalid)",
                (index_name(self._model),),
            )
            row = cursor.fetchone()
            known = bool(row and row[0])
            self._indexed = (known, time.monotonic() + _ESTIMATE_S)
        return known

    def _rows(self, search: Search, filter_by: SearchFilter) -> tuple[int, int]:
        """Return the estimates of the rows that pass the filter and of all rows."""
        key = (
            filter_by.run_ids, filter_by.as_of.date(), filter_by.agent_type, filter_by.symbol, filter_by.market_regime,
            filter_by.recommendation, filter_by.success, filter_by.min_reward,
        )  # fmt: skip
        now = time.monotonic()
        known = self._estimates.get(key)
        if known is not None and now < known[1]:
            return known[0]
        rows = search.estimated_rows()
        with self._guard:
            if len(self._estimates) >= _MOST_ESTIMATES:
                self._estimates.clear()
            self._estimates[key] = (rows, now + _ESTIMATE_S)
        return rows


def index_name(model: str) -> str:
    """Return the name of a model's vector index; one graph a model, for their vectors have nothing in common."""
    return f"trajectory_embeddings_hnsw_{sha256_hex(model)[:12]}"
