"""Chooses among examples so that no state, regime or action fills a data set by itself. Pure functions, no randomness."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def without_duplicates(items: Iterable[T], key: Callable[[T], Hashable]) -> list[T]:
    """Return the first item of each key, in order."""
    seen: set[Hashable] = set()
    return [item for item in items if (k := key(item)) not in seen and not seen.add(k)]  # type: ignore[func-returns-value]


def balanced(items: Sequence[T], limit: int, cell: Callable[[T], Hashable]) -> list[T]:
    """Return at most `limit` items, as evenly over the cells as these allow; within a cell the first ones.

    The cells are served in turns: a small one is taken whole and what it leaves goes to the others.
    """
    cells: dict[Hashable, list[T]] = {}
    for item in items:
        cells.setdefault(cell(item), []).append(item)
    queues = [cells[name] for name in sorted(cells, key=repr)]
    chosen: list[T] = []
    for place in range(max(map(len, queues), default=0)):
        for queue in queues:
            if len(chosen) >= limit:
                return chosen
            if place < len(queue):
                chosen.append(queue[place])
    return chosen
