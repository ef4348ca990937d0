"""The local spool: what was acknowledged is there after a kill, in order, and damage is told and never silent."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.library import spool as spool_module
from data_pipeline.library.spool import Record, Spool
from utils.errors import ComponentStartError, LibraryUnavailable
from utils.logs import logger

HEADER = spool_module._HEADER.size


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def opened(folder: Path) -> Iterator[Callable[..., Spool]]:
    made: list[Spool] = []

    def build(**options: int) -> Spool:
        made.append(Spool(folder, **options))
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What the project's logger says at ERROR."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear = Ear(logging.ERROR)
    logger.addHandler(ear)
    yield heard
    logger.removeHandler(ear)


def waiting(spool: Spool) -> list[bytes]:
    return [record.payload for record in spool.peek(10_000, 1 << 30)]


def drained(spool: Spool) -> list[Record]:
    """Take everything out, one at a time."""
    found = []
    while records := spool.peek(1, 1):
        spool.advance(records)
        found += records
    return found


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.segment"))


# --- order and content


@given(payloads=st.lists(st.binary(max_size=200), max_size=30), size=st.integers(1, 400))
def test_whatever_was_appended_comes_back_in_order_through_any_number_of_segments(tmp_path_factory, payloads, size):
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, segment_bytes=size)
    ids = [spool.append(payload) for payload in payloads]
    spool.close()
    again = Spool(folder, segment_bytes=size)
    assert again.operations == len(payloads)
    records = drained(again)
    again.close()
    assert [(record.op_id, record.payload) for record in records] == list(zip(ids, payloads, strict=True))


def test_an_empty_spool_has_no_size_no_operations_and_nothing_old(opened) -> None:
    spool = opened()
    assert (spool.size_bytes, spool.operations, spool.oldest, spool.peek(5, 100)) == (0, 0, None, [])


def test_size_number_and_age_are_those_of_what_waits(opened) -> None:
    spool = opened()
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    first = spool.append(b"abc")
    spool.append(b"defg")
    assert spool.size_bytes == 2 * HEADER + 7
    assert spool.operations == 2
    assert before <= spool.oldest <= datetime.now(UTC)
    assert spool.oldest == Record(first, b"").appended_at
    spool.advance(spool.peek(1, 100))
    assert spool.operations == 1


def test_a_look_takes_as_many_as_asked_for_and_one_at_least(opened) -> None:
    spool = opened()
    for size in (10, 10, 10, 500):
        spool.append(b"x" * size)
    assert [len(r.payload) for r in spool.peek(2, 1000)] == [10, 10]
    assert [len(r.payload) for r in spool.peek(9, 25)] == [10, 10]
    spool.advance(spool.peek(3, 1000))
    assert [len(r.payload) for r in spool.peek(9, 25)] == [500]


def test_a_segment_that_is_applied_is_retired_with_its_ids_and_deleted_when_discarded(opened, folder) -> None:
    spool = opened(segment_bytes=1)
    ids = [spool.append(b"a"), spool.append(b"b"), spool.append(b"c")]
    assert len(segments(folder)) == 3
    spool.advance(spool.peek(2, 100))
    assert len(segments(folder)) == 1
    retired = list(spool.retired())
    assert [op_ids for _, op_ids in retired] == [[ids[0]], [ids[1]]]
    for path, _ in retired:
        spool.discard(path)
    assert list(spool.retired()) == []
    assert spool.operations == 1


def test_retired_files_of_a_killed_process_are_offered_again(opened, folder) -> None:
    spool = opened()
    op_id = spool.append(b"a")
    spool.advance(spool.peek(1, 100))
    spool.close()
    assert [op_ids for _, op_ids in opened().retired()] == [[op_id]]


def test_a_segment_half_applied_is_offered_whole_after_a_restart(opened) -> None:
    spool = opened()
    for payload in (b"a", b"b", b"c"):
        spool.append(payload)
    spool.advance(spool.peek(2, 100))
    spool.close()
    assert waiting(opened()) == [b"a", b"b", b"c"]


def test_appending_goes_on_behind_what_an_earlier_process_left(opened) -> None:
    first = opened()
    first.append(b"a")
    first.close()
    second = opened()
    second.append(b"b")
    assert waiting(second) == [b"a", b"b"]


# --- durability


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The file descriptors that were forced to disk."""
    seen: list[int] = []
    force = os.fsync

    def counting(fd: int) -> None:
        seen.append(fd)
        force(fd)

    monkeypatch.setattr(os, "fsync", counting)
    return seen


