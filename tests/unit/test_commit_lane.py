"""Commits beside the decisions: in order, at most one open, patient with the database, and loud when one fails for good."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from data_pipeline.library.cycle import CycleBatch
from orchestration.commit_lane import CommitLane
from utils.errors import LibraryConflict, LibraryUnavailable

FIRST = datetime(2014, 6, 2, 20, tzinfo=UTC)


class Library:
    """Commits by a function of the test; remembers what became durable, and revivals."""

    def __init__(self, commit: Callable[[CycleBatch], None] = lambda batch: None) -> None:
        self._commit = commit
        self.durable: list[datetime] = []
        self.revived = 0

    def commit_cycle(self, batch: CycleBatch) -> None:
        self._commit(batch)
        self.durable.append(batch.as_of)

    def revive(self) -> None:
        self.revived += 1


def batch(day: int) -> CycleBatch:
    return CycleBatch("run", FIRST + timedelta(days=day), ())


@pytest.fixture
def lane() -> Iterator[Callable[[Library], CommitLane]]:
    made: list[CommitLane] = []

    def build(library: Library) -> CommitLane:
        made.append(CommitLane(library))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for one in made:
        one.close()


def test_batches_become_durable_in_the_order_they_were_handed_over(lane) -> None:
    library = Library()
    commits = lane(library)
    for day in range(20):
        commits.submit(batch(day))
    commits.flush()
    assert library.durable == [FIRST + timedelta(days=day) for day in range(20)]


def test_handing_over_does_not_wait_for_the_batch_itself_but_for_the_one_before(lane) -> None:
    release, working, began = threading.Event(), threading.Event(), threading.Event()

    def slow(_: CycleBatch) -> None:
        working.set()
        assert release.wait(5)

    library = Library(slow)
    commits = lane(library)
    commits.submit(batch(0))
    assert working.wait(5)
    assert library.durable == [], "the first is open, and its giver went on"
    second = threading.Thread(target=lambda: (began.set(), commits.submit(batch(1))))
    second.start()
    assert began.wait(5)
    second.join(0.05)
    assert second.is_alive(), "the second waits until the first is durable"
    release.set()
    second.join(5)
    commits.flush()
    assert len(library.durable) == 2


def test_while_the_database_is_away_a_commit_waits_revives_it_and_goes_through_once(lane) -> None:
    failures = [LibraryUnavailable("away"), LibraryUnavailable("away")]

    def commit(_: CycleBatch) -> None:
        if failures:
            raise failures.pop()

    library = Library(commit)
    commits = lane(library)
    commits.submit(batch(0))
    commits.flush()
    assert (library.durable, library.revived) == ([FIRST], 2)


def test_told_to_stop_it_gives_a_commit_up_and_says_so_to_who_flushes(lane) -> None:
    def commit(_: CycleBatch) -> None:
        raise LibraryUnavailable("away")

    library = Library(commit)
    commits = lane(library)
    commits.submit(batch(0))
    commits.stop.set()
    with pytest.raises(LibraryUnavailable):
        commits.flush()
    assert library.durable == []


def test_a_commit_that_fails_for_good_fails_the_next_one_and_nothing_follows_it(lane) -> None:
    def commit(one: CycleBatch) -> None:
        if one.as_of == FIRST:
            raise LibraryConflict("the log is broken")

    library = Library(commit)
    commits = lane(library)
    commits.submit(batch(0))
    for day in (1, 2):
        with pytest.raises(LibraryConflict, match="the log is broken"):
            commits.submit(batch(day))
    assert not commits.close()
    assert library.durable == []


def test_a_database_that_never_answers_does_not_keep_the_process_from_its_end() -> None:
    program = (
        "import threading\n"
        "from types import SimpleNamespace\n"
        "from orchestration.commit_lane import CommitLane\n"
        "from test_commit_lane import batch\n"
        "working = threading.Event()\n"
        "def commit(_):\n"
        "    working.set()\n"
        "    threading.Event().wait()\n"
        "CommitLane(SimpleNamespace(commit_cycle=commit, revive=None)).submit(batch(0))\n"
        "assert working.wait(10)\n"
    )
    folder = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(folder.parents[1])))}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


def test_flushing_twice_and_closing_twice_is_harmless(lane) -> None:
    library = Library()
    commits = lane(library)
    commits.flush()
    commits.submit(batch(0))
    commits.flush()
    commits.flush()
    commits.close()
    commits.close()
    assert library.durable == [FIRST]
