"""langchain-postgres as its documentation sets it up: `PGVectorStore`, a column for each filter, then an HNSW index.

Runs in its own environment; see frame.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frame import DIMENSION, FIELDS, Batch, main
from langchain_core.embeddings import Embeddings
from langchain_postgres import Column, PGEngine, PGVectorStore
from langchain_postgres.v2.indexes import HNSWIndex

_TABLE = "experiences"
_TYPES = dict.fromkeys(FIELDS, "TEXT") | {
    "success": "INTEGER",
    "reward": "DOUBLE PRECISION",
    "matured": "DOUBLE PRECISION",
}


class _Given(Embeddings):
    """Vectors are given; nothing is ever embedded here."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise NotImplementedError

    def embed_query(self, text: str) -> list[float]:
        raise NotImplementedError


class LangchainPostgres:
    """The store."""

    distributions = ("langchain-postgres", "langchain-core")

    def __init__(self, url: str, folder: Path) -> None:
        self._engine = PGEngine.from_connection_string(url.replace("postgresql://", "postgresql+asyncpg://"))
        self._opened: PGVectorStore | None = None

    @property
    def _store(self) -> PGVectorStore:
        if self._opened is None:
            self._opened = PGVectorStore.create_sync(
                self._engine, _Given(), _TABLE, metadata_columns=list(FIELDS), metadata_json_column=None
            )
        return self._opened

    def create(self) -> None:
        columns = [Column(name, kind) for name, kind in _TYPES.items()]
        self._engine.init_vectorstore_table(_TABLE, DIMENSION, metadata_columns=columns, store_metadata=False)

    def insert(self, batch: Batch) -> None:
        self._store.add_embeddings(batch.texts, batch.vectors, metadatas=batch.metadata, ids=batch.ids)

    def index(self) -> None:
        self._store.apply_vector_index(HNSWIndex())

    def compile(self, triples: Sequence[tuple[str, str, Any]]) -> Any:
        return {"$and": [{name: {f"${operator}": value}} for name, operator, value in triples]}

    def search(self, vector: list[float], condition: Any, limit: int) -> list[str]:
        found = self._store.similarity_search_with_score_by_vector(vector, k=limit, filter=condition)
        return [str(document.id) for document, _ in found]


if __name__ == "__main__":
    main(LangchainPostgres)