def test_each_append_is_forced_to_disk_before_it_returns_and_a_new_file_with_its_directory(opened, syncs) -> None:
    spool = opened()
    before = len(syncs)
    spool.append(b"a")
    assert len(syncs) == before + 2
    spool.append(b"b")
    assert len(syncs) == before + 3


def test_appends_that_wait_for_the_disk_together_share_one_fsync(opened, monkeypatch) -> None:
    spool = opened()
    spool.append(b"first")
    force, entered, release = os.fsync, threading.Event(), threading.Event()
    calls: list[int] = []

    def slow(fd: int) -> None:
        calls.append(fd)
        entered.set()
        assert release.wait(10)
        force(fd)

    monkeypatch.setattr(os, "fsync", slow)
    threads = [threading.Thread(target=spool.append, args=(b"x",)) for _ in range(8)]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    deadline = datetime.now(UTC) + timedelta(seconds=10)
    while spool.operations < 9:  # the others have written and wait behind the first one's fsync
        assert datetime.now(UTC) < deadline
    release.set()
    for thread in threads:
        thread.join(10)
    assert spool.operations == 9
    assert len(calls) == 2


def test_an_append_that_the_disk_refused_is_not_acknowledged_and_the_next_goes_to_a_new_file(
    opened, folder, monkeypatch
) -> None:
    spool = opened()
    spool.append(b"a")
    force = os.fsync

    def refusing(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refusing)
    with pytest.raises(LibraryUnavailable, match="Input/output error"):
        spool.append(b"b")
    monkeypatch.setattr(os, "fsync", force)
    spool.append(b"c")
    assert len(segments(folder)) == 2
    assert [waiting(spool)[0], waiting(spool)[-1]] == [b"a", b"c"]


def test_a_record_that_found_no_room_on_the_disk_leaves_the_file_as_it_was(opened, folder, monkeypatch) -> None:
    spool = opened()
    spool.append(b"a" * 50)
    write = os.write

    def short(fd: int, data: memoryview) -> int:
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return write(fd, data[:100])

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(LibraryUnavailable, match="No space left"):
        spool.append(b"b" * 100)
    monkeypatch.setattr(os, "write", write)
    assert segments(folder)[0].stat().st_size == HEADER + 50
    spool.append(b"c")
    spool.close()
    assert waiting(opened()) == [b"a" * 50, b"c"]


def test_concurrent_appends_keep_the_order_of_each_thread(opened) -> None:
    spool = opened(segment_bytes=300)
    threads = [
        threading.Thread(target=lambda name=name: [spool.append(b"%d:%d" % (name, n)) for n in range(40)])
        for name in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    pairs = [tuple(map(int, payload.split(b":"))) for payload in waiting(spool)]
    assert len(pairs) == 200
    for name in range(5):
        assert [n for who, n in pairs if who == name] == list(range(40))


def test_what_a_killed_process_had_acknowledged_is_there(folder, opened) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom data_pipeline.library.spool import Spool\n"
        f"spool = Spool(Path({str(folder)!r}), segment_bytes=2000)\n"
        "n = 0\nwhile True:\n    spool.append(b'%d' % n)\n    print(n, flush=True)\n    n += 1\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True
    )
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(120)]
    child.kill()
    acknowledged += [int(line) for line in child.stdout.read().split("\n") if line.isdigit()]
    child.wait(10)
    child.stdout.close()
    found = [int(payload) for payload in waiting(opened())]
    assert found == list(range(len(found)))
    assert len(found) >= len(acknowledged)


# --- damage


def three_records(spool: Spool) -> None:
    for payload in (b"first", b"second", b"third"):
        spool.append(payload)
    spool.close()


@pytest.mark.parametrize("cut", [1, 4, 5, 4 + HEADER, 5 + HEADER - 1])
def test_a_torn_last_record_is_cut_off_and_nothing_else(opened, folder, complaints, cut) -> None:
    three_records(opened())
    (path,) = segments(folder)
    os.truncate(path, path.stat().st_size - cut)
    again = opened()
    assert waiting(again) == [b"first", b"second"]
    assert path.stat().st_size == 2 * HEADER + 11
    assert complaints == []
    assert again.quarantined == []


