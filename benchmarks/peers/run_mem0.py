"""mem0's pgvector store by itself, with the HNSW index that it has by default; no model is asked anything.

Runs in its own environment; see frame.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["MEM0_TELEMETRY"] = "False"

from frame import DIMENSION, Batch, main
from mem0.configs.vector_stores.pgvector import PGVectorConfig
from mem0.vector_stores.pgvector import PGVector


class Mem0:
    """The store; it makes its index before the rows come."""

    distributions = ("mem0ai",)

    def __init__(self, url: str, folder: Path) -> None:
        options = PGVectorConfig(
            connection_string=url, collection_name="experiences", embedding_model_dims=DIMENSION
        ).model_dump()
        self._store = PGVector(**options)

    def create(self) -> None:
        """The first insert makes the table."""

    def insert(self, batch: Batch) -> None:
        payloads = [{"data": text, **metadata} for text, metadata in zip(batch.texts, batch.metadata, strict=True)]
        self._store.insert(batch.vectors, payloads=payloads, ids=batch.ids)

    def index(self) -> None:
        """Nothing is left to do."""

    def compile(self, triples: Sequence[tuple[str, str, Any]]) -> Any:
        return {name: value if operator == "eq" else {operator: value} for name, operator, value in triples}

    def search(self, vector: list[float], condition: Any, limit: int) -> list[str]:
        return [str(found.id) for found in self._store.search("", vector, top_k=limit, filters=condition)]


if __name__ == "__main__":
    main(Mem0)
