"""Splits experiences by time into what may be trained on and what the gate will look at, purged and embargoed.

Pure functions over tallies by session: whether it is time to train is asked at every instant, and must not read the
experiences themselves. Nothing of the held-out period, nor of the horizon before it, is ever in the training part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from data_pipeline.library.outcomes import SessionTally


@dataclass(frozen=True, slots=True)
class Split:
    """Where training ends and the held-out part begins.

    Attributes
    ----------
    train_end : datetime or None
        Outcomes that matured before it may be trained on: the purge by a horizon and the embargo of another lie between
        it and the first held-out decision. None where nothing is left to train on.
    holdout_start : datetime or None
        Decisions from it on are held out.
    holdout_sessions, holdout_decisions : int
        What the held-out part has.
    """

    train_end: datetime | None
    holdout_start: datetime | None
    holdout_sessions: int
    holdout_decisions: int


def split_by_time(
    tallies: Sequence[SessionTally], min_sessions: int, min_decisions: int, horizon_sessions: int
) -> Split:
    """Hold out the latest sessions that suffice for a verdict.

    Parameters
    ----------
    tallies : sequence of SessionTally
        Matured calls by session, oldest first.
    min_sessions, min_decisions : int
        The held-out part grows backwards until it has both; if all sessions do not suffice, it is all of them.
    horizon_sessions : int
        A decision's outcome is known that many sessions later; the embargo is as long again.
    """
    first, decisions = len(tallies), 0
    while first > 0 and (len(tallies) - first < min_sessions or decisions < min_decisions):
        first -= 1
        decisions += tallies[first].decisions
    if first == len(tallies):
        return Split(None, None, 0, 0)
    last_embargoed = first - horizon_sessions
    train_end = tallies[last_embargoed].as_of if last_embargoed > 0 else None
    return Split(train_end, tallies[first].as_of, len(tallies) - first, decisions)


def usable_calls(
    tallies: Sequence[SessionTally], split: Split, since: datetime | None, count: Callable[[SessionTally], int]
) -> int:
    """Return how many calls of the training part count whose outcome matured at or after `since`."""
    return sum(
        count(tally)
        for tally in tallies
        if split.train_end is not None
        and tally.matured_at < split.train_end
        and (since is None or tally.matured_at >= since)
    )
