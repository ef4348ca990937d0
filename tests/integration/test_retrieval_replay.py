"""A replay whose agents are given experiences: the same bytes after a kill, nothing from the future, switched off by default."""

from __future__ import annotations

from pathlib import Path

from daemon_runner import Daemon, lines, new_home, query, run_to_end, stored

PERIOD = (
    "--enable_streaming", "--feed", "replay", "--streaming_symbols", "AAPL", "MSFT",
    "--replay_start", "2008-09-02", "--replay_end", "2008-11-28", "--exit_when_done",
)  # fmt: skip
EXPERIENCES = (
    "SELECT t.agent_type, t.as_of, e.agent_type, e.matured_at FROM trajectories t CROSS JOIN unnest(t.similar_ids) AS s (id) "
    "JOIN trajectories e ON e.trajectory_id = s.id"
)


def _flags(home: Path, when: str) -> tuple[str, ...]:
    settings = home / "settings.yaml"
    settings.write_text(f"retrieval: {{when: {when}, limit: 4}}\n")
    return (*PERIOD, "--config", str(settings), "--decisions_jsonl", str(home / "decisions.jsonl"))


def test_experiences_are_recorded_matured_and_the_agents_own_and_a_kill_changes_nothing(home: Path) -> None:
    ended = run_to_end(home, *_flags(home, "always"))
    assert ended.exit_code == 0, ended.stderr
    given = query(home / "data", EXPERIENCES)
    assert len(given) > 300
    assert all(matured < as_of and own == agent for own, as_of, agent, matured in given)
    (most,) = query(home / "data", "SELECT max(cardinality(similar_ids)) FROM trajectories")
    assert most == (4,)
    with new_home() as other:
        with Daemon(other, *_flags(other, "always")) as daemon:
            daemon.until(
                lambda: (other / "decisions.jsonl").exists() and len(lines(other / "decisions.jsonl")) > 60,
                "60 decisions",
            )
            daemon.kill()
        ended = run_to_end(other, *_flags(other, "always"))
        assert ended.exit_code == 0, ended.stderr
        assert (other / "decisions.jsonl").read_bytes() == (home / "decisions.jsonl").read_bytes()
        assert stored(other / "data") == stored(home / "data")


def test_rules_are_given_none_by_default(home: Path) -> None:
    ended = run_to_end(home, *_flags(home, "auto")[:-4], "--replay_end", "2008-10-01")
    assert ended.exit_code == 0, ended.stderr
    assert query(home / "data", "SELECT count(*) FROM trajectories WHERE similar_ids IS NOT NULL") == [(0,)]
