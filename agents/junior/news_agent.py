"""The news analyst's seat: dated articles in, a `NewsOutput` out, whatever policy thinks.

The coordinator calls `decide_many`, people call `analyze`, with articles of their own if they like. An article from after
the decision time is a fault, never an input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from agents.base_agent import NO_BARS, Agent, Variation, narrowed
from agents.policies.base import PolicyRequest
from data_pipeline.features import regime_inputs
from utils.clock import ensure_utc
from utils.errors import LookAheadError
from utils.hashing import content_hash, sha256_hex
from utils.schema import AgentOutput, AgentType, MarketSnapshot, NewsItem


class NewsAgent(Agent):
    """Sentiment and events."""

    agent_type: AgentType = "news"

    def analyze(
        self,
        symbol: str,
        news_articles: Sequence[NewsItem | Mapping[str, Any]] | None = None,
        lookback_days: int = 7,
        *,
        as_of: datetime | None = None,
    ) -> AgentOutput:
        """Analyse one symbol.

        Parameters
        ----------
        symbol : str
        news_articles : sequence, optional
            In place of the snapshot's: `NewsItem`, or mappings with `published_at` (datetime or ISO 8601 with a zone)
            and `text` (or `headline`), optionally `source`. They suffice: an agent without market data can read them.
        lookback_days : int
            Older articles are left out; a snapshot holds no more than seven days.
        as_of : datetime, optional
            Decision time; None is the latest instant of the data, or the newest article's.

        Raises
        ------
        ValueError
            If an article has no text or no time with a zone, or `lookback_days` is not positive.
        LookAheadError
            If an article is younger than the decision time.
        """
        if lookback_days < 1:
            raise ValueError(f"lookback_days must be at least 1, got {lookback_days}")
        lookback = timedelta(days=lookback_days)
        if news_articles is None:
            return self._ask(symbol, as_of, lambda snapshot: self.request(_reading(snapshot, snapshot.news, lookback)))
        articles = [_article(article, symbol.upper()) for article in news_articles]
        if self._snapshots is None and (as_of is not None or articles):
            at = ensure_utc(as_of) if as_of else max(article.available_at for article in articles)
            snapshot = _without_market(symbol.upper(), at)
            return self.decide_many([self.request(_reading(snapshot, articles, lookback))])[0]
        return self._ask(symbol, as_of, lambda snapshot: self.request(_reading(snapshot, articles, lookback)))

    def variation(self, request: PolicyRequest, known: MarketSnapshot) -> Variation | None:
        """Return the question over twice the days of news, as far as `known` goes; else as for any agent."""
        read, all_known = request.snapshot.news, known.news
        if len(read) < len(all_known):
            as_of = request.snapshot.as_of
            days = 2 * max(1, math.ceil((as_of - read[0].available_at) / timedelta(days=1))) if read else 2
            wider = _reading(request.snapshot, all_known, timedelta(days=days))
            if len(wider.news) > len(read):
                return Variation(replace(request, snapshot=wider), f"news of {days} days")
        return super().variation(request, known)


def _reading(snapshot: MarketSnapshot, articles: Sequence[NewsItem], lookback: timedelta) -> MarketSnapshot:
    """Return the snapshot with these articles as far as they lie within the look-back."""
    late = [article for article in articles if article.available_at > snapshot.as_of]
    if late:
        raise LookAheadError(
            f"article {late[0].item_id} of {late[0].available_at.isoformat()} is not known at {snapshot.as_of.isoformat()}"
        )
    news = tuple(
        sorted(
            (article for article in articles if article.available_at > snapshot.as_of - lookback),
            key=lambda article: (article.available_at, article.item_id),
        )
    )
    if news == snapshot.news:
        return snapshot
    return narrowed(snapshot, f"news:{','.join(article.item_id for article in news)}", news=news)


def _article(article: NewsItem | Mapping[str, Any], symbol: str) -> NewsItem:
    if isinstance(article, NewsItem):
        return article
    text = article.get("text") or article.get("headline")
    published = article.get("published_at")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("news_articles: an article needs a text (or headline)")
    if isinstance(published, str):
        published = datetime.fromisoformat(published)
    if not isinstance(published, datetime):
        raise ValueError(f"news_articles: published_at must be a time with a zone, got {published!r}")
    published = ensure_utc(published)
    item_id = sha256_hex(f"{symbol}\x1f{published.isoformat()}\x1f{text}")[:16]
    tickers = tuple(str(ticker).upper() for ticker in article.get("tickers") or ())
    return NewsItem(item_id, symbol, text, published, published, str(article.get("source") or "given"), tickers)


def _without_market(symbol: str, at: datetime) -> MarketSnapshot:
    """Return a snapshot that knows of no market, for articles alone."""
    inputs = regime_inputs(NO_BARS)
    digest = content_hash({"symbol": symbol, "as_of": at.isoformat(), "bars": 0})
    return MarketSnapshot(symbol, at, at.date(), NO_BARS, (), (), inputs, True, digest)
