"""How many experiences a filter lets through, estimated on a random sample of rows that is kept in memory.

The search planner asks it before each search: a count by the server would cost as much as the search itself, and its own
statistics know nothing of how columns hang together, which a sample does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from data_pipeline.library.similarity import SearchFilter

SAMPLE_ROWS = 5_000
"""A filter that passes 1 % of the rows is then estimated to within a seventh (one standard deviation)."""

_LABELS = ("run_id", "agent_type", "symbol", "market_regime", "recommendation", "success")


class FilterSample:
    """Rows of the search table without their vectors.

    Parameters
    ----------
    total : int
        Experiences of the model.
    rows : sequence of tuple
        run_id, agent_type, symbol, market_regime, recommendation, success, reward, matured_at of the sampled ones.

    Attributes
    ----------
    total : int
        At least 1.
    """

    def __init__(self, total: int, rows: Sequence[tuple[Any, ...]]) -> None:
        self.total = max(1, total)
        self._size = max(1, len(rows))
        self._codes: dict[str, dict[Any, int]] = {name: {} for name in _LABELS}
        self._labels = {name: self._coded(name, [row[place] for row in rows]) for place, name in enumerate(_LABELS)}
        self._reward = np.array([np.nan if row[6] is None else row[6] for row in rows])
        # what has not matured never passes: no time is early enough for it
        self._matured = np.array([np.inf if row[7] is None else row[7].timestamp() for row in rows])

    @classmethod
    def draw(cls, cursor: psycopg.Cursor[Any], model: str) -> FilterSample:
        """Draw a sample of a model's rows: whole blocks at random, which costs little at any size of the table."""
        cursor.execute("SELECT greatest(reltuples, 1) FROM pg_class WHERE oid = 'trajectory_embeddings'::regclass")
        row = cursor.fetchone()
        stored = float(row[0]) if row else 1.0
        share = min(100.0, 100.0 * SAMPLE_ROWS / stored)
        cursor.execute(
            f"SELECT {', '.join(_LABELS)}, reward, matured_at, embedding_model = %s FROM trajectory_embeddings TABLESAMPLE SYSTEM ({share})",
            (model,),
        )
        drawn = cursor.fetchall()
        own = [(row[0].strip(), *row[1:8]) for row in drawn if row[8]]
        return cls(round(stored * len(own) / max(1, len(drawn))), own)

    def estimate(self, filter_by: SearchFilter) -> int:
        """Return about how many of the model's experiences pass a filter."""
        passing = self._matured < filter_by.as_of.timestamp()
        runs = [code for run in filter_by.run_ids if (code := self._codes["run_id"].get(run)) is not None]
        passing &= np.isin(self._labels["run_id"], runs)
        for name in _LABELS[1:]:
            value = getattr(filter_by, name)
            if value is not None:
                passing &= self._labels[name] == self._codes[name].get(value, -2)
        if filter_by.min_reward is not None:
            passing &= self._reward >= filter_by.min_reward
        return round(self.total * int(np.count_nonzero(passing)) / self._size)

    def _coded(self, name: str, values: Sequence[Any]) -> NDArray[np.int32]:
        """Return values as small numbers, -1 for none."""
        codes = self._codes[name]
        return np.array(
            [-1 if value is None else codes.setdefault(value, len(codes)) for value in values], dtype=np.int32
        )
