"""chromadb with a persistent client, cosine space, everything else at its defaults; it keeps its own files.

Runs in its own environment; see frame.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chromadb
from chromadb.config import Settings
from frame import Batch, main


class Chroma:
    """The store; it indexes while it inserts."""

    distributions = ("chromadb",)

    def __init__(self, url: str, folder: Path) -> None:
        client = chromadb.PersistentClient(str(folder / "chroma"), settings=Settings(anonymized_telemetry=False))
        self._collection = client.get_or_create_collection(
            "experiences", embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )

    def create(self) -> None:
        """The collection exists since the start."""

    def insert(self, batch: Batch) -> None:
        self._collection.add(ids=batch.ids, embeddings=batch.vectors, documents=batch.texts, metadatas=batch.metadata)

    def index(self) -> None:
        """Nothing is left to do."""

    def compile(self, triples: Sequence[tuple[str, str, Any]]) -> Any:
        terms = [{name: {f"${operator}": value}} for name, operator, value in triples]
        return terms[0] if len(terms) == 1 else {"$and": terms}

    def search(self, vector: list[float], condition: Any, limit: int) -> list[str]:
        found = self._collection.query(query_embeddings=[vector], n_results=limit, where=condition)
        return list(found["ids"][0])


if __name__ == "__main__":
    main(Chroma)
