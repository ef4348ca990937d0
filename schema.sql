-- The database schema. Generated from data_pipeline/library/migrations; safe to run again.
-- Version 1: runs, experiences, judgements, portfolio log, training, registry. Every statement may be run again.
CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE IF NOT EXISTS schema_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS runs (
    run_id char(32) PRIMARY KEY,
    mode text NOT NULL CHECK (mode IN ('live', 'replay', 'simulated')),
    config jsonb NOT NULL DEFAULT '{}',
    data_hashes jsonb NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO runs (run_id, mode) VALUES ('adhoc', 'live') ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS trajectories (
    trajectory_id varchar(64) PRIMARY KEY,
    run_id char(32) NOT NULL DEFAULT 'adhoc' REFERENCES runs,
    decision_id varchar(64),
    timestamp double precision NOT NULL CHECK (timestamp > '-Infinity' AND timestamp < 'Infinity'),
    as_of timestamptz NOT NULL,
    symbol varchar(20) NOT NULL,
    agent_type varchar(50) NOT NULL,
    recommendation varchar(50),
    market_regime varchar(50),
    market_state jsonb NOT NULL,
    agent_inputs jsonb NOT NULL,
    reasoning text NOT NULL,
    confidence real NOT NULL CHECK (confidence >= 0 AND confidence <= 1),
    abstained boolean NOT NULL DEFAULT false,
    shadow boolean NOT NULL DEFAULT false,
    position_size double precision,
    stop_loss double precision CHECK (stop_loss > 0 AND stop_loss < 'Infinity'),
    take_profit double precision CHECK (take_profit > 0 AND take_profit < 'Infinity'),
    policy text,
    evidence_hash char(64),
    content_hash char(64) NOT NULL,
    workflow_trace jsonb,
    similar_ids text[],
    actual_return double precision CHECK (actual_return > '-Infinity' AND actual_return < 'Infinity'),
    reward double precision CHECK (reward > '-Infinity' AND reward < 'Infinity'),
    benchmark_return double precision,
    max_drawdown double precision,
    costs double precision,
    success boolean,
    horizon text,
    matured_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((actual_return IS NULL) = (matured_at IS NULL))
);
-- out of line as it is: compressing it costs more than all of the row's indexes, and an outcome need not write it again
ALTER TABLE trajectories ALTER workflow_trace SET STORAGE EXTERNAL;
CREATE INDEX IF NOT EXISTS trajectories_symbol ON trajectories (symbol);
CREATE INDEX IF NOT EXISTS trajectories_agent_type ON trajectories (agent_type);
CREATE INDEX IF NOT EXISTS trajectories_success ON trajectories (success);
CREATE INDEX IF NOT EXISTS trajectories_market_regime ON trajectories (market_regime);
CREATE INDEX IF NOT EXISTS trajectories_decision_id ON trajectories (decision_id);
CREATE INDEX IF NOT EXISTS trajectories_agent_matured ON trajectories (agent_type, matured_at);

CREATE OR REPLACE FUNCTION trajectories_default_as_of() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.as_of := to_timestamp(NEW.timestamp);
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER trajectories_as_of BEFORE INSERT ON trajectories
    FOR EACH ROW WHEN (NEW.as_of IS NULL) EXECUTE FUNCTION trajectories_default_as_of();

CREATE TABLE IF NOT EXISTS trajectory_embeddings (
    trajectory_id varchar(64) NOT NULL REFERENCES trajectories,
    embedding_model text NOT NULL,
    run_id char(32) NOT NULL, -- the trajectory's, which is checked there
    agent_type varchar(50) NOT NULL,
    symbol varchar(20) NOT NULL,
    market_regime varchar(50),
    recommendation varchar(50),
    success boolean,
    reward double precision,
    matured_at timestamptz,
    embedding halfvec(384) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (trajectory_id, embedding_model)
);
CREATE INDEX IF NOT EXISTS trajectory_embeddings_filters
    ON trajectory_embeddings (embedding_model, agent_type, matured_at);

CREATE TABLE IF NOT EXISTS judge_evaluations (
    evaluation_id uuid PRIMARY KEY,
    trajectory_id varchar(64) NOT NULL REFERENCES trajectories,
    status text NOT NULL CHECK (status IN ('ok', 'pending', 'quarantined')),
    final_score real CHECK (final_score >= 0 AND final_score <= 100),
    confidence real,
    agreement real,
    effective_votes real,
    method text,
    scores jsonb NOT NULL,
    excluded jsonb NOT NULL,
    attempts integer NOT NULL DEFAULT 1,
    next_retry_at timestamptz,
    cost_usd double precision NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS judge_evaluations_queue ON judge_evaluations (status, next_retry_at);
CREATE INDEX IF NOT EXISTS judge_evaluations_trajectory ON judge_evaluations (trajectory_id);

CREATE TABLE IF NOT EXISTS error_findings (
    id bigserial PRIMARY KEY,
    trajectory_id varchar(64) NOT NULL REFERENCES trajectories,
    category text NOT NULL,
    severity text NOT NULL,
    sub_code text,
    pointer text,
    description text,
    suggested_fix text,
    detector text,
    evidence jsonb,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS error_findings_trajectory ON error_findings (trajectory_id);
CREATE INDEX IF NOT EXISTS error_findings_category ON error_findings (category, severity);

CREATE TABLE IF NOT EXISTS pairwise_comparisons (
    id uuid PRIMARY KEY,
    a jsonb NOT NULL,
    b jsonb NOT NULL,
    criteria jsonb,
    verdict text,
    verdict_ab text,
    verdict_ba text,
    judge text,
    margin real,
    temperature_a real,
    temperature_b real,
    as_of timestamptz,
    matured_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS pairwise_comparisons_as_of ON pairwise_comparisons (as_of);

CREATE TABLE IF NOT EXISTS bars (
    symbol varchar(20) NOT NULL,
    bar_interval text NOT NULL,
    event_time timestamptz NOT NULL,
    available_at timestamptz NOT NULL,
    open double precision NOT NULL CHECK (open > 0 AND open < 'Infinity'),
    high double precision NOT NULL CHECK (high > 0 AND high < 'Infinity'),
    low double precision NOT NULL CHECK (low > 0 AND low < 'Infinity'),
    close double precision NOT NULL CHECK (close > 0 AND close < 'Infinity'),
    volume double precision NOT NULL CHECK (volume >= 0 AND volume < 'Infinity'),
    source text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (symbol, bar_interval, event_time, source)
);

CREATE TABLE IF NOT EXISTS portfolio_events (
    seq bigserial PRIMARY KEY,
    event_id uuid NOT NULL UNIQUE,
    run_id char(32) NOT NULL REFERENCES runs,
    kind text NOT NULL CHECK (kind IN ('order', 'clamp', 'reject', 'fill', 'cancel', 'mark', 'cash', 'split',
                                       'dividend', 'halt', 'resume')),
    as_of timestamptz NOT NULL,
    payload jsonb NOT NULL,
    prev_hash char(64) NOT NULL,
    hash char(64) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS portfolio_events_kind ON portfolio_events (kind);
CREATE INDEX IF NOT EXISTS portfolio_events_as_of ON portfolio_events (as_of);
CREATE INDEX IF NOT EXISTS portfolio_events_run ON portfolio_events (run_id, seq);

CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME;
END $$;
CREATE OR REPLACE TRIGGER portfolio_events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON portfolio_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE IF NOT EXISTS orders (
    order_id varchar(64) PRIMARY KEY,
    run_id char(32) NOT NULL REFERENCES runs,
    symbol varchar(20) NOT NULL,
    side text NOT NULL,
    quantity double precision NOT NULL,
    status text NOT NULL CHECK (status IN ('open', 'filled', 'partly_filled', 'cancelled')),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS orders_symbol ON orders (symbol, status);

CREATE TABLE IF NOT EXISTS fills (
    fill_id varchar(64) PRIMARY KEY,
    run_id char(32) NOT NULL REFERENCES runs,
    order_id varchar(64) REFERENCES orders,
    symbol varchar(20) NOT NULL,
    side text NOT NULL,
    quantity double precision NOT NULL,
    price double precision NOT NULL,
    commission double precision NOT NULL,
    spread double precision NOT NULL,
    slippage double precision NOT NULL,
    reason text NOT NULL,
    filled_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS fills_order ON fills (order_id);

CREATE TABLE IF NOT EXISTS positions (
    run_id char(32) NOT NULL REFERENCES runs,
    symbol varchar(20) NOT NULL,
    quantity double precision NOT NULL,
    avg_price double precision NOT NULL,
    realised_pnl double precision NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, symbol)
);

CREATE TABLE IF NOT EXISTS datasets (
    dataset_id char(64) PRIMARY KEY,
    kind text NOT NULL,
    agent_type text NOT NULL,
    path text NOT NULL,
    rows integer NOT NULL,
    from_at timestamptz,
    to_at timestamptz,
    query jsonb,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS datasets_kind ON datasets (kind);

CREATE TABLE IF NOT EXISTS training_runs (
    training_run_id uuid PRIMARY KEY,
    run_id char(32) NOT NULL REFERENCES runs,
    agent_type text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('sft', 'rl', 'pairwise', 'judge')),
    state text NOT NULL CHECK (state IN ('queued', 'running', 'completed', 'failed', 'blocked')),
    trigger jsonb,
    config jsonb,
    metrics jsonb,
    data_cutoff timestamptz,
    dataset_id char(64) REFERENCES datasets,
    checkpoint text,
    error text,
    started_at timestamptz,
    ended_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS training_runs_agent ON training_runs (agent_type, kind, state);

CREATE TABLE IF NOT EXISTS model_versions (
    version text PRIMARY KEY,
    agent_type text NOT NULL,
    training_run_id uuid NOT NULL REFERENCES training_runs,
    path text NOT NULL,
    sha256 char(64) NOT NULL,
    base_model text NOT NULL,
    base_revision text NOT NULL, -- SHA-256 of the base model's content
    base_dir text NOT NULL,
    gate jsonb,
    state text NOT NULL CHECK (state IN ('trained', 'rejected', 'shadow', 'champion', 'retired')),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS model_versions_agent ON model_versions (agent_type);

CREATE TABLE IF NOT EXISTS model_aliases (
    run_id char(32) NOT NULL REFERENCES runs,
    agent_type text NOT NULL,
    alias text NOT NULL CHECK (alias IN ('champion', 'challenger', 'previous')),
    version text NOT NULL REFERENCES model_versions,
    reason text,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, agent_type, alias)
);
CREATE TABLE IF NOT EXISTS alias_events (
    id bigserial PRIMARY KEY,
    run_id char(32) NOT NULL REFERENCES runs,
    agent_type text NOT NULL,
    alias text NOT NULL,
    old_version text,
    new_version text,
    reason text,
    as_of timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS regime_events (
    id bigserial PRIMARY KEY,
    run_id char(32) NOT NULL REFERENCES runs,
    symbol varchar(20) NOT NULL,
    as_of timestamptz NOT NULL,
    kind text NOT NULL CHECK (kind IN ('label', 'change_point')),
    old text,
    new text,
    inputs jsonb,
    confidence real,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS regime_events_symbol ON regime_events (symbol, as_of);

CREATE TABLE IF NOT EXISTS bandit_state (
    name text PRIMARY KEY,
    run_id char(32) NOT NULL REFERENCES runs,
    step bigint NOT NULL,
    state bytea NOT NULL,
    feature_hash char(64) NOT NULL,
    sha256 char(64) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS spool_applied (
    op_id uuid PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS spool_dead_letter (
    op_id uuid PRIMARY KEY,
    op jsonb NOT NULL,
    error text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

INSERT INTO schema_migrations (version, name) VALUES (1, 'initial') ON CONFLICT DO NOTHING;

-- Version 2: which experiences each dataset holds, and what retention walks by. Every statement may be run again.
CREATE TABLE IF NOT EXISTS dataset_items (
    dataset_id char(64) NOT NULL REFERENCES datasets,
    trajectory_id varchar(64) NOT NULL REFERENCES trajectories,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (dataset_id, trajectory_id)
);
CREATE INDEX IF NOT EXISTS dataset_items_trajectory ON dataset_items (trajectory_id);
-- false: dataset_items does not hold all of the dataset, which then protects its agent's experiences up to to_at
ALTER TABLE datasets ADD COLUMN IF NOT EXISTS items_complete boolean NOT NULL DEFAULT false;

-- removal walks from the oldest on, and a walk that was cut off must not read everything again for each batch
CREATE INDEX IF NOT EXISTS trajectories_as_of ON trajectories (as_of, trajectory_id);

INSERT INTO schema_migrations (version, name) VALUES (2, 'dataset_items') ON CONFLICT DO NOTHING;

-- Version 3: every filter of the similarity search has an index that leads with it.
CREATE INDEX IF NOT EXISTS trajectory_embeddings_regime ON trajectory_embeddings (embedding_model, market_regime, agent_type);
CREATE INDEX IF NOT EXISTS trajectory_embeddings_symbol ON trajectory_embeddings (embedding_model, symbol, agent_type);
CREATE INDEX IF NOT EXISTS trajectory_embeddings_recommendation
    ON trajectory_embeddings (embedding_model, recommendation, success);
CREATE INDEX IF NOT EXISTS trajectory_embeddings_reward ON trajectory_embeddings (embedding_model, reward);
ANALYZE trajectory_embeddings;
INSERT INTO schema_migrations (version, name) VALUES (3, 'search_filters') ON CONFLICT DO NOTHING;

-- Version 4: which library this is, so that what waits in a spool is never applied to another one. Copies keep it.
CREATE TABLE IF NOT EXISTS library_identity (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    only_row boolean NOT NULL DEFAULT true UNIQUE CHECK (only_row),
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO library_identity DEFAULT VALUES ON CONFLICT DO NOTHING;

INSERT INTO schema_migrations (version, name) VALUES (4, 'library_identity') ON CONFLICT DO NOTHING;

-- Version 5: how often calls came true that retention has removed, by how sure they were. Calibration must not forget them.
CREATE TABLE IF NOT EXISTS removed_calls (
    run_id char(32) NOT NULL REFERENCES runs,
    agent_type varchar(50) NOT NULL,
    policy text NOT NULL,
    is_hold boolean NOT NULL,
    percent integer NOT NULL CHECK (percent BETWEEN 0 AND 100),
    matured_at timestamptz NOT NULL, -- of the newest of them
    calls bigint NOT NULL CHECK (calls > 0),
    successes bigint NOT NULL CHECK (successes BETWEEN 0 AND calls),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, agent_type, policy, is_hold, percent)
);

INSERT INTO schema_migrations (version, name) VALUES (5, 'removed_calls') ON CONFLICT DO NOTHING;
