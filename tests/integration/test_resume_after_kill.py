"""Kills at any instant: of the daemon, of a training, of the database. What is left after the next starts is what an
uninterrupted run leaves, byte for byte, and nothing is there twice.

Real processes and a real embedded database. The runs with learning take about a minute and a half, the first training
of a session builds the base model in them (50 s more); the others about a minute together.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from daemon_runner import (
    Daemon,
    Learned,
    Stored,
    learned_in,
    learning_flags,
    new_home,
    postmaster_pid,
    run_to_end,
    stored,
)

pytestmark = pytest.mark.timeout(280)

PERIOD = ("--feed", "replay", "--replay_start", "2010-03-01", "--replay_end", "2010-07-30")
NO_LEARNING = ("--enable_streaming", "--enable_monitoring", *PERIOD)
KILLS = 4


@dataclass(frozen=True)
class Reference:
    """What an uninterrupted run leaves."""

    decisions: bytes
    summary: dict[str, object]
    stored: Stored
    seconds: float


def flags(home: Path, name: str = "") -> tuple[str, ...]:
    return (
        "--exit_when_done",
        "--decisions_jsonl", str(home / f"decisions{name}.jsonl"),
        "--summary_json", str(home / f"summary{name}.json"),
    )  # fmt: skip


def summary_of(home: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((home / "summary.json").read_text())
    found.pop("database")
    return found


def reference_of(home: Path) -> Reference:
    started = time.monotonic()
    ended = run_to_end(home, *NO_LEARNING, *flags(home))
    assert ended.exit_code == 0, ended.stderr
    seconds = time.monotonic() - started
    return Reference((home / "decisions.jsonl").read_bytes(), summary_of(home), stored(home / "data"), seconds)


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    with new_home() as home:
        yield reference_of(home)


def assert_same(home: Path, reference: Reference) -> None:
    """The file, the rows and the chain are those of the uninterrupted run."""
    left = stored(home / "data")
    assert (home / "decisions.jsonl").read_bytes() == reference.decisions
    assert left.last_hash == reference.stored.last_hash
    assert left.portfolio == reference.stored.portfolio
    assert left.outcomes == reference.stored.outcomes
    assert left.evaluations == reference.stored.evaluations
    assert left.regimes == reference.stored.regimes
    assert summary_of(home) == reference.summary


def test_kills_at_random_instants_leave_what_an_uninterrupted_run_leaves(home: Path, reference: Reference) -> None:
    rng = random.Random(20101231)
    killed_at = []
    for _ in range(KILLS):
        with Daemon(home, *NO_LEARNING, *flags(home)) as daemon:
            before = killed_at[-1] if killed_at else 0
            goal = before + rng.randrange(20, 75)
            daemon.until(lambda goal=goal: written(home) >= goal, f"decision {goal}")
            daemon.kill()
            killed_at.append(goal)
    ended = run_to_end(home, *NO_LEARNING, *flags(home))
    assert ended.exit_code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert_same(home, reference)


def written(home: Path) -> int:
    """How many decisions the file holds."""
    path = home / "decisions.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_kills_while_it_starts_leave_nothing_that_stops_the_next_start(home: Path) -> None:
    rng = random.Random(7)
    period = ("--feed", "replay", "--replay_start", "2010-03-01", "--replay_end", "2010-03-12")
    for _ in range(6):
        with Daemon(home, "--enable_streaming", *period) as daemon:
            time.sleep(rng.uniform(0.3, 2.2))  # a kill at any moment of interpreter, initdb, migration or first commit
            daemon.kill()
    ended = run_to_end(home, "--enable_streaming", *period, *flags(home))
    assert ended.exit_code == 0, ended.stderr
    assert written(home) == 10 * 3


def test_scores_were_counted_at_a_precision_that_the_database_does_not_keep(reference: Reference) -> None:
    # a resumed run reads them back, and its rewards differed from the ninth digit on
    scores = [row[3] for row in reference.stored.evaluations]
    assert [round(score, 4) for score in scores] == scores
    assert sum(score != round(score, 2) for score in scores) > len(scores) / 2


def test_sigterm_ends_with_0_within_30_s_and_the_next_start_goes_on(home: Path, reference: Reference) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with Daemon(home, *NO_LEARNING, *flags(home)) as daemon:
            goal = written(home) + 60
            daemon.until(lambda goal=goal: written(home) >= goal, f"decision {goal}")
            started = time.monotonic()
            daemon.process.send_signal(number)
            ended = daemon.wait(35)
            assert ended.exit_code == 0, ended.stderr
            assert time.monotonic() - started < 30
            assert "Traceback" not in ended.stderr
        assert not (home / "summary.json").exists()
        assert no_server(home)
    assert run_to_end(home, *NO_LEARNING, *flags(home)).exit_code == 0
    assert_same(home, reference)


def no_server(home: Path) -> bool:
    """Whether the embedded server was stopped with its owner."""
    return not list((home / "data" / "database").glob("postgres-*/postmaster.pid"))


def test_a_second_signal_ends_at_once(home: Path) -> None:
    with Daemon(home, *NO_LEARNING, "--replay_speed", "100000") as daemon:
        daemon.base_url()
        daemon.process.send_signal(signal.SIGSTOP)  # both signals wait until it goes on, so it sees the second in time
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGINT)
        daemon.process.send_signal(signal.SIGCONT)
        ended = daemon.wait(10)
    assert ended.exit_code in (128 + signal.SIGTERM, 128 + signal.SIGINT)


def test_a_killed_database_is_brought_back_and_the_result_is_the_same(home: Path, reference: Reference) -> None:
    goal = 150
    with Daemon(home, *NO_LEARNING, *flags(home)) as daemon:
        daemon.until(lambda: written(home) >= goal, f"decision {goal}")
        first = postmaster_pid(home / "data")
        os.kill(first, signal.SIGKILL)
        ended = daemon.wait(90)
    assert ended.exit_code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert_same(home, reference)


def test_a_database_killed_under_a_finished_daemon_stayed_dead(home: Path) -> None:
    period = ("--feed", "replay", "--replay_start", "2010-03-01", "--replay_end", "2010-03-12")
    env = {"HEALTH_CHECK_INTERVAL": "0.5"}
    with Daemon(home, "--enable_streaming", "--enable_monitoring", *period, env=env) as daemon:
        daemon.until(lambda: daemon.status().get("status") == "finished", "the end of the replay")
        first = postmaster_pid(home / "data")
        os.kill(first, signal.SIGKILL)
        daemon.until(lambda: psutil.pid_exists(first) is False or is_zombie(first), "the server's death")
        daemon.until(lambda: restarted(home, first), "a new server", 60)
        daemon.until(lambda: daemon.get("/health").status == 200, "health", 30)
        ended, _ = daemon.terminate()
    assert ended.exit_code == 0


def is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def restarted(home: Path, first: int) -> bool:
    """Whether another postmaster has taken the place of the first one."""
    try:
        return postmaster_pid(home / "data") != first
    except (OSError, IndexError, ValueError):
        return False


def training_seen(daemon: Daemon) -> bool:
    """Whether a training child works at this moment and has reported a step."""
    return bool((daemon.status().get("learning_loop") or {}).get("training_now"))


def test_kills_and_a_sigterm_during_a_training_leave_no_child_and_the_same_adapter_and_verdict(
    home: Path, model_cache: Path, learned: Learned
) -> None:
    rng = random.Random(713)
    env = {"MODEL_CACHE_DIR": str(model_cache)}
    with Daemon(home, *learning_flags(home), env=env) as daemon:
        daemon.until(lambda: training_seen(daemon), "a training", 120)
        time.sleep(rng.uniform(0.0, 1.5))  # any later instant of the training will do
        children = [child for child in daemon.descendants() if "postgres" not in child.name()]
        daemon.kill()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    with Daemon(home, *learning_flags(home), env=env) as daemon:
        daemon.until(lambda: training_seen(daemon), "a training", 120)
        ended, seconds = daemon.terminate()
    assert (ended.exit_code, "Traceback" in ended.stderr) == (0, False)
    assert seconds < 30
    ended = run_to_end(home, *learning_flags(home), env=env)
    assert ended.exit_code == 0, ended.stderr
    assert learned_in(home) == learned


def test_a_resumed_run_checked_its_triggers_where_an_uninterrupted_one_does_not(home: Path, model_cache: Path) -> None:
    """With one check in a hundred years, at the first instant, there is nothing to train; a resumed run trained."""
    env = {"MODEL_CACHE_DIR": str(model_cache), "LEARNING_CHECK_INTERVAL": "1000000"}
    with Daemon(home, *learning_flags(home), env=env) as daemon:
        daemon.until(lambda: written(home) >= 390, "the day on which the trigger is ready")
        daemon.kill()
    for _ in range(2):
        ended = run_to_end(home, *learning_flags(home), env=env)
        assert ended.exit_code == 0, ended.stderr
        assert summary_of(home)["trainings"] == []


def test_a_decision_thread_that_died_after_a_commit_left_opinions_without_a_grade(
    home: Path, reference: Reference
) -> None:
    """The reader of the decisions goes away, so that the thread dies between commit and judging, and comes back."""
    pipe = home / "decisions.jsonl"
    os.mkfifo(pipe)
    with Daemon(home, *NO_LEARNING, *flags(home)) as daemon:
        with pipe.open("rb") as reader:
            for _ in range(45):
                assert reader.readline()
        daemon.until(lambda: "BrokenPipeError" in daemon.stderr, "the thread's death")
        again = pipe.read_bytes()  # opened anew by the restarted thread, which writes everything from the start
        ended = daemon.wait(90)
    assert ended.exit_code == 0, ended.stderr
    assert again == reference.decisions
    left = stored(home / "data")
    assert left.portfolio == reference.stored.portfolio
    assert len(left.evaluations) == len(reference.stored.evaluations)
    assert left.outcomes == reference.stored.outcomes
