-- Version 3: every filter of the similarity search has an index that leads with it.
CREATE INDEX IF NOT EXISTS trajectory_embeddings_regime ON trajectory_embeddings (embedding_model, market_regime, agent_type);
CREATE INDEX IF NOT EXISTS trajectory_embeddings_symbol ON trajectory_embeddings (embedding_model, symbol, agent_type);
CREATE INDEX IF NOT EXISTS trajectory_embeddings_recommendation
    ON trajectory_embeddings (embedding_model, recommendation, success);
CREATE INDEX IF NOT EXISTS trajectory_embeddings_reward ON trajectory_embeddings (embedding_model, reward);
ANALYZE trajectory_embeddings;
INSERT INTO schema_migrations (version, name) VALUES (3, 'search_filters') ON CONFLICT DO NOTHING;
