"""The searches of the library's benchmark: each filter, what it asks of a query, and the exact answer to hold results against.

One description serves every contender: as keyword arguments of the library, as SQL, as triples for peers. Called by
the section `library`; knows no database.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.library_data import AGENTS, RECOMMENDATIONS, REGIMES, SYMBOLS, Experiences

LIMIT = 10
HIGH_REWARD_PERCENTILE = 99
"""One row in a hundred has a reward as high as the filter `reward` asks for."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a search lets through; None does not filter."""

    agent_type: str | None = None
    market_regime: str | None = None
    symbol: str | None = None
    recommendation: str | None = None
    success: bool | None = None
    min_reward: float | None = None
    matured_before: float | None = None  # epoch seconds

    def mask(self, data: Experiences) -> NDArray[np.bool_]:
        """Return which rows are let through."""
        allowed = np.ones(len(data), dtype=bool)
        for wanted, labels, column in (
            (self.agent_type, AGENTS, data.agent),
            (self.market_regime, REGIMES, data.regime),
            (self.symbol, SYMBOLS, data.symbol),
            (self.recommendation, RECOMMENDATIONS, data.recommendation),
        ):
            if wanted is not None:
                allowed &= column == labels.index(wanted)
        if self.success is not None:
            allowed &= data.success == self.success
        if self.min_reward is not None:
            allowed &= data.reward >= self.min_reward
        if self.matured_before is not None:
            allowed &= data.matured < self.matured_before
        return allowed

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `find_similar_trajectories`."""
        given = {
            "agent_type": self.agent_type,
            "market_regime": self.market_regime,
            "symbol": self.symbol,
            "recommendation": self.recommendation,
            "success": self.success,
            "min_reward": self.min_reward,
            "as_of": None if self.matured_before is None else datetime.fromtimestamp(self.matured_before, UTC),
        }
        return {name: value for name, value in given.items() if value is not None}

    def triples(self) -> list[tuple[str, str, Any]]:
        """Return (field, operator, value) with operators ``eq``, ``gte`` and ``lt``; a truth value is 0 or 1."""
        equal = ("agent_type", "market_regime", "symbol", "recommendation")
        found: list[tuple[str, str, Any]] = [
            (name, "eq", getattr(self, name)) for name in equal if getattr(self, name) is not None
        ]
        if self.success is not None:
            found.append(("success", "eq", int(self.success)))
        if self.min_reward is not None:
            found.append(("reward", "gte", self.min_reward))
        if self.matured_before is not None:
            found.append(("matured", "lt", self.matured_before))
        return found

    def sql(self) -> tuple[str, list[Any]]:
        """Return a condition on the columns of table trajectory_embeddings, and its parameters."""
        operators = {"eq": "=", "gte": ">=", "lt": "<"}
        terms, parameters = [], []
        for name, operator, value in self.triples():
            if name == "matured":
                name, value = "matured_at", datetime.fromtimestamp(value, UTC)
            elif name == "success":
                value = bool(value)
            terms.append(f"{name} {operators[operator]} %s")
            parameters.append(value)
        return " AND ".join(terms) or "true", parameters


@dataclass(frozen=True)
class Filter:
    """A filter by its name, and what it asks for one query."""

    name: str
    of: Callable[[int], Conditions]


def filters(data: Experiences, queries: Experiences) -> list[Filter]:
    """Return the filters; queries are numbered, their labels decide what is "own" and what is not."""
    high = float(np.percentile(data.reward, HIGH_REWARD_PERCENTILE))
    half = float(np.median(data.matured))

    def agent(q: int, shift: int = 0) -> str:
        return AGENTS[(queries.agent[q] + shift) % len(AGENTS)]

    def regime(q: int, shift: int = 0) -> str:
        return REGIMES[(queries.regime[q] + shift) % len(REGIMES)]

    return [
        Filter("none", lambda q: Conditions()),
        Filter("own agent", lambda q: Conditions(agent_type=agent(q))),
        Filter("other agent", lambda q: Conditions(agent_type=agent(q, 1 + q % 9))),
        Filter("own regime", lambda q: Conditions(market_regime=regime(q))),
        Filter("other regime", lambda q: Conditions(market_regime=regime(q, 1 + q % 9))),
        Filter("symbol", lambda q: Conditions(symbol=SYMBOLS[queries.symbol[q]])),
        Filter("reward, top 1 %", lambda q: Conditions(min_reward=high)),
        Filter("success + action", lambda q: Conditions(success=True, recommendation=RECOMMENDATIONS[q % 3])),
        Filter("as of half-time", lambda q: Conditions(matured_before=half)),
        Filter(
            "combined",
            lambda q: Conditions(
                agent_type=agent(q), market_regime=regime(q, 1 + q % 9), success=True, matured_before=half
            ),
        ),
    ]


def distances(data: Experiences, queries: Experiences) -> NDArray[np.float32]:
    """Return the cosine distance of each query to each row, shape (queries, rows)."""
    return np.float32(1) - queries.vectors @ data.vectors.T
