"""Market data in, experiences kept: feeds, as-of store, features, embeddings, the experience library."""
