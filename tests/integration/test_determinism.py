"""Equal inputs give equal bytes: decisions, portfolio, outcomes, grades, the trained adapter and the gate's verdict.

The two runs of a pair share nothing but their inputs: data directory, port, hash seed, time zone, log level and pace
differ. About 20 s without learning; with it 25 s a run, and 50 s more where the base model has to be built first.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from daemon_runner import Learned, learned_in, learning_flags, new_home, run_to_end, stored

pytestmark = pytest.mark.timeout(290)

PERIOD = ("--feed", "replay", "--replay_start", "2008-09-02", "--replay_end", "2008-12-31", "--exit_when_done")
ELSEWHERE = {"PYTHONHASHSEED": "4711", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "2", "LOG_LEVEL": "DEBUG", "LC_ALL": "C"}


def test_two_runs_of_equal_inputs_leave_equal_bytes_and_rows(home: Path) -> None:
    found = []
    for env, flags in (({"PYTHONHASHSEED": "1"}, ()), (ELSEWHERE, ("--replay_speed", "20000000"))):
        with new_home() as place:
            decisions = place / "decisions.jsonl"
            ended = run_to_end(
                place, "--enable_streaming", *PERIOD, *flags, "--decisions_jsonl", str(decisions), env=env
            )
            assert ended.exit_code == 0, ended.stderr
            found.append((decisions.read_bytes(), stored(place / "data")))
    (first_bytes, first), (second_bytes, second) = found
    assert first_bytes == second_bytes
    assert first.last_hash == second.last_hash
    assert first == second
    assert len(first.portfolio) > 90


def test_another_seed_or_cost_is_another_run(home: Path) -> None:
    settings = home / "settings.yaml"
    hashes = set()
    for text in ("random_state: 42\n", "execution: {slippage_bps: 20}\n"):
        settings.write_text(text)
        flags = ("--enable_streaming", *PERIOD[:4], "--replay_end", "2008-09-30", "--exit_when_done")
        ended = run_to_end(home, *flags, "--config", str(settings))
        assert ended.exit_code == 0, ended.stderr
        hashes.add(next(line for line in ended.stdout.splitlines() if line.startswith("Run ")))
    assert len(hashes) == 2


def test_two_runs_with_learning_train_the_same_adapter_and_reach_the_same_verdict(
    home: Path, model_cache: Path, learned: Learned
) -> None:
    env = {**ELSEWHERE, "MODEL_CACHE_DIR": str(model_cache)}
    ended = run_to_end(home, *learning_flags(home), env=env, limit_s=270)
    assert ended.exit_code == 0, ended.stderr
    again = learned_in(home)
    (training,) = again.summary["trainings"]
    assert training["state"] == "completed"
    assert training["gate"]["verdict"] in ("promote", "reject")
    assert training["gate"]["sessions"] >= 60
    assert training["gate"]["decisions"] >= 200
    adapters = [row[7] for row in again.stored.trainings]
    assert adapters == [row[7] for row in learned.stored.trainings]
    assert [len(sha256) for sha256 in adapters] == [64]
    assert again.summary["trainings"] == learned.summary["trainings"]
    assert again == learned
