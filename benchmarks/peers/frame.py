"""The frame of every peer's script: reads the rows and searches from a folder, keeps time, writes what it found.

Runs in the peer's environment as ``run_<peer>.py load|search FOLDER`` with the database's URL in ``BENCH_DATABASE_URL``;
knows only numpy and the standard library.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

BATCH = 500
DIMENSION = 384
WARM_UP = 3
FILTER_S = 15.0
"""A peer that compares every row under a filter would take hours for all queries: after so long a filter ends early."""
FEWEST = 20
"""Queries that every filter gets, however long they take."""
FIELDS = ("agent_type", "market_regime", "symbol", "recommendation", "success", "reward", "matured")
"""The metadata of each row; success is 0 or 1, matured epoch seconds."""


@dataclass(frozen=True)
class Batch:
    """Rows to store: identities (UUIDs made of row numbers), texts, metadata and vectors."""

    ids: list[str]
    texts: list[str]
    metadata: list[dict[str, Any]]
    vectors: list[list[float]]


class Store(Protocol):
    """What a peer's script provides."""

    distributions: Sequence[str]

    def create(self) -> None:
        """Make the table or collection."""

    def insert(self, batch: Batch) -> None:
        """Store a batch durably."""

    def index(self) -> None:
        """Index what is stored, if that is a step of its own."""

    def compile(self, triples: Sequence[tuple[str, str, Any]]) -> Any:
        """Return the peer's form of a filter given as (field, eq|gte|lt, value)."""

    def search(self, vector: list[float], condition: Any, limit: int) -> list[str]:
        """Return the identities of the nearest, whose texts and metadata have been fetched."""


def main(make: Callable[[str, Path], Store]) -> None:
    """Run the stage that the command line names."""
    stage, folder = sys.argv[1], Path(sys.argv[2])
    store = make(os.environ["BENCH_DATABASE_URL"], folder)
    result = _load(store, folder) if stage == "load" else _search(store, folder)
    result["versions"] = {name: version(name) for name in store.distributions}
    (folder / "result.json").write_text(json.dumps(result))


def _load(store: Store, folder: Path) -> dict[str, Any]:
    store.create()
    spent = 0.0
    rows = 0
    for batch in _batches(folder):
        began = time.perf_counter()
        store.insert(batch)
        spent += time.perf_counter() - began
        rows += len(batch.ids)
    began = time.perf_counter()
    store.index()
    return {"rows": rows, "insert_s": spent, "index_s": time.perf_counter() - began}


def _search(store: Store, folder: Path) -> dict[str, Any]:
    plan = json.loads((folder / "plan.json").read_text())
    queries = [[float(value) for value in vector] for vector in np.load(folder / "queries.npy")]
    answers: dict[str, Any] = {}
    for case in plan["cases"]:
        times: list[float] = []
        found: list[list[int]] = []
        started = time.perf_counter()
        for query in range(-WARM_UP, len(queries)):
            if query >= FEWEST and time.perf_counter() - started > FILTER_S:
                break
            triples = case["conditions"][query % len(queries)]
            began = time.perf_counter()
            ids = store.search(queries[query], store.compile(triples) if triples else None, plan["limit"])
            elapsed = time.perf_counter() - began
            if query >= 0:
                times.append(elapsed * 1e3)
                found.append([uuid.UUID(str(identity)).int for identity in ids])
        answers[case["name"]] = {"ms": times, "rows": found}
    return {"answers": answers}


def _batches(folder: Path) -> Iterator[Batch]:
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    with (folder / "rows.jsonl").open(encoding="utf-8") as lines:
        for start in range(0, len(vectors), BATCH):
            part = vectors[start : start + BATCH]
            rows = [json.loads(next(lines)) for _ in part]
            yield Batch(
                [str(uuid.UUID(int=start + place)) for place in range(len(part))],
                [row["text"] for row in rows],
                [row["metadata"] for row in rows],
                [[float(value) for value in vector] for vector in part],
            )
