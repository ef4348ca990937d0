"""The file of decisions: one canonical JSON line each, in decision order, byte-identical for equal runs.

Rewritten from the database when a run resumes, so that a kill between commit and line leaves no gap and no double.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from utils.errors import ConfigError
from utils.hashing import canonical_json


class DecisionLog:
    """Appends decisions to a file; without a path it does nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def restart(self, decisions: Iterable[Mapping[str, Any]]) -> None:
        """Begin the file anew with the decisions that are durable already.

        Raises
        ------
        ConfigError
            If the file cannot be written.
        """
        if self._path is None:
            return
        self.close()
        try:
            self._file = self._path.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"decisions_jsonl: cannot write {self._path}: {error.strerror}") from None
        self.append(decisions)

    def append(self, decisions: Iterable[Mapping[str, Any]]) -> None:
        """Write decisions and hand them to the operating system."""
        if self._file is not None:
            self._file.writelines(canonical_json(decision) + "\n" for decision in decisions)
            self._file.flush()

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None