def test_blocks_that_a_power_cut_left_empty_at_the_end_are_cut_off(opened, folder, complaints) -> None:
    three_records(opened())
    (path,) = segments(folder)
    with path.open("ab") as handle:
        handle.write(b"\x00" * 5000)
    assert waiting(opened()) == [b"first", b"second", b"third"]
    assert complaints == []


@pytest.mark.parametrize("place", [0, 5, 21, 25, 29, 33, 35], ids=lambda place: f"byte_{place}")
def test_a_damaged_record_in_the_middle_is_told_with_file_and_offset_and_the_rest_is_kept_aside(
    opened, folder, complaints, place
) -> None:
    three_records(opened())
    (path,) = segments(folder)
    whole = path.read_bytes()
    start = HEADER + 5
    damaged = bytearray(whole)
    damaged[start + place] ^= 0xFF
    path.write_bytes(damaged)
    again = opened()
    assert waiting(again) == [b"first"]
    (side,) = again.quarantined
    assert side.read_bytes() == damaged[start:]
    assert len(complaints) == 1
    assert str(path) in complaints[0] and f"byte {start} " in complaints[0] and str(side) in complaints[0]
    again.append(b"fourth")
    assert [record.payload for record in drained(again)] == [b"first", b"fourth"]
    assert side.read_bytes() == damaged[start:]


def test_segments_behind_a_damaged_one_are_read_all_the_same(opened, folder, complaints) -> None:
    spool = opened(segment_bytes=1)
    three_records(spool)
    path = segments(folder)[1]
    os.truncate(path, path.stat().st_size - 2)
    assert waiting(opened()) == [b"first", b"third"]
    assert len(complaints) == 1 and path.name in complaints[0]


def test_damage_that_comes_while_the_spool_is_open_is_told_when_it_is_read(opened, folder, complaints) -> None:
    spool = opened()
    for payload in (b"first", b"second", b"third"):
        spool.append(payload)
    (path,) = segments(folder)
    with path.open("r+b") as handle:
        handle.seek(HEADER + 5 + HEADER)
        handle.write(b"X")
    assert waiting(spool) == [b"first"]
    assert spool.operations == 1
    assert len(complaints) == 1
    spool.append(b"fourth")
    assert [record.payload for record in drained(spool)] == [b"first", b"fourth"]


# --- bounds and ownership


def test_a_full_spool_says_so_and_takes_writes_again_once_it_has_drained(opened) -> None:
    spool = opened(limit_bytes=3 * (HEADER + 10))
    for _ in range(3):
        spool.append(b"x" * 10)
    with pytest.raises(LibraryUnavailable, match=r"is full: .* bring the database back"):
        spool.append(b"")
    assert spool.operations == 3
    drained(spool)
    assert isinstance(spool.append(b"x" * 10), uuid.UUID)


def test_a_directory_has_one_owner(opened, folder) -> None:
    first = opened()
    with pytest.raises(ComponentStartError, match="another process owns the spool"):
        Spool(folder)
    first.append(b"a")
    first.close()
    assert waiting(opened()) == [b"a"]


def test_a_closed_spool_takes_nothing_and_may_be_closed_again(opened) -> None:
    spool = opened()
    spool.close()
    spool.close()
    with pytest.raises(LibraryUnavailable, match="closed"):
        spool.append(b"a")


def test_a_full_disk_costs_no_file_and_no_descriptor_each_time_it_is_asked(tmp_path, monkeypatch) -> None:
    spool = Spool(tmp_path / "spool")
    spool.append(b"before")
    before = sorted(path.name for path in spool.directory.iterdir())
    real_write = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for _ in range(20):
        with pytest.raises(LibraryUnavailable, match="No space left"):
            spool.append(b"never")
    monkeypatch.setattr(os, "write", real_write)
    assert sorted(path.name for path in spool.directory.iterdir()) == before
    spool.append(b"after")
    assert [record.payload for record in spool.peek(10, 1 << 20)] == [b"before", b"after"]
    spool.close()


def test_what_waits_for_one_database_is_not_for_another(tmp_path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.belong_to("one", "here:5432/library")
    spool.append(b"for one")
    spool.close()
    again = Spool(tmp_path / "spool")
    with pytest.raises(ComponentStartError, match="here:5432/library"):
        again.belong_to("another", "there:5432/library")
    again.belong_to("one", "moved:5432/library")
    again.advance(again.peek(10, 1 << 20))
    again.belong_to("another", "there:5432/library")
    again.close()
