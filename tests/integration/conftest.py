"""Fixtures of the end-to-end tests: a place for a daemon, and one base model for all that train."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_runner import new_home


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
