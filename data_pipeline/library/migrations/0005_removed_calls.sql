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
