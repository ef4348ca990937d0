"""The local spool: writes of the library that wait for a database that is away.

Append-only segment files in one directory, each record checksummed and forced to disk before its writer goes on. Filled
and drained by `data_pipeline.library.spooled_database`; it never looks into a payload and never talks to a database.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from utils.artifacts import write_atomically
from utils.errors import ComponentStartError, LibraryUnavailable
from utils.ids import uuid7
from utils.logs import logger

LIMIT_BYTES = 1 << 30
"""About 200,000 trajectories with embeddings: days of trading, and a small part of any disk."""
SEGMENT_BYTES = 16 << 20
"""What is read again after a kill during a drain; the open files are at most the limit divided by it."""

_HEADER = struct.Struct("<4s16sIII")  # magic, op_id, length and CRC-32 of the payload, CRC-32 of what stands before
_MAGIC = b"SPL1"


@dataclass(frozen=True, slots=True)
class Record:
    """One operation of the spool."""

    op_id: uuid.UUID
    payload: bytes

    @property
    def appended_at(self) -> datetime:
        """When it was appended: the 48 bits of Unix milliseconds at the head of a UUIDv7."""
        return datetime.fromtimestamp((self.op_id.int >> 80) / 1000, UTC)


class _Segment:
    """One file: `size` bytes written, `synced` of them forced to disk, `applied` of them drained."""

    def __init__(self, path: Path, flags: int = 0) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_APPEND | flags, 0o600)
        self.size = os.fstat(self.fd).st_size
        self.synced = self.size
        self.applied = 0
        self.operations = 0
        self.broken: OSError | None = None
        self.retired = False


class Spool:
    """Keeps operations in the order in which they were appended until they are applied.

    Any number of threads may append; one at a time may read and `advance`.

    Parameters
    ----------
    directory : Path
        Made if it does not exist. One process at a time owns it.
    limit_bytes : int
        Beyond it nothing is appended any more.

    Raises
    ------
    ComponentStartError
        If another process, or another spool of this one, owns the directory.
    """

    def __init__(self, directory: Path, limit_bytes: int = LIMIT_BYTES, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.directory = directory
        self._limit = limit_bytes
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()  # of the state below; taken inside _syncing, never the other way round
        self._syncing = threading.Lock()
        self._segments: list[_Segment] = []
        self._tail: _Segment | None = None  # the one that is appended to: always of this process
        self._closed = False
        if not directory.is_dir():
            directory.mkdir(parents=True, mode=0o700)
            _sync_directory(directory.parent)
        self._owner = _own(directory)
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    @property
    def size_bytes(self) -> int:
        """Bytes on disk; 0 while nothing waits."""
        with self._lock:
            return sum(segment.size for segment in self._segments)

    @property
    def operations(self) -> int:
        """Operations that wait to be applied."""
        with self._lock:
            return sum(segment.operations for segment in self._segments)

    @property
    def oldest(self) -> datetime | None:
        """When the operation that waits longest was appended."""
        with self._lock:
            for segment in self._segments:
                if segment.applied < segment.size:
                    header = os.pread(segment.fd, _HEADER.size, segment.applied)
                    return Record(uuid.UUID(bytes=header[4:20]), b"").appended_at
        return None

    def belong_to(self, identity: str, place: str) -> None:
        """Note the database that the operations are for.

        Raises
        ------
        ComponentStartError
            If operations wait that are for another one: there they would be refused, and be lost to their own.
        """
        note = self.directory / "database"
        known, known_place = (*note.read_text(encoding="utf-8").split("\n"), "", "")[:2] if note.exists() else ("", "")
        if known and known != identity and self.operations:
            raise ComponentStartError(
                f"{self.operations} operations wait in the spool {self.directory} for the database at {known_place}, and {place} is "
                "another one; start once with the former so that they are applied, or give this one its own --data_dir"
            )
        if known != identity:
            write_atomically(note, f"{identity}\n{place}\n")

    @property
    def quarantined(self) -> list[Path]:
        """Side files with what could not be read, for a person to look at."""
        return sorted(self.directory.glob("*.corrupt-*"))

    def append(self, payload: bytes) -> uuid.UUID:
        """Append an operation; once this returns it survives a kill and a power cut. Returns its op_id.

        Concurrent appends share one fsync.

        Raises
        ------
        LibraryUnavailable
            If the spool is full, closed, or its disk refuses. The operation may then be there all the same.
        """
        op_id = uuid7()
        head = struct.pack("<4s16sII", _MAGIC, op_id.bytes, len(payload), zlib.crc32(payload))
        record = head + struct.pack("<I", zlib.crc32(head)) + payload
        try:
            with self._lock:
                segment = self._writable(len(record))
                end = self._write(segment, record)
            self._sync(segment, end)
        except OSError as error:
            raise LibraryUnavailable(f"the spool {self.directory} cannot be written: {error.strerror}") from error
        return op_id

    def peek(self, most: int, most_bytes: int) -> list[Record]:
        """Return the operations that wait longest, in order: up to `most`, and one at least however long it is."""
        found: list[Record] = []
        taken = 0
        with self._lock:
            places = [(segment, segment.applied, segment.size) for segment in self._segments]
        for segment, offset, end in places:
            sound = 0
            while offset < end:
                record, problem = _read(segment, offset, end)
                if record is None:
                    with self._syncing, self._lock:
                        self._quarantine(segment, offset, problem, sound)
                        if sound == 0:
                            self._retire(segment)
                    break
                taken += len(record.payload)
                if found and (len(found) == most or taken > most_bytes):
                    return found
                found.append(record)
                sound += 1
                offset += _HEADER.size + len(record.payload)
        return found

    def advance(self, records: list[Record]) -> None:
        """Note that the first operations, as `peek` gave them, are applied; what is whole applied is retired."""
        left = list(records)
        with self._syncing, self._lock:
            for segment in list(self._segments):
                while left and segment.operations:
                    segment.applied += _HEADER.size + len(left.pop(0).payload)
                    segment.operations -= 1
                if segment.operations == 0:
                    self._retire(segment)

    def retired(self) -> Iterator[tuple[Path, list[uuid.UUID]]]:
        """Yield the files whose operations are all applied, with their op_ids; `discard` each once it is noted."""
        for path in sorted(self.directory.glob("*.applied")):
            segment = _Segment(path)
            try:
                yield path, [op_id for op_id, _ in _scan(segment)[0]]
            finally:
                os.close(segment.fd)

    def discard(self, path: Path) -> None:
        """Delete a retired file."""
        path.unlink()

    def close(self) -> None:
        """Close the files and give the directory up; what waits stays on disk. Idempotent."""
        with self._syncing, self._lock:
            if not self._closed:
                self._closed = True
                for segment in self._segments:
                    os.close(segment.fd)
                self._owner.close()
            self._segments, self._tail = [], None

    def _load(self) -> None:
        """Take up what an earlier process left, every record verified."""
        paths = sorted(self.directory.glob("*.segment"))
        for path in paths:
            segment = _Segment(path)
            self._segments.append(segment)
            places, end, problem = _scan(segment)
            segment.operations = len(places)
            if end < segment.size:
                if path == paths[-1] and problem == _TORN:
                    logger.warning("%s: a torn record at byte %d, never acknowledged, is cut off", path, end)
                    self._cut(segment, end)
                else:
                    self._quarantine(segment, end, problem, len(places))
        for segment in list(self._segments):
            if segment.operations == 0:
                self._retire(segment)

    def _writable(self, length: int) -> _Segment:
        """Return the segment to append to, a new one if need be."""
        if self._closed:
            raise LibraryUnavailable(f"the spool {self.directory} is closed")
        size = sum(segment.size for segment in self._segments)
        if size + length > self._limit:
            raise LibraryUnavailable(
                f"the spool {self.directory} is full: {size} of {self._limit} bytes are in use and this operation has {length}; "
                "bring the database back, then it drains by itself and takes writes again"
            )
        tail = self._tail
        if tail is not None and tail.size < self._segment_bytes:
            return tail
        if tail is not None:
            self._force(tail, tail.size)  # so that only the last segment can have a torn end
        numbers = [int(path.name.split(".")[0]) for path in self.directory.glob("[0-9]*.*")]
        path = self.directory / f"{max(numbers, default=0) + 1:012d}.segment"
        segment = _Segment(path, os.O_CREAT | os.O_EXCL)
        self._segments.append(segment)
        self._tail = segment
        _sync_directory(self.directory)
        return segment

    def _write(self, segment: _Segment, record: bytes) -> int:
        """Write a record whole or not at all; return where it ends."""
        try:
            view = memoryview(record)
            while view:
                view = view[os.write(segment.fd, view) :]
        except OSError:
            self._tail = None
            os.ftruncate(segment.fd, segment.size)
            self._tail = segment  # whole again: a full disk must not cost a file and a descriptor each time it is asked
            raise
        segment.size += len(record)
        segment.operations += 1
        return segment.size

    def _sync(self, segment: _Segment, end: int) -> None:
        """Wait until the segment is on disk up to `end`; whoever comes first does it for all that have written by then."""
        with self._syncing:
            if segment.retired or segment.synced >= end:
                return
            if segment.broken is not None:  # a second fsync would succeed without having written anything
                raise segment.broken
            with self._lock:
                if self._closed:
                    raise LibraryUnavailable(f"the spool {self.directory} was closed meanwhile")
                written = segment.size
            self._force(segment, written)

    def _force(self, segment: _Segment, written: int) -> None:
        try:
            os.fsync(segment.fd)
        except OSError as error:
            segment.broken = error
            if self._tail is segment:
                self._tail = None
            raise
        segment.synced = max(segment.synced, written)

    def _retire(self, segment: _Segment) -> None:
        segment.path.rename(segment.path.with_suffix(".applied"))
        _sync_directory(self.directory)
        os.close(segment.fd)
        segment.retired = True
        self._segments.remove(segment)
        if self._tail is segment:
            self._tail = None

    def _quarantine(self, segment: _Segment, offset: int, problem: str, operations: int) -> None:
        """Put what cannot be read, and all behind it in the segment, into a side file."""
        side = segment.path.with_name(f"{segment.path.stem}.corrupt-{offset}")
        aside = side.with_suffix(".aside")
        with aside.open("wb") as handle:
            place = offset
            while chunk := os.pread(segment.fd, 1 << 20, place):
                handle.write(chunk)
                place += len(chunk)
            handle.flush()
            os.fsync(handle.fileno())
        aside.rename(side)
        _sync_directory(self.directory)
        logger.error(
            "%s is damaged at byte %d (%s): it and all behind it in the file, %d bytes, were put into %s and are NOT applied",
            segment.path, offset, problem, place - offset, side,
        )  # fmt: skip
        self._cut(segment, offset)
        segment.operations = operations
        if self._tail is segment:
            self._tail = None

    def _cut(self, segment: _Segment, end: int) -> None:
        os.ftruncate(segment.fd, end)
        os.fsync(segment.fd)
        segment.size = segment.synced = end


_TORN = "a torn record"


def _read(segment: _Segment, offset: int, end: int) -> tuple[Record | None, str]:
    """Return the record at a place, or None and what is wrong with it."""
    header = os.pread(segment.fd, _HEADER.size, offset)
    if len(header) < _HEADER.size:
        return None, _TORN
    magic, identity, length, checksum, own = _HEADER.unpack(header)
    if magic != _MAGIC or zlib.crc32(header[:-4]) != own:
        # a power cut can leave blocks that were counted but never written
        rest = os.pread(segment.fd, end - offset, offset)
        return None, "its header fails its checksum" if rest.strip(b"\x00") else _TORN
    if offset + _HEADER.size + length > end:
        return None, _TORN
    payload = os.pread(segment.fd, length, offset + _HEADER.size)
    if len(payload) != length or zlib.crc32(payload) != checksum:
        return None, "its payload fails its checksum"
    return Record(uuid.UUID(bytes=identity), payload), ""


def _scan(segment: _Segment) -> tuple[list[tuple[uuid.UUID, int]], int, str]:
    """Return the op_ids with their places, where the sound records end, and what is wrong there."""
    places: list[tuple[uuid.UUID, int]] = []
    offset = 0
    while offset < segment.size:
        record, problem = _read(segment, offset, segment.size)
        if record is None:
            return places, offset, problem
        places.append((record.op_id, offset))
        offset += _HEADER.size + len(record.payload)
    return places, offset, ""


def _own(directory: Path) -> IO[str]:
    """Take the lock of the directory, which the kernel releases with the process."""
    lock = (directory / "owner.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ComponentStartError(
            f"another process owns the spool {directory}; stop it, or give this one its own spool_dir (--data_dir)"
        ) from None
    return lock


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
