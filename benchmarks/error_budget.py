"""The error budget over gates: what a year of gates finds, and what it promotes without reason, by what a gate waits for.

Simulated years of session differences (moving sums over a horizon of 5, one standard deviation each), gates on the newest 60
sessions with the bound of the gate itself. An edge is in those standard deviations; it is there from the start of the year, or
from a random session of its first 200.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import few_blocks_factor, overlap_factor
from training.error_budget import LARGEST_ALPHA, YEAR, GateSpending, next_alpha

BUDGET = 0.05
YEARS = 20_000
SESSIONS, HELD_OUT, BLOCK, HORIZON, EVERY = 252, 60, 20, 5, 5
EDGES = (0.4, 0.7, 1.0)
LATEST_START = 200
RULES: dict[str, float | None] = {"no budget": None, "B / 100": 0.01, "B / 20": 0.05, "B / 10": 0.1, "B / 5": 0.2}
START = datetime(2014, 1, 1, tzinfo=UTC)


def schedule(least_share: float | None) -> list[tuple[int, float]]:
    """Return session and alpha of each gate of a year; without a budget each spends the largest."""
    spent: list[GateSpending] = []
    for session in range(0, SESSIONS, EVERY):
        at = START + session / SESSIONS * YEAR
        alpha = LARGEST_ALPHA if least_share is None else next_alpha(BUDGET, spent, at, least_share)
        if alpha > 0:
            spent.append(GateSpending(at, alpha))
    return [(round((item.at - START) / YEAR * SESSIONS), item.alpha) for item in spent]


@dataclass(frozen=True, slots=True)
class Looks:
    """What the gate's bootstrap says of each simulated year at one session: mean and standard deviation of the mean."""

    mean: NDArray[np.float64]
    error: NDArray[np.float64]

    @classmethod
    def at(cls, differences: NDArray[np.float64], session: int) -> Looks:
        """Look at the newest sessions; an edge in all of them would add to the mean and leave the deviation as it is."""
        window = differences[:, session : session + HELD_OUT]
        sums = np.cumsum(np.pad(np.concatenate([window, window[:, :BLOCK]], axis=1), ((0, 0), (1, 0))), axis=1)
        blocks = (sums[:, BLOCK : BLOCK + HELD_OUT] - sums[:, :HELD_OUT]) / BLOCK
        # the bootstrap's own variance: of the mean of n/block circular blocks
        return cls(window.mean(axis=1), np.sqrt(blocks.var(axis=1) / (HELD_OUT / BLOCK)))


def promoted_at(
    looks: Mapping[int, Looks], gates: list[tuple[int, float]], edge: float, begins: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the session of each year's first promotion, -1 without one; a gate's candidate has the edge once it has begun."""
    found = np.full(len(begins), -1)
    for session, alpha in gates:
        look, level = looks[session], 1 - alpha
        factor = overlap_factor(HORIZON, BLOCK) * few_blocks_factor(HELD_OUT, BLOCK, level)
        bound = look.mean + np.where(begins <= session, edge, 0.0) - factor * NormalDist().inv_cdf(level) * look.error
        found[(bound > 0) & (found < 0)] = session
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Print and return the figures of every rule."""
    rng = np.random.default_rng(1)
    noise = np.cumsum(rng.standard_normal((YEARS, SESSIONS + HELD_OUT + HORIZON)), axis=1)
    differences = (noise[:, HORIZON:] - noise[:, :-HORIZON]) / math.sqrt(HORIZON)
    late = rng.integers(0, LATEST_START + 1, YEARS)
    early = np.zeros(YEARS, dtype=np.int64)
    schedules = {name: schedule(least_share) for name, least_share in RULES.items()}
    looked_at = sorted({session for gates in schedules.values() for session, _ in gates})
    looks = {session: Looks.at(differences, session) for session in looked_at}
    figures: dict[str, Any] = {}
    print(
        f"\nerror budget {BUDGET:g} a year, {YEARS:,} simulated years; chance of a promotion / sessions served better"
    )
    print("waits below  gates  without edge  " + "  ".join(f"edge {e:g} early  edge {e:g} late" for e in EDGES))
    for name, gates in schedules.items():
        row: dict[str, Any] = {"gates": len(gates), "spent": math.fsum(alpha for _, alpha in gates)}
        row["without edge"] = float((promoted_at(looks, gates, 0.0, early) >= 0).mean())
        for edge in EDGES:
            for when, begins in (("early", early), ("late", late)):
                at = promoted_at(looks, gates, edge, begins)
                good = (at >= begins) & (at >= 0)
                row[f"edge {edge:g} {when}"] = float(good.mean()), float(np.where(good, SESSIONS - at, 0).mean())
        figures[name] = row
        cells = (f"{chance:.2f} / {served:5.1f}  " for key, value in row.items() if key.startswith("edge") for chance, served in [value])  # fmt: skip
        print(f"{name:11}  {len(gates):5}  {row['without edge']:12.3f}  " + "  ".join(cells))
    return figures
