"""Searches of the library beside raw SQL and beside peers: time, and recall against the exact answer.

Called by the section `library` on filled databases; contenders of one process take turns query by query.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.library_cases import LIMIT, Conditions, Filter
from benchmarks.library_data import Experiences, row_of
from benchmarks.measure import percentile, recall
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres

ENOUGH_RECALL = 0.98
_WARM_UP = 3

Search = Callable[[list[float], Conditions], Sequence[int]]


@dataclass(frozen=True)
class Answers:
    """One contender's answers to one filter: a time (ms) and the rows found, for each query."""

    ms: list[float] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Figures:
    """What is printed of them: milliseconds, and mean recall@10."""

    p50_ms: float
    p99_ms: float
    recall: float


class Truth:
    """The exact answers, from the distances of each query to each row."""

    def __init__(self, data: Experiences, distances: NDArray[np.float32], cases: Sequence[Filter]) -> None:
        self._distances = distances
        self._cases = {case.name: case for case in cases}
        self._data = data
        self._mask: tuple[Conditions | None, NDArray[np.bool_]] = (None, np.ones(0, dtype=bool))

    def figures(self, name: str, answers: Answers) -> Figures:
        """Judge one contender's answers to the filter of that name."""
        found = [
            recall(rows, self._distances[query], self._allowed(self._cases[name].of(query)), LIMIT)
            for query, rows in enumerate(answers.rows)
        ]
        return Figures(percentile(answers.ms, 50), percentile(answers.ms, 99), float(np.mean(found)))

    def share(self, name: str) -> float:
        """Return the mean share of the rows that the filter lets through."""
        shares = [self._allowed(self._cases[name].of(query)).mean() for query in range(len(self._distances))]
        return float(np.mean(shares))

    def _allowed(self, conditions: Conditions) -> NDArray[np.bool_]:
        if self._mask[0] != conditions:
            self._mask = (conditions, conditions.mask(self._data))
        return self._mask[1]


def library_search(library: ExperienceLibraryPostgres) -> Search:
    """Return the library's search as the others are called."""

    def search(embedding: list[float], conditions: Conditions) -> list[int]:
        found = library.find_similar_trajectories(embedding, limit=LIMIT, **conditions.arguments())
        return [row_of(item.trajectory_id) for item, _ in found]

    return search


def run_searches(
    contenders: Mapping[str, Search], cases: Sequence[Filter], queries: Experiences, progress: Callable[[str], None]
) -> dict[str, dict[str, Answers]]:
    """Ask every contender every query under every filter, in a new random order each time; return filter, contender, answers.

    Each is asked twice in a row and the second time counts: the raw methods share one set of tables, so that each would
    find in memory what another has just read, which nobody does for the library.
    """
    order = random.Random(1)
    embeddings = [[float(value) for value in vector] for vector in queries.vectors]
    results: dict[str, dict[str, Answers]] = {}
    for case in cases:
        progress(f"searching, filter {case.name}")
        answers = {name: Answers() for name in contenders}
        for query in range(-_WARM_UP, len(embeddings)):
            names = list(contenders)
            order.shuffle(names)
            for name in names:
                contenders[name](embeddings[query], case.of(query % len(embeddings)))
                began = time.perf_counter()
                rows = contenders[name](embeddings[query], case.of(query % len(embeddings)))
                elapsed = time.perf_counter() - began
                if query >= 0:
                    answers[name].ms.append(elapsed * 1e3)
                    answers[name].rows.append(list(rows))
        results[case.name] = answers
    return results


def best_raw(figures: Mapping[str, Figures]) -> str:
    """Return the fastest of the raw methods that finds enough; ValueError if none does."""
    enough = [name for name, found in figures.items() if found.recall >= ENOUGH_RECALL]
    if not enough:
        raise ValueError("no raw method reaches the recall that is asked for")
    return min(enough, key=lambda name: figures[name].p50_ms)
