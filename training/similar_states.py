"""Finds states that are alike, and what came of them: one outcome is nearly all luck, those of its like say what to expect.

On daily data the standard deviation of an outcome is many times the edge there is to learn. Fine-tuning corrects examples by
it, reinforcement learning rewards by it; both on outcomes of their training period alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from agents.policies.local.states import COMMON, FIELDS, Scale, state_values
from utils.schema.market import FloatArray

NEIGHBOURS = 256
"""States that are looked at together, where there are enough."""

NEWEST = 20_000
"""Decisions that one training looks at: the newest, since markets change and memory is finite."""

LARGEST_SHARE = 1 / 8
"""Of all states, that are taken as like one at most: beyond it every state would be told the same."""

_CHUNK = 256


def nearest(
    agent_type: str, states: Sequence[str], asked: Sequence[int], neighbours: int = NEIGHBOURS
) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield for each state that is asked for its number and the numbers of those nearest to it, itself first.

    Parameters
    ----------
    agent_type : str
        Whose states they are.
    states : sequence of str
        All that may be neighbours.
    asked : sequence of int
        Numbers of states.
    neighbours : int
        How many, the state itself included; at most `LARGEST_SHARE` of all, at least 1.

    Notes
    -----
    Euclidean, numbers standardised over all states, a label as far from another as two standard deviations, what is
    unknown at the mean. Ties go to the older.
    """
    count = max(1, min(neighbours, int(len(states) * LARGEST_SHARE)))
    places = _places(agent_type, states)
    squared = (places**2).sum(axis=1)
    for begin in range(0, len(asked), _CHUNK):
        chunk = list(asked[begin : begin + _CHUNK])
        # rounded, so that equal states are equally far whatever the order of a sum was
        distances = np.round(squared[chunk, None] - 2 * places[chunk] @ places.T + squared[None, :], 9)
        distances[np.arange(len(chunk)), chunk] = -1.0
        yield from zip(chunk, np.argsort(distances, axis=1, kind="stable")[:, :count], strict=True)


def _places(agent_type: str, states: Sequence[str]) -> FloatArray:
    """Return where each state lies, shape (states, dimensions)."""
    stated = [state_values(state) for state in states]
    columns: list[FloatArray] = []
    for name, field in {**FIELDS[agent_type], **COMMON}.items():
        if isinstance(field, Scale):
            values = np.array([float(values.get(name, "nan")) for values in stated])
            known = values[~np.isnan(values)]
            if len(known) and np.ptp(known) > 0:  # of equal values the deviation is rounding, and not always 0
                columns.append(np.nan_to_num((values - known.mean()) / known.std()))
        else:
            said = [values.get(name) for values in stated]
            columns += [np.sqrt(2.0) * np.array([word == choice for word in said]) for choice in field.choices]
    return np.column_stack(columns) if columns else np.zeros((len(states), 1))
