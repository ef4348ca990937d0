"""Replays a folder of history, or the bundled sample, session by session at any speed.

It loads and validates everything when it is built, so that a bad setting stops a run before it starts; after that
`instants` only hands out slices. It never delivers a record before the instant at which it was available.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from data_pipeline.calendar import ExchangeCalendar
from data_pipeline.feeds.csv_history import BarParser
from data_pipeline.feeds.jsonl_history import parse_filing, parse_news
from data_pipeline.feeds.rejections import MalformedRecordError, RejectionLog, accepted
from data_pipeline.feeds.replay_folder import HistorySource, ReplayFolder, SourceText
from data_pipeline.feeds.sample_history import SampleHistory
from utils.clock import Clock, WallClock
from utils.errors import ConfigError
from utils.logs import logger
from utils.schema import Bar, Filing, Instant, MarketUpdate, NewsItem
from utils.telemetry import NO_TELEMETRY, Telemetry

SAMPLE = "sample"
"""The directory name that stands for the bundled history."""

_EARLIEST = "1900-01-01"
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_KINDS: dict[type, Literal["bar", "filing", "news"]] = {Bar: "bar", Filing: "filing", NewsItem: "news"}
_ORDER = {kind: place for place, kind in enumerate(_KINDS)}

Record = Bar | Filing | NewsItem
Dated = TypeVar("Dated", NewsItem, Filing)


class ReplayFeed:
    """History as a `MarketFeed`: one instant a session, at the session's close.

    Parameters
    ----------
    directory : str, Path or HistorySource
        A replay folder, or ``sample``, or whatever else hands over histories of that format.
    symbols : sequence of str, optional
        None takes all that the folder holds.
    start, end : date, optional
        First and last day to decide on; by default the first and last session of any symbol. A period that reaches
        beyond the data is cut to it, with a warning.
    calendar : str
        The exchange whose sessions count.
    speed : str or float
        Times real time, or ``max``: as fast as the instants are consumed.
    telemetry : Telemetry
        Counts rejected records.
    clock : Clock, optional
        What lies after its present is refused; the wall clock by default.

    Raises
    ------
    ConfigError
        If the folder, a symbol, the calendar or the period cannot work.
    """

    mode: Literal["live", "replay", "simulated"] = "replay"

    def __init__(
        self,
        directory: str | Path | HistorySource,
        symbols: Sequence[str] | None = None,
        start: date | None = None,
        end: date | None = None,
        calendar: str = "XNYS",
        speed: str | float = "max",
        telemetry: Telemetry = NO_TELEMETRY,
        clock: Clock | None = None,
    ) -> None:
        source = _opened(directory)
        self.name = f"{self.mode}:{source.name}"
        self.symbols = tuple(sorted({name.upper() for name in symbols} if symbols else source.symbols))
        self._speed = _parsed_speed(speed)
        self._log = RejectionLog(telemetry)
        self.rejected = self._log.by_reason
        self._closed = threading.Event()
        self._hashes: dict[str, str] = {}
        now = (clock or WallClock()).now()
        prices = {symbol: self._taken(source.prices(symbol)) for symbol in self.symbols}
        self.calendar = _calendar(calendar, prices, start, end, now)
        bars = {symbol: self._bars(symbol, prices[symbol], source.ex_close_factors, now) for symbol in self.symbols}
        self._sessions = self._period(bars, start, end)
        self._warn_of_gaps(bars)
        self._records = self._merged(source, bars, now)
        self._available = [record.available_at for record in self._records]
        self.total_instants: int | None = len(self._sessions)

    def history(self) -> Iterator[MarketUpdate]:
        """Yield what was available by the close before the first instant, in order of `available_at`."""
        yield from self._updates(0, self._first_update())

    def instants(self, after: datetime | None = None) -> Iterator[Instant]:
        """Yield one instant a session of the period, whether or not any symbol traded; ends early after `close`."""
        position = self._first_update()
        previous: datetime | None = None
        for session in self._sessions:
            at = self.calendar.close_time(session)
            if previous is not None and self._speed is not None and (after is None or at > after):
                self._closed.wait((at - previous).total_seconds() / self._speed)
            if self._closed.is_set():
                return
            end = bisect_right(self._available, at, position)
            yield Instant(at, session, tuple(self._updates(position, end)))
            position, previous = end, at

    def identity(self) -> dict[str, Any]:
        """Return period, symbols and the SHA-256 of the bytes behind every file used; not where the files lie."""
        return {
            "feed": self.mode,
            "period": [self._sessions[0].isoformat(), self._sessions[-1].isoformat()],
            "symbols": list(self.symbols),
            "data_hashes": dict(sorted(self._hashes.items())),
        }

    def close(self) -> None:
        """End `instants`, also while it waits for the next one."""
        self._closed.set()

    def _first_update(self) -> int:
        """Return the position of the first update that belongs to the first instant and not to the history."""
        before = self.calendar.close_time(self.calendar.previous(self._sessions[0]))
        return bisect_right(self._available, before)

    def _taken(self, text: SourceText) -> SourceText:
        """Note the content hash of a file that is used, and a fault of the whole file."""
        self._hashes[text.name] = text.sha256
        if text.fault:
            self._log.reject(text.place, len(text.lines) + 1, MalformedRecordError("truncated_file", text.fault), 0)
        return text

    def _bars(self, symbol: str, text: SourceText, ex_close_factors: bool, now: datetime) -> list[Bar]:
        (_, header), *rows = text.lines
        try:
            parser = BarParser(symbol, header, self.calendar, now, ex_close_factors=ex_close_factors)
        except MalformedRecordError as error:
            self._log.reject(text.place, 1, error, 0)
            return []
        return list(accepted(text.place, rows, parser.parse, self._log))

    def _period(self, bars: dict[str, list[Bar]], start: date | None, end: date | None) -> list[date]:
        """Return the sessions to decide on: those from `start` to `end` that the data span."""
        spans = [(series[0].session, series[-1].session) for series in bars.values() if series]
        if not spans and (start is None or end is None):
            raise ConfigError(f"replay_dir: {self.name} holds no valid bar of {', '.join(self.symbols)}")
        first = min((span[0] for span in spans), default=start or date.min)
        last = max((span[1] for span in spans), default=end or date.max)
        wanted = (start or first, end or last)
        chosen = (max(wanted[0], first), min(wanted[1], last))
        sessions = self.calendar.sessions(*chosen) if chosen[0] <= chosen[1] else []
        if not sessions:
            raise ConfigError(
                f"replay_start, replay_end: {wanted[0]} to {wanted[1]} holds no session with data; "
                f"the data span {first} to {last}"
            )
        if chosen != wanted:
            logger.warning("replay period cut from %s..%s to the data's %s..%s", *wanted, *chosen)
        return sessions

    def _warn_of_gaps(self, bars: dict[str, list[Bar]]) -> None:
        for symbol, series in bars.items():
            if not series:
                logger.warning("%s: no valid bar; decisions on it abstain", symbol)
            elif series[0].session > self._sessions[0]:
                logger.warning("%s: bars start on %s; decisions before abstain", symbol, series[0].session)

    def _updates(self, start: int, end: int) -> Iterator[MarketUpdate]:
        """Yield records as updates, numbered in the order of delivery; made here, since they would double the memory."""
        for number, record in enumerate(self._records[start:end], start):
            kind = _KINDS[type(record)]
            yield MarketUpdate(record.symbol, kind, record, record.event_time, record.available_at, self.name, number)

    def _merged(self, source: HistorySource, bars: dict[str, list[Bar]], now: datetime) -> list[Record]:
        """Return all records of all symbols, ordered by `available_at`, then kind, symbol and place in the file."""
        records: list[Record] = []
        for symbol in self.symbols:
            records += bars[symbol]
            records += self._dated(source.fundamentals(symbol), partial(parse_filing, symbol=symbol, now=now))
            records += self._dated(source.news(symbol), partial(parse_news, symbol=symbol, now=now))
        records.sort(key=lambda record: (record.available_at, _ORDER[type(record)]))
        return records

    def _dated(self, text: SourceText | None, parse: Callable[[str], Dated]) -> list[Dated]:
        """Return the records of a file of JSON lines in order of time, each content once."""
        if text is None:
            return []
        self._taken(text)
        seen: set[str] = set()

        def parse_once(line: str) -> Dated:
            record = parse(line)
            identity = record.item_id if isinstance(record, NewsItem) else record.filing_id
            if identity in seen:
                raise MalformedRecordError("duplicate", "the same record stands earlier in the file")
            seen.add(identity)
            return record

        return sorted(accepted(text.place, text.lines, parse_once, self._log), key=lambda record: record.available_at)


def _opened(directory: str | Path | HistorySource) -> HistorySource:
    if not isinstance(directory, str | Path):
        return directory
    return SampleHistory() if str(directory) == SAMPLE else ReplayFolder(Path(directory))


def _calendar(
    name: str, prices: dict[str, SourceText], start: date | None, end: date | None, now: datetime
) -> ExchangeCalendar:
    """Return the exchange's calendar over the period and every plausible date in the price files."""
    today = now.date().isoformat()
    texts = {text for source in prices.values() for _, line in source.lines for text in _DATE.findall(line)}
    days = [day for text in texts if _EARLIEST <= text <= today and (day := _date_or_none(text))]
    days += [day for day in (start, end) if day]
    return ExchangeCalendar(name, start=min(days, default=now.date()), end=max(days, default=now.date()))


def _date_or_none(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _parsed_speed(speed: str | float) -> float | None:
    """Return times real time, None for as fast as possible."""
    if speed == "max":
        return None
    try:
        factor = float(speed)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise ConfigError(f"replay_speed: must be max or a positive number of times real time (got {speed!r})")
    return factor
