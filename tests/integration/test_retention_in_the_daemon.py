"""Retention while a daemon replays: it removes, it changes no decision, and a kill changes nothing of what it leaves.

Real processes and a real embedded database; two minutes on a busy machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from daemon_runner import Daemon, Stored, new_home, query, run_to_end, stored

pytestmark = pytest.mark.timeout(240)

PERIOD = ("--feed", "replay", "--replay_start", "2011-03-01", "--replay_end", "2011-11-30", "--enable_streaming")
AGE_DAYS = 120
SETTINGS = f"retention: {{enabled: true, max_age_days: {AGE_DAYS}, batch_rows: 3}}\n"


@dataclass(frozen=True)
class Left:
    """What a run leaves: the decisions file, the rows, and which experiences there are by agent."""

    decisions: bytes
    stored: Stored
    log: str


def flags(home: Path, text: str) -> tuple[str, ...]:
    settings = home / "settings.yaml"
    settings.write_text(text)
    return (*PERIOD, "--exit_when_done", "--config", str(settings), "--decisions_jsonl", str(home / "decisions.jsonl"))


def left_in(home: Path, log: str) -> Left:
    return Left((home / "decisions.jsonl").read_bytes(), stored(home / "data"), log)


def finish(home: Path, text: str) -> Left:
    ended = run_to_end(home, *flags(home, text))
    assert ended.exit_code == 0, ended.stderr
    return left_in(home, ended.stderr)


@pytest.fixture(scope="module")
def removed() -> Iterator[tuple[Path, Left]]:
    with new_home() as home:
        yield home, finish(home, SETTINGS)


def test_a_replay_with_retention_decides_and_trades_as_one_without(home: Path, removed: tuple[Path, Left]) -> None:
    _, with_it = removed
    without = finish(home, "")
    assert with_it.decisions == without.decisions
    assert [row[1:3] for row in with_it.stored.portfolio] == [row[1:3] for row in without.stored.portfolio]
    assert 100 < len(with_it.stored.outcomes) < len(without.stored.outcomes)
    assert "retention of 2011-" in with_it.log
    assert "retention of" not in without.log


def test_what_is_left_is_young_or_decided_by_the_strategist_or_needed_for_rewards(removed: tuple[Path, Left]) -> None:
    home, _ = removed
    last = datetime(2011, 11, 30, 21, tzinfo=UTC)
    old = "SELECT agent_type, count(*), count(*) FILTER (WHERE abstained) FROM trajectories WHERE as_of < %s GROUP BY 1"
    kept = {
        agent: (number, idle) for agent, number, idle in query(home / "data", old, (last - timedelta(days=AGE_DAYS),))
    }
    [(decisions,)] = query(
        home / "data", "SELECT count(*) FROM portfolio_events WHERE kind = 'mark' AND as_of < %s", (last - timedelta(days=AGE_DAYS),)
    )  # fmt: skip
    assert kept.pop("strategist")[0] == 3 * decisions
    assert [idle for _, idle in kept.values()] == [0] * len(kept)
    [(orphans,)] = query(
        home / "data", "SELECT count(*) FROM judge_evaluations e LEFT JOIN trajectories t USING (trajectory_id) WHERE t.run_id IS NULL"
    )  # fmt: skip
    assert orphans == 0


def test_a_killed_replay_leaves_what_an_uninterrupted_one_leaves(home: Path, removed: tuple[Path, Left]) -> None:
    for goal in (1, 40, 77):
        with Daemon(home, *flags(home, SETTINGS)) as daemon:
            daemon.until(
                lambda goal=goal, daemon=daemon: said(daemon) >= goal or written(home) > 500, f"removal {goal}"
            )
            daemon.kill()
    again = finish(home, SETTINGS)
    _, reference = removed
    assert again.decisions == reference.decisions
    assert again.stored == reference.stored


def said(daemon: Daemon) -> int:
    """How many removals this start has told of."""
    return daemon.stderr.count("retention of")


def written(home: Path) -> int:
    path = home / "decisions.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
