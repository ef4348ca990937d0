"""How a training child is run: its progress, its ends, and that nothing of it stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.launcher import BLOCKED, run_training_child, sft_command
from utils.errors import TrainingBlocked, TrainingFailed

ROOT = Path(__file__).parents[2]


def script(tmp_path: Path, source: str) -> list[str]:
    path = tmp_path / "child.py"
    path.write_text(textwrap.dedent(source))
    return [sys.executable, "-S", str(path)]


def run(tmp_path: Path, source: str, timeout_s: float = 20, **arguments: Any) -> Any:
    return run_training_child(
        script(tmp_path, source), log_path=tmp_path / "log" / "child.log", timeout_s=timeout_s, **arguments
    )


def wait_until(condition: Callable[[], bool], deadline_s: float = 10) -> bool:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_progress_lines_reach_the_callback_in_order_and_the_rest_the_log(tmp_path: Path) -> None:
    events: list[Any] = []
    result = run(
        tmp_path,
        """
        import json, sys
        for step in range(3):
            print(json.dumps({"event": "progress", "stage": "sft", "step": step, "steps": 3, "loss": 0.5}))
        print("a library says hello")
        print('{"no_event": 1}')
        print("to standard error", file=sys.stderr)
        print('{"event": "last"}', end="")
        """,
        on_progress=events.append,
    )
    assert (result.state, result.exit_code) == ("completed", 0)
    assert [event.get("step") for event in events] == [0, 1, 2, None]
    log = result.log_path.read_text()
    assert "a library says hello" in log
    assert '{"no_event": 1}' in log
    assert "to standard error" in log
    assert "progress" not in log


def test_progress_is_heard_while_the_child_is_still_running(tmp_path: Path) -> None:
    answer = tmp_path / "heard"
    result = run(
        tmp_path,
        f"""
        import pathlib, time
        print('{{"event": "progress"}}', flush=True)
        while not pathlib.Path({str(answer)!r}).exists():
            time.sleep(0.01)
        """,
        on_progress=lambda event: answer.touch(),
    )
    assert result.state == "completed"


def test_the_result_file_is_returned(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result = run(tmp_path, f"open({str(path)!r}, 'w').write('{{\"state\": \"completed\"}}')", result_path=path)
    assert result.result == {"state": "completed"}


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_child_that_succeeds_without_a_readable_result_has_failed(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "result.json"
    source = "" if content is None else f"open({str(path)!r}, 'w').write({content!r})"
    with pytest.raises(TrainingFailed, match=r"no readable result|JSON object"):
        run(tmp_path, source, result_path=path)


def test_a_crash_is_told_with_the_last_words_of_the_log(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"exited with 1; its last words: .*ValueError: the data set is cursed"):
        run(tmp_path, "raise ValueError('the data set is cursed')")


def test_a_child_that_lacks_what_it_needs_is_blocked_and_not_failed(tmp_path: Path) -> None:
    with pytest.raises(TrainingBlocked, match=r"lacks what it needs; its last words: no weights"):
        run(tmp_path, f"import sys; sys.stderr.write('no weights'); sys.exit({BLOCKED})")


def test_a_killed_child_is_told_by_its_signal(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="was killed by SIGKILL; it left no log"):
        run(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")


def test_a_program_that_does_not_exist_is_a_failed_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="no-such-program cannot be run"):
        run_training_child(["/no-such-program"], log_path=tmp_path / "log", timeout_s=10)


def test_a_time_out_ends_the_child_and_its_own_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(TrainingFailed, match=r"stopped after 1 s"):
        run(
            tmp_path,
            f"""
            import os, signal, subprocess, sys, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
            other = subprocess.Popen([sys.executable, "-S", "-c", deaf])
            open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{other.pid}}")
            time.sleep(60)
            """,
            timeout_s=1,
            grace_s=0.3,
        )
    parent, grandchild = map(int, pids.read_text().split())
    assert wait_until(lambda: not is_running(parent) and not is_running(grandchild))


def test_a_stop_lets_the_child_finish_its_step_and_is_no_failure(tmp_path: Path) -> None:
    stop = threading.Event()
    saved = tmp_path / "saved"
    result = run(
        tmp_path,
        f"""
        import signal, sys, time
        def on_terminate(*_):
            open({str(saved)!r}, "w").close()
            sys.exit(143)
        signal.signal(signal.SIGTERM, on_terminate)
        print('{{"event": "progress"}}', flush=True)
        time.sleep(60)
        """,
        stop_event=stop,
        on_progress=lambda event: stop.set(),
    )
    assert (result.state, result.exit_code) == ("stopped", 143)
    assert saved.exists()


def test_a_child_that_holds_on_after_a_stop_is_killed(tmp_path: Path) -> None:
    stop = threading.Event()
    result = run(
        tmp_path,
        """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print('{"event": "progress"}', flush=True)
        time.sleep(60)
        """,
        stop_event=stop,
        on_progress=lambda event: stop.set(),
        grace_s=0.3,
    )
    assert (result.state, result.exit_code) == ("stopped", -signal.SIGKILL)


def test_a_grandchild_that_keeps_the_pipe_open_delays_nothing_and_does_not_survive(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    result = run(
        tmp_path,
        f"""
        import subprocess, sys
        other = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
        open({str(pid)!r}, "w").write(str(other.pid))
        """,
    )
    assert result.wall_s < 15
    assert wait_until(lambda: not is_running(int(pid.read_text())))


def test_a_callback_that_fails_leaves_no_child(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail(event: Any) -> None:
        pids.append(event["pid"])
        raise RuntimeError("the telemetry is broken")

    with pytest.raises(RuntimeError, match="telemetry"):
        run(
            tmp_path,
            """
            import json, os, time
            print(json.dumps({"event": "progress", "pid": os.getpid()}), flush=True)
            time.sleep(60)
            """,
            on_progress=fail,
        )
    assert wait_until(lambda: not is_running(pids[0]))


def test_the_child_does_not_outlive_a_daemon_that_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = script(
        tmp_path,
        f"""
        import os, time
        open({str(pid)!r} + ".aside", "w").write(str(os.getpid()))
        os.rename({str(pid)!r} + ".aside", {str(pid)!r})
        time.sleep(120)
        """,
    )
    daemon_source = (
        "from pathlib import Path\nfrom training.launcher import BLOCKED, run_training_child\n"
        f"run_training_child({child!r}, log_path=Path({str(tmp_path / 'log')!r}), timeout_s=100)\n"
    )
    daemon = subprocess.Popen([sys.executable, "-c", daemon_source], cwd=ROOT)
    try:
        assert wait_until(pid.exists, 20)
        child_pid = int(pid.read_text())
        assert is_running(child_pid)
    finally:
        daemon.kill()
        daemon.wait()
    assert wait_until(lambda: not is_running(child_pid))


def test_secrets_stay_with_the_daemon_and_the_given_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("DB_PASSWORD", "secret")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:secret@h/d")
    events: list[Any] = []
    run(
        tmp_path,
        "import json, os; print(json.dumps({'event': 'env', **os.environ}))",
        on_progress=events.append,
        env={"OMP_NUM_THREADS": "3"},
    )
    (seen,) = events
    assert not {"ANTHROPIC_API_KEY", "DB_PASSWORD", "DATABASE_URL"} & seen.keys()
    assert seen["OMP_NUM_THREADS"] == "3"
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert str(ROOT) in seen["PYTHONPATH"].split(os.pathsep)


def test_launching_and_its_job_need_no_model_library(tmp_path: Path) -> None:
    code = "import sys, json, training.launcher, training.sft.job, training.local_models, agents.policies.local.policy; print(json.dumps([m for m in ('torch', 'transformers', 'trl', 'peft', 'datasets') if m in sys.modules]))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


def test_the_sft_command_runs_alone_or_through_accelerate(tmp_path: Path) -> None:
    job, config = tmp_path / "job.json", tmp_path / "accelerate.yaml"
    assert sft_command(job) == [sys.executable, "-m", "training.sft.train_adapter", str(job)]
    command = sft_command(job, config)
    assert command[-3:] == ["-m", "training.sft.train_adapter", str(job)]
    assert command[command.index("--config_file") + 1] == str(config)
