"""llama-index as its documentation sets it up: `PGVectorStore` with the HNSW parameters that the page gives.

Runs in its own environment; see frame.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frame import DIMENSION, Batch, main
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters, VectorStoreQuery
from llama_index.vector_stores.postgres import PGVectorStore

_OPERATORS = {"eq": FilterOperator.EQ, "gte": FilterOperator.GTE, "lt": FilterOperator.LT}


class LlamaIndex:
    """The store; it makes its index before the rows come."""

    distributions = ("llama-index-vector-stores-postgres", "llama-index-core")

    def __init__(self, url: str, folder: Path) -> None:
        self._store = PGVectorStore.from_params(
            connection_string=url.replace("postgresql://", "postgresql+psycopg2://"),
            async_connection_string=url.replace("postgresql://", "postgresql+asyncpg://"),
            table_name="experiences",
            embed_dim=DIMENSION,
            hnsw_kwargs={
                "hnsw_m": 16,
                "hnsw_ef_construction": 64,
                "hnsw_ef_search": 40,
                "hnsw_dist_method": "vector_cosine_ops",
            },
        )

    def create(self) -> None:
        self._store.query(VectorStoreQuery(query_embedding=[1.0] * DIMENSION, similarity_top_k=1))

    def insert(self, batch: Batch) -> None:
        self._store.add(
            [
                TextNode(id_=identity, text=text, metadata=metadata, embedding=vector)
                for identity, text, metadata, vector in zip(
                    batch.ids, batch.texts, batch.metadata, batch.vectors, strict=True
                )
            ]
        )

    def index(self) -> None:
        """Nothing is left to do."""

    def compile(self, triples: Sequence[tuple[str, str, Any]]) -> Any:
        return MetadataFilters(
            filters=[
                MetadataFilter(key=name, value=value, operator=_OPERATORS[operator])
                for name, operator, value in triples
            ]
        )

    def search(self, vector: list[float], condition: Any, limit: int) -> list[str]:
        query = VectorStoreQuery(query_embedding=vector, similarity_top_k=limit, filters=condition)
        return list(self._store.query(query).ids or ())


if __name__ == "__main__":
    main(LlamaIndex)
