"""Splits experiences by time into what may be trained on and what the gate will look at, purged and embargoed.

Pure functions over matured trajectories. Nothing of the held-out period, nor of the horizon before it, is ever in the
training part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from data_pipeline.library.trajectories import Trajectory


@dataclass(frozen=True, slots=True)
class Split:
    """Training part and held-out part, each in order of time.

    `train_end` is the last instant at which a training outcome may have matured (exclusive): the purge by a horizon
    and the embargo of another lie between it and the first held-out decision.
    """

    train: tuple[Trajectory, ...]
    holdout: tuple[Trajectory, ...]
    train_end: datetime | None

    @property
    def holdout_sessions(self) -> int:
        """Number of distinct instants in the held-out part."""
        return len({row.as_of for row in self.holdout})


def split_by_time(rows: Sequence[Trajectory], min_sessions: int, min_decisions: int, horizon_sessions: int) -> Split:
    """Hold out the latest sessions that suffice for a verdict.

    Parameters
    ----------
    rows : sequence of Trajectory
        Matured; any order.
    min_sessions, min_decisions : int
        The held-out part grows backwards until it has both; if all rows do not suffice, it is all of them.
    horizon_sessions : int
        A decision's outcome is known that many sessions later; the embargo is as long again.
    """
    instants = sorted({row.as_of for row in rows if row.as_of is not None})
    counts = dict.fromkeys(instants, 0)
    for row in rows:
        if row.as_of is not None:
            counts[row.as_of] += 1
    first, decisions = len(instants), 0
    while first > 0 and (len(instants) - first < min_sessions or decisions < min_decisions):
        first -= 1
        decisions += counts[instants[first]]
    ordered = sorted(rows, key=lambda row: (row.as_of or datetime.min, row.symbol))
    holdout = tuple(
        row for row in ordered if first < len(instants) and row.as_of is not None and row.as_of >= instants[first]
    )
    last_embargoed = first - horizon_sessions
    if last_embargoed <= 0 or last_embargoed >= len(instants):
        return Split((), holdout, None)
    train_end = instants[last_embargoed]
    train = tuple(row for row in ordered if row.matured_at is not None and row.matured_at < train_end)
    return Split(train, holdout, train_end)
