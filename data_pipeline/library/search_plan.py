"""Chooses how a similarity search is answered, so that no filter costs recall.

An approximate index filters after it has chosen: where the filter and the neighbourhood of the query do not overlap it
returns next to nothing. So few matching rows are compared exactly, many are looked up in the index, and in between the
nearest of all say how dense the filter is around the query. Also creates the index once it pays.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg import sql

from data_pipeline.library.filter_sample import FilterSample
from data_pipeline.library.similarity import Search, SearchFilter
from data_pipeline.library.trajectories import Trajectory
from utils.hashing import sha256_hex

Method = Literal["exact", "nearest", "filtered_scan"]

INDEX_ROWS = 10_000
"""Experiences of a model from which on the vector index pays for what it costs each write."""

EXACT_ROWS = 1_500
"""Matching rows up to which comparing all of them is as fast as one look into the index."""

EF_SEARCH = 160
"""Breadth of the index search: graphs of the same rows differ by a hundredth or two of recall, and at 100 and 120 some fall
short of .98."""

CANDIDATES = 100
"""Most of the nearest experiences looked at before a filter."""

_EXACT_ROW_COST = 1.0
_SCAN_TUPLE_COST = 4.0
"""Time of a walked index tuple in units of an exactly compared row (about 2 microseconds), measured at 100,000 rows."""

_SURPLUS = 2.0
"""Candidates looked at, relative to those that would do if the filter let through as many here as expected."""

_SPARSE = 1
"""Fewer passing candidates than this say that the filter lies elsewhere than the query: the index would lose recall."""

_ELSEWHERE = 0.005
"""Density around the queries so far below which the index is not even asked."""

_ASK_AGAIN = 16
"""One in so many searches asks all the same, for queries change."""

_NEWEST_WEIGHT = 0.3
"""Of a measured density in the remembered one, which is an exponentially weighted mean."""

_GROWTH = 1.25
"""Of the remembered density with each answer that was full: the next search may do with fewer candidates."""

_REMEMBERED_S = 60.0
_MOST_FILTERS = 1_000

SESSION_SETTINGS = (
    f"SET hnsw.ef_search = {EF_SEARCH}",
    "SET hnsw.iterative_scan = relaxed_order",
)
"""Of every connection that searches."""


@dataclass(frozen=True, slots=True)
class Found:
    """The answer of a search: experiences with their cosine similarity, nearest first, and the method that gave it."""

    experiences: list[tuple[Trajectory, float]]
    method: Method


@dataclass(slots=True)
class _Density:
    """What share of the nearest experiences has passed a filter, and how often it was asked for."""

    share: float
    searches: int = 0


class SearchPlanner:
    """Answers searches; remembers a sample of the rows for a minute, and how dense filters were around their queries.

    Parameters
    ----------
    model : str
        The embedding model whose experiences are searched.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._guard = threading.Lock()
        self._sample: FilterSample | None = None
        self._sampled_at = -math.inf
        self._densities: dict[Any, _Density] = {}

    def search(self, search: Search, *, exact: bool) -> Found:
        """Answer a search.

        Parameters
        ----------
        exact : bool
            Compare with every matching experience, whatever it costs: a replay must not depend on how an index was built.
        """
        sample = None if exact else self._current_sample(search.cursor)
        if sample is None:
            return Found(search.exact(), "exact")
        rows = sample.estimate(search.filter_by)
        if rows <= EXACT_ROWS:
            return Found(search.exact(), "exact")
        density = self._density(search.filter_by, rows / sample.total)
        if density.share < _ELSEWHERE and density.searches % _ASK_AGAIN:
            return Found(search.exact(), "exact")
        candidates = max(search.limit, min(CANDIDATES, math.ceil(_SURPLUS * search.limit / max(density.share, 1e-9))))
        experiences = self._nearest(search, candidates, density)
        if len(experiences) < search.limit and candidates < CANDIDATES:
            candidates = CANDIDATES
            experiences = self._nearest(search, candidates, density)
        if len(experiences) == search.limit:
            return Found(experiences, "nearest")
        if (passed := len(experiences)) >= _SPARSE:
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
            self._sampled_at = -math.inf
        return True

    def _nearest(self, search: Search, candidates: int, density: _Density) -> list[tuple[Trajectory, float]]:
        """Ask the index and learn from the answer: one that came up short measures the density, a full one may be thinner."""
        experiences = search.nearest(candidates)
        if len(experiences) == search.limit:
            density.share = min(1.0, _GROWTH * density.share)
        else:
            density.share += _NEWEST_WEIGHT * (len(experiences) / candidates - density.share)
        return experiences

    def _density(self, filter_by: SearchFilter, expected: float) -> _Density:
        """Return what is remembered of a filter, at first the share of all rows that pass it; counts the search."""
        key = (
            filter_by.run_ids, filter_by.agent_type, filter_by.symbol, filter_by.market_regime, filter_by.recommendation,
            filter_by.success,
        )  # fmt: skip
        with self._guard:
            if key not in self._densities and len(self._densities) >= _MOST_FILTERS:
                self._densities.clear()
            density = self._densities.setdefault(key, _Density(expected))
            density.searches += 1
        return density

    def _current_sample(self, cursor: psycopg.Cursor[Any]) -> FilterSample | None:
        """Return a sample of at most a minute's age, None where the model has no index."""
        if time.monotonic() - self._sampled_at > _REMEMBERED_S:
            cursor.execute(
                "SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND indisvalid)",
                (index_name(self._model),),
            )
            row = cursor.fetchone()
            sample = FilterSample.draw(cursor, self._model) if row and row[0] else None
            with self._guard:
                self._sample, self._sampled_at = sample, time.monotonic()
        return self._sample


def index_name(model: str) -> str:
    """Return the name of a model's vector index; one graph a model, for their vectors have nothing in common."""
    return f"trajectory_embeddings_hnsw_{sha256_hex(model)[:12]}"
