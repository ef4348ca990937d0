"""The automated pipelines: when to train, on what, and what becomes of the result."""
