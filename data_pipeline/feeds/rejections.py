"""The border at which records of a file enter: what is malformed is skipped, counted by reason and logged with its line.

`accepted` is the one place where a `FeedDataError` of a file is caught; parsers only raise. Used by every feed that
reads files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from utils.errors import FeedDataError
from utils.logs import logger
from utils.telemetry import NO_TELEMETRY, Telemetry

LOGGED_PER_FILE = 3
"""Rejections of one file that are logged one by one; the rest is summed up in a line."""

_SHOWN_CHARACTERS = 80

Record = TypeVar("Record")


class MalformedRecordError(FeedDataError):
    """One record of a file is malformed. Reaction: skip it, count it under `reason`, log file and line."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class RejectionLog:
    """Counts rejections over all files of a feed.

    Attributes
    ----------
    by_reason : dict of str to int
        The feed's `rejected`; grows in place.
    """

    def __init__(self, telemetry: Telemetry = NO_TELEMETRY) -> None:
        self.by_reason: dict[str, int] = {}
        self._telemetry = telemetry

    def reject(self, file: str, line: int, error: MalformedRecordError, earlier: int) -> None:
        """Count one rejection; `earlier` is the number of those before it in the same file."""
        self.by_reason[error.reason] = self.by_reason.get(error.reason, 0) + 1
        self._telemetry.count("feed_records_rejected_total", reason=error.reason)
        if earlier < LOGGED_PER_FILE:
            logger.warning("%s:%d: skipped: %s", file, line, error)

    def summarise(self, file: str, count: int) -> None:
        """Log how many records of a file were skipped, if more than were logged one by one."""
        if count > LOGGED_PER_FILE:
            logger.warning("%s: %d records skipped in all", file, count)


def accepted(
    file: str, lines: Iterable[tuple[int, str]], parse: Callable[[str], Record], log: RejectionLog
) -> Iterator[Record]:
    """Yield the records of a file that `parse` accepts.

    Parameters
    ----------
    file : str
        As it is to be named in the log.
    lines : iterable of (int, str)
        Line numbers from 1, and the lines; blank ones are passed over in silence.
    parse : callable
        Returns a record or raises `MalformedRecordError`.
    log : RejectionLog
        Receives what was not accepted.
    """
    skipped = 0
    for number, line in lines:
        if not line.strip():
            continue
        try:
            record = parse(line)
        except MalformedRecordError as error:
            log.reject(file, number, error, skipped)
            skipped += 1
            continue
        yield record
    log.summarise(file, skipped)


def shown(text: str) -> str:
    """Return untrusted text in a form and length fit for a log line."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")
