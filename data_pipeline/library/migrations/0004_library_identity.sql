-- Version 4: which library this is, so that what waits in a spool is never applied to another one. Copies keep it.
CREATE TABLE IF NOT EXISTS library_identity (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    only_row boolean NOT NULL DEFAULT true UNIQUE CHECK (only_row),
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO library_identity DEFAULT VALUES ON CONFLICT DO NOTHING;

INSERT INTO schema_migrations (version, name) VALUES (4, 'library_identity') ON CONFLICT DO NOTHING;
