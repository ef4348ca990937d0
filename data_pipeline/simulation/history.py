"""Writes a simulated market in the replay format, as text in memory: what the feed reads is what the export stores.

It holds no expected return, signal or regime: those never reach an agent.
"""

from __future__ import annotations

import json
from datetime import timedelta

from data_pipeline.feeds.csv_history import COLUMNS
from data_pipeline.feeds.replay_folder import SourceText, text_lines, unknown_symbol
from data_pipeline.simulation.calibration import QUARTER
from data_pipeline.simulation.generator import SimulatedMarket
from data_pipeline.simulation.headlines import sentence
from data_pipeline.simulation.schedule import stream
from utils.hashing import sha256_hex

SOURCE = "simulation"
_MAX_ARTICLES = 5
_FILED_AFTER_OPEN = timedelta(minutes=30)
_BEFORE_CLOSE = timedelta(minutes=10)
_PERIOD_ENDED_BEFORE = timedelta(days=QUARTER // 2)


class SimulatedHistory:
    """A `HistorySource` of a generated market."""

    ex_close_factors = False

    def __init__(self, market: SimulatedMarket) -> None:
        self.name = f"seed {market.scenario.seed}"
        self.symbols = market.scenario.symbols
        self._market = market

    def prices(self, symbol: str) -> SourceText:
        """Return the price file: prices to four decimals, no splits and no dividends."""
        column = self._column(symbol)
        paths = self._market.paths
        rows = [",".join(COLUMNS)]
        for row, session in enumerate(self._market.sessions):
            open_, high, low, close = (
                f"{float(values[row, column]):.4f}" for values in (paths.open, paths.high, paths.low, paths.close)
            )
            rows.append(f"{session},{open_},{high},{low},{close},{close},{int(paths.volume[row, column])}")
        return _text(f"prices/{symbol}.csv", rows)

    def news(self, symbol: str) -> SourceText:
        """Return the news file: articles within the sessions, in order of time."""
        column = self._column(symbol)
        market = self._market
        draws = stream(market.scenario.seed, "articles", symbol).random((len(market.sessions), _MAX_ARTICLES, 2))
        rows = []
        for row, session in enumerate(market.sessions):
            opened = market.calendar.open_time(session)
            seconds = (market.calendar.close_time(session) - _BEFORE_CLOSE - opened).total_seconds()
            count, tone = int(market.paths.articles[row, column]), int(market.paths.tone[row, column])
            for place, (moment, choice) in enumerate(sorted(draws[row, :count].tolist())):
                published = opened + timedelta(seconds=int(moment * seconds))
                text = sentence(symbol, tone, choice, row, place)
                rows.append(_json(published_at=published.isoformat(), symbol=symbol, text=text, source=SOURCE))
        return _text(f"news/{symbol}.jsonl", rows)

    def fundamentals(self, symbol: str) -> SourceText:
        """Return the file of filings, which begins before the first session."""
        market = self._market
        filings = market.paths.filings[self._column(symbol)]
        rows = []
        for number, metrics in zip(filings.sessions.tolist(), filings.metrics, strict=True):
            if number >= len(market.sessions):
                break
            session = market.filing_session(number)
            filed = market.calendar.open_time(session) + _FILED_AFTER_OPEN
            ended = (session - _PERIOD_ENDED_BEFORE).isoformat()
            rows.append(_json(filed_at=filed.isoformat(), period_end=ended, metrics=metrics, source=SOURCE))
        return _text(f"fundamentals/{symbol}.jsonl", rows)

    def _column(self, symbol: str) -> int:
        if symbol not in self.symbols:
            raise unknown_symbol(symbol, self.symbols, "the scenario does not generate it")
        return self.symbols.index(symbol)


def _json(**record: object) -> str:
    return json.dumps(record, separators=(", ", ": "))


def _text(name: str, rows: list[str]) -> SourceText:
    content = "".join(f"{row}\n" for row in rows)
    data = content.encode()
    return SourceText(name, f"{SOURCE}/{name}", sha256_hex(data), text_lines(data))


def written(text: SourceText) -> str:
    """Return the content of a file, byte for byte what its hash is of."""
    return "\n".join(line for _, line in text.lines)
