"""Calibrated probabilities in the daemon: what each opinion was given is what had matured by then says, killed or not.

Real processes and a real embedded database; about a minute and a half on a busy machine.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from daemon_runner import Daemon, Stored, lines, new_home, query, run_to_end, stored
from scipy.optimize import isotonic_regression

pytestmark = pytest.mark.timeout(280)

PERIOD = ("--feed", "replay", "--replay_start", "2010-03-01", "--replay_end", "2010-09-10", "--enable_streaming")
KILLED_AT = (330, 375)
"""Decisions after which the daemon is killed: once when the first probabilities have appeared, and later among them."""


@dataclass(frozen=True)
class Call:
    """An opinion with what was said of it and what came of it, as stored."""

    as_of: datetime
    agent_type: str
    policy: str
    is_hold: bool
    confidence: float
    p_correct: float | None
    matured_at: datetime | None
    success: bool | None

    @property
    def kind(self) -> tuple[str, str, bool]:
        """Calls of one kind share a curve."""
        return self.agent_type, self.policy, self.is_hold


@dataclass(frozen=True)
class Left:
    """What a run leaves."""

    decisions: bytes
    stored: Stored
    calls: list[Call]


def left_in(home: Path) -> Left:
    rows = query(
        home / "data",
        "SELECT as_of, agent_type, policy, recommendation = 'hold', (workflow_trace->'output'->>'confidence')::float8, "
        "(workflow_trace->'output'->>'p_correct')::float8, matured_at, success FROM trajectories WHERE NOT abstained "
        'ORDER BY as_of, symbol COLLATE "C", agent_type',
    )
    return Left((home / "decisions.jsonl").read_bytes(), stored(home / "data"), [Call(*row) for row in rows])


def flags(home: Path) -> tuple[str, ...]:
    return (*PERIOD, "--exit_when_done", "--decisions_jsonl", str(home / "decisions.jsonl"))


def finish(home: Path) -> Left:
    ended = run_to_end(home, *flags(home))
    assert ended.exit_code == 0, ended.stderr
    return left_in(home)


@pytest.fixture(scope="module")
def uninterrupted() -> Iterator[Left]:
    with new_home() as home:
        yield finish(home)


def expected(call: Call, earlier: list[Call]) -> float | None:
    """Return the probability by an independent isotonic regression on whole percents, `earlier` sorted by percent."""
    if len(earlier) < 200:
        return None
    percents = [np.floor(known.confidence * 100 + 0.5) for known in earlier]
    values, index = np.unique(percents, return_inverse=True)
    weights = np.bincount(index)
    rates = np.bincount(index, weights=[bool(known.success) for known in earlier]) / weights
    fitted = isotonic_regression(rates, weights=weights).x
    pools = np.concatenate(([0], np.cumsum(np.diff(fitted) > 1e-12)))
    centres = np.bincount(pools, weights=values / 100 * weights) / np.bincount(pools, weights=weights)
    levels = np.bincount(pools, weights=fitted * weights) / np.bincount(pools, weights=weights)
    return float(np.interp(call.confidence, centres, levels))


def test_every_probability_is_that_of_the_outcomes_that_had_matured_before(uninterrupted: Left) -> None:
    by_kind: defaultdict[tuple[str, str, bool], list[Call]] = defaultdict(list)
    for call in uninterrupted.calls:
        if call.matured_at is not None:
            by_kind[call.kind].append(call)
    for known in by_kind.values():
        known.sort(key=matured_at)
    said = []
    for call in uninterrupted.calls:
        known = by_kind[call.kind]
        earlier = known[: bisect.bisect_left(known, call.as_of, key=matured_at)]
        wanted = expected(call, earlier)
        assert (call.p_correct is None) == (wanted is None)
        if wanted is not None:
            assert call.p_correct == pytest.approx(wanted, abs=1e-6)
            said.append(call)
    assert len({call.kind for call in said}) >= 2
    assert len(said) > 100
    report(said)


def matured_at(call: Call) -> datetime:
    assert call.matured_at is not None
    return call.matured_at


def report(said: list[Call]) -> None:
    """Print the Brier scores of probabilities and of stated confidences on the same calls; either may be the better."""
    for kind in sorted({call.kind for call in said}):
        known = [call for call in said if call.kind == kind and call.success is not None]
        came_true = np.array([bool(call.success) for call in known], dtype=float)
        given = np.array([call.p_correct for call in known], dtype=float)
        stated = np.array([call.confidence for call in known])
        print(
            f"{kind}: n {len(known)}, Brier calibrated {np.mean((given - came_true) ** 2):.4f}, "
            f"stated {np.mean((stated - came_true) ** 2):.4f}"
        )


def test_a_killed_run_says_the_same_probabilities_and_pays_the_same_rewards(home: Path, uninterrupted: Left) -> None:
    path = home / "decisions.jsonl"
    for goal in KILLED_AT:
        with Daemon(home, *flags(home)) as daemon:
            daemon.until(lambda goal=goal: path.exists() and len(lines_of(path)) >= goal, f"decision {goal}", 120)
            daemon.kill()
    again = finish(home)
    assert again.calls == uninterrupted.calls
    assert again.decisions == uninterrupted.decisions
    assert again.stored == uninterrupted.stored
    after = [call for call in again.calls if call.p_correct is not None]
    assert min(call.as_of for call in after).isoformat() < str(lines(path)[KILLED_AT[0]]["as_of"])


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")
