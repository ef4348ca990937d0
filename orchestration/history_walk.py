"""One walk over a replay's history: session after session, the market as of each close.

The comparison of policies and the benchmarks step through time with it. It decides nothing, and hands out no view of an
instant before everything that was available then has been added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime

from data_pipeline.asof_store import AsOfStore, AsOfView
from data_pipeline.feeds.replay import ReplayFeed


@dataclass(frozen=True, slots=True)
class SessionClose:
    """A session's close: when it was, and the market as of then."""

    session: date
    at: datetime
    view: AsOfView


def walk(feed: ReplayFeed, store: AsOfStore | None = None) -> Iterator[SessionClose]:
    """Yield the closes of a feed's period in order of time.

    Parameters
    ----------
    feed : ReplayFeed
        What lies before its period is known at the first close already.
    store : AsOfStore, optional
        Where the updates go. A caller that adds records of its own, available at a close, gives one; the view of that
        close then shows them.
    """
    store = AsOfStore(feed.calendar) if store is None else store
    for update in feed.history():
        store.add(update)
    for instant in feed.instants():
        for update in instant.updates:
            store.add(update)
        yield SessionClose(instant.session, instant.at, store.as_of(instant.at))
