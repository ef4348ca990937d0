"""Generated replay folders: seeded prices and news, cut, poisoned or shuffled at will.

Used by the tests of look-ahead. Says nothing about markets: what it plants is known, so that a leak or a loss shows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

from data_pipeline.calendar import ExchangeCalendar

GOOD = ("profits surge and the outlook is strong", "record growth, upgrade and a big win", "earnings beat, shares soar")
BAD = ("losses widen after a lawsuit and a downgrade", "profit warning, sales plunge", "fraud probe, shares crash")
DULL = ("the company holds its annual meeting", "a new office opens in spring")
HEADER = "Date,Open,High,Low,Close,Adj Close,Volume"


@dataclass(frozen=True)
class DayBar:
    """One row of a price file."""

    session: date
    open: float
    high: float
    low: float
    close: float
    volume: int

    def row(self) -> str:
        """The row as text; the adjusted close follows the close."""
        prices = ",".join(f"{price:.2f}" for price in (self.open, self.high, self.low, self.close, self.close))
        return f"{self.session.isoformat()},{prices},{self.volume}"


@dataclass(frozen=True)
class Article:
    """One line of a news file."""

    published_at: datetime
    text: str


@dataclass(frozen=True)
class History:
    """Prices and news by symbol, in order of time."""

    calendar: ExchangeCalendar
    bars: dict[str, list[DayBar]]
    news: dict[str, list[Article]]

    def write(self, folder: Path) -> Path:
        """Write it as a replay folder and return that."""
        for name in ("prices", "news"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for symbol, bars in self.bars.items():
            rows = "\n".join([HEADER, *(bar.row() for bar in bars)])
            (folder / "prices" / f"{symbol}.csv").write_text(rows + "\n", encoding="utf-8")
        for symbol, articles in self.news.items():
            lines = [
                json.dumps({"published_at": a.published_at.isoformat(), "symbol": symbol, "text": a.text})
                for a in articles
            ]
            (folder / "news" / f"{symbol}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return folder

    def mapped(
        self, bar: Callable[[str, DayBar], DayBar | None], article: Callable[[str, Article], Article | None]
    ) -> History:
        """Return a history with every record replaced, or left out where the replacement is None."""
        bars = {s: [new for b in rows if (new := bar(s, b)) is not None] for s, rows in self.bars.items()}
        news = {s: [new for a in rows if (new := article(s, a)) is not None] for s, rows in self.news.items()}
        return replace(self, bars=bars, news=news)


def generate(
    seed: int,
    symbols: Sequence[str],
    start: date,
    end: date,
    *,
    edge: float = 0.0,
    news_share: float = 0.4,
    volatility: float = 0.012,
) -> History:
    """Return a random history.

    Parameters
    ----------
    edge : float
        Added to the return of each of the five sessions after a good article, subtracted after a bad one (fraction).
    news_share : float
        Share of the sessions on which a symbol has an article, at 17:00 UTC, within every session's trading hours.
    volatility : float
        Daily standard deviation of a symbol's own return; the market's is half of it.
    """
    rng = random.Random(seed)
    calendar = ExchangeCalendar("XNYS", start=start - timedelta(days=30), end=end + timedelta(days=30))
    sessions = calendar.sessions(start, end)
    market = [rng.gauss(0.0002, volatility / 2) for _ in sessions]
    bars: dict[str, list[DayBar]] = {}
    news: dict[str, list[Article]] = {}
    for symbol in symbols:
        close, drift = rng.uniform(40, 120), [0.0] * (len(sessions) + 6)
        bars[symbol], news[symbol] = [], []
        for number, session in enumerate(sessions):
            opened = close * (1 + rng.gauss(0, volatility / 4))
            close = max(5.0, close * (1 + market[number] + rng.gauss(0, volatility) + drift[number]))
            high = max(opened, close) * (1 + abs(rng.gauss(0, volatility / 3)))
            low = min(opened, close) * (1 - abs(rng.gauss(0, volatility / 3)))
            volume = rng.randrange(2_000_000, 5_000_000)
            bars[symbol].append(
                DayBar(session, round(opened, 2), round(high, 2), round(low, 2), round(close, 2), volume)
            )
            if rng.random() < news_share:
                tone = rng.choice((1, 1, -1, -1, 0))
                words = rng.choice({1: GOOD, -1: BAD, 0: DULL}[tone])
                published = datetime.combine(session, time(17), UTC) + timedelta(seconds=rng.randrange(0, 600))
                news[symbol].append(Article(published, f"{words} ({symbol} {number})"))
                for later in range(number + 1, number + 6):
                    drift[later] += tone * edge
    return History(calendar, bars, news)


def truncated(history: History, t: datetime) -> History:
    """Return what was there at `t` and nothing later."""

    def bar(_: str, bar: DayBar) -> DayBar | None:
        return bar if history.calendar.close_time(bar.session) <= t else None

    return history.mapped(bar, lambda _, article: article if article.published_at <= t else None)


def poisoned(history: History, t: datetime, seed: int) -> History:
    """Return the same up to `t`, then absurd prices, volumes and news."""
    rng = random.Random(seed)

    def bar(_: str, bar: DayBar) -> DayBar:
        if history.calendar.close_time(bar.session) <= t:
            return bar
        price = 10 ** rng.uniform(-1, 6)
        return DayBar(
            bar.session, round(price, 2), round(price * 3, 2), 0.01, round(price * 2, 2), rng.randrange(1, 10**12)
        )

    def article(_: str, article: Article) -> Article:
        return article if article.published_at <= t else replace(article, text=rng.choice((*GOOD, *BAD)) * 20)

    return history.mapped(bar, article)


def with_shuffled_news(history: History, seed: int) -> History:
    """Return the same articles on other days and of other symbols: same words, same times, no meaning."""
    rng = random.Random(seed)
    texts = [article.text for articles in history.news.values() for article in articles]
    rng.shuffle(texts)
    return history.mapped(lambda _, bar: bar, lambda _, article: replace(article, text=texts.pop()))
