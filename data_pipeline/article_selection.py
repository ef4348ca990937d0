"""Which of the articles that are known say anything about a symbol, and how an article is quoted in one line.

The news agent reads what is selected here, and whoever checks its sentiment holds it against the same articles.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from operator import attrgetter

from utils.schema import NewsItem

MAX_AGE = timedelta(days=30)
"""Bound on what is read, beyond which an article has no weight; the snapshot usually holds the last seven days."""

MAX_ITEMS = 100
"""Newest items that are read; more add time, not information."""

_HEADLINE_CHARS, _HEADLINE_LIMIT, _HEADLINE_SHARE = 280, 1000, 0.6


def usable_articles(news: Sequence[NewsItem], symbol: str, as_of: datetime) -> list[NewsItem]:
    """Return the articles about a symbol that can be read, newest first, each text once, at most `MAX_ITEMS`."""
    usable: list[NewsItem] = []
    seen: set[str] = set()
    for item in sorted(news, key=attrgetter("available_at"), reverse=True):
        if len(usable) == MAX_ITEMS:
            break
        text = item.text
        # a text that is repeated word for word is one opinion, however often it is passed on
        if as_of - item.event_time > MAX_AGE or text in seen or (item.tickers and symbol not in item.tickers):
            continue
        if not (text if text.isprintable() else headline(text)).strip():
            continue
        seen.add(text)
        usable.append(item)
    return usable


def headline(text: str) -> str:
    """Return the text in one line without control characters, long ones cut at a word: enough of it to be recognised."""
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
    text = " ".join(text.split())
    limit = min(_HEADLINE_LIMIT, max(_HEADLINE_CHARS, int(_HEADLINE_SHARE * len(text))))
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0]
