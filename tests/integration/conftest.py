"""Fixtures of the end-to-end tests: a place for a daemon, and one base model for all that train."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_runner import Learned, learned_in, learning_flags, new_home, run_to_end

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of the test's own for data directories and output files."""
    with new_home() as folder:
        yield folder


@pytest.fixture(scope="session")
def model_cache() -> Iterator[Path]:
    """The folder of the built base model; the first training of the session fills it (about 50 s on one core)."""
    folder = Path(tempfile.mkdtemp(prefix="base-model-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def learned(model_cache: Path) -> Iterator[Learned]:
    """An uninterrupted run with one training and one verdict, about 25 s besides the base model."""
    pytest.importorskip("trl", reason="needs the extra `training`")
    with new_home() as home:
        ended = run_to_end(home, *learning_flags(home), env={"MODEL_CACHE_DIR": str(model_cache)}, limit_s=270)
        assert ended.exit_code == 0, ended.stderr
        yield learned_in(home)


@pytest.fixture(scope="module")
def shared_library(module_database: str) -> Iterator[ExperienceLibraryPostgres]:
    """The library of a test file, in a database of its own."""
    opened = ExperienceLibraryPostgres(dsn=module_database, pool_size=4)
    yield opened
    opened.close()


@pytest.fixture
def library(shared_library: ExperienceLibraryPostgres) -> ExperienceLibraryPostgres:
    """A library without any trajectory."""
    with shared_library.connection() as connection:
        connection.execute("TRUNCATE trajectories CASCADE")
    return shared_library
