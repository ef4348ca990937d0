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
