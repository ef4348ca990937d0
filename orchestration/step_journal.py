"""Remembers the answers of models that were waited for, so that a crash in the middle of a decision repeats none of them.

The coordinator looks an answer up before it asks and notes it after; whoever commits decisions calls `forget` once they
are durable. It holds no decision itself: the same question is found again by its content, or it is asked again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import orjson

from utils.hashing import canonical_json, content_hash, sha256_hex
from utils.logs import logger
from utils.schema import AgentOutput, parse_output

COMPACT_AFTER = 256
"""Forgotten lines from which on the file is rewritten while others still wait."""

_CHECKSUM_CHARS = 16


@dataclass(frozen=True, slots=True)
class _Entry:
    decision_id: str
    output: AgentOutput


def step_key(snapshot_hash: str, agent: str, policy: str, prompt_hash: str, inputs: Mapping[str, Any]) -> str:
    """Return the identity of a question: all that its answer may depend on.

    Parameters
    ----------
    snapshot_hash : str
        `MarketSnapshot.content_hash`.
    agent, policy : str
    prompt_hash : str
        Of the policy's instructions.
    inputs : mapping
        JSON values: outputs of others, portfolio, experiences, how a retry differs.
    """
    return content_hash([snapshot_hash, agent, policy, prompt_hash, dict(inputs)])


class StepJournal:
    """A file of finished answers, one checksummed JSON line each, written as they come.

    Lines that are damaged, as the last one after a kill may be, are dropped when it is opened. A killed process loses
    nothing that was written; a machine that loses power may lose the last answers, which are then asked for again.

    Parameters
    ----------
    path : Path
        Created with its folder if need be. One process at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._forgotten = 0
        self._torn = False
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        damaged = self._load(lines)
        if damaged:
            logger.warning("%s: %d damaged lines are dropped; their questions are asked again", path, damaged)
        if damaged or lines[-1]:
            self._rewrite()  # what comes next must begin a line of its own
        self._file = self._opened()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str) -> AgentOutput | None:
        """Return the answer to a question, None if it was never finished."""
        with self._lock:
            entry = self._entries.get(key)
        return entry.output if entry else None

    def add(self, key: str, decision_id: str, output: AgentOutput) -> None:
        """Note a finished answer; it is on its way to the disk when this returns.

        If the disk refuses it, the answer still counts, and would be asked for again after a crash; a warning says so.
        """
        entry = _Entry(decision_id, output)
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = entry
            self._append(_line(key, entry))

    def forget(self, decision_ids: Iterable[str]) -> None:
        """Drop the answers of decisions that are durable; unknown ones are no fault."""
        gone = set(decision_ids)
        with self._lock:
            left = {key: entry for key, entry in self._entries.items() if entry.decision_id not in gone}
            self._forgotten += len(self._entries) - len(left)
            self._entries = left
            if self._forgotten and (not left or self._forgotten >= COMPACT_AFTER):
                self._file.close()
                try:
                    self._rewrite()
                except OSError as error:
                    logger.warning("%s cannot be rewritten and grows meanwhile: %s", self._path, error)
                self._file = self._opened()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def _opened(self) -> FileIO:
        return self._path.open("ab", buffering=0)

    def _append(self, line: bytes) -> None:
        whole = b"\n" + line if self._torn else line  # what a full disk cut off must not spoil the next line
        try:
            self._torn = self._file.write(whole) < len(whole)
            fault = "a line was cut off" if self._torn else ""
        except OSError as error:
            self._torn, fault = True, str(error)
        if fault:
            logger.warning("%s: %s; after a crash the question would be asked again", self._path, fault)

    def _load(self, lines: Iterable[bytes]) -> int:
        """Take in the lines; returns how many of them are damaged."""
        damaged = 0
        for line in lines:
            if not line:
                continue
            checksum, _, payload = line.partition(b" ")
            output = None
            if sha256_hex(payload)[:_CHECKSUM_CHARS].encode() == checksum:
                data = orjson.loads(payload)
                output, _ = parse_output(data["output"])
            if output is None:
                damaged += 1
            else:
                self._entries[data["key"]] = _Entry(data["decision_id"], output)
        return damaged

    def _rewrite(self) -> None:
        """Replace the file by one that holds what is still waited for."""
        fresh = self._path.with_suffix(f"{self._path.suffix}.new")
        with fresh.open("wb") as file:
            file.writelines(_line(key, entry) for key, entry in self._entries.items())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        self._forgotten, self._torn = 0, False


def _line(key: str, entry: _Entry) -> bytes:
    payload = canonical_json(
        {"key": key, "decision_id": entry.decision_id, "output": entry.output.model_dump(mode="json")}
    ).encode()
    return sha256_hex(payload)[:_CHECKSUM_CHARS].encode() + b" " + payload + b"\n"
