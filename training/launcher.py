"""Runs a training child: starts it, listens to its progress, stops it, and turns its end into a result or a sentence.

Called by the learning loop in its own thread. The child lives in its own process group and never outlives the thread
that launched it, not even when the daemon is killed; secrets of the daemon's environment are not handed to it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from utils.errors import TrainingBlocked, TrainingFailed
from utils.logs import logger

ProgressEvent = Mapping[str, Any]
"""A JSON object of the child with the key `event`; see `training.child.session` for its fields."""

TICK_S = 0.2
"""How often a silent child is looked at: the delay with which a stop or a time-out takes effect."""

BLOCKED = 75
"""Exit status of a child that lacks what it needs, such as the base model's weights (EX_TEMPFAIL of sysexits.h)."""

LOG_LINES = 3
_PACKAGE_ROOT = Path(__file__).resolve().parents[1]
_SECRET_NAME = re.compile(r"API_KEY|PASSWORD|SECRET|TOKEN|DATABASE_URL|CREDENTIAL", re.IGNORECASE)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Executed before the command, because code between fork and exec is unsafe in a process with threads.
_GUARD = (
    "import ctypes,os,signal,sys\n"
    f"ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG},signal.SIGKILL)\n"
    "os.getppid()==int(sys.argv[1]) or sys.exit(1)\n"
    "try: os.execvp(sys.argv[2],sys.argv[2:])\n"
    "except OSError as error: sys.exit(f'{sys.argv[2]} cannot be run: {error}')\n"
)


@dataclass(frozen=True, slots=True)
class ChildResult:
    """How a child ended: completed with its `result` (empty where none was asked for), or stopped because we asked."""

    state: Literal["completed", "stopped"]
    exit_code: int
    result: Mapping[str, Any]
    wall_s: float
    log_path: Path


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it dies; for children of a child."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


SFT_CHILD = "training.sft.train_adapter"
RL_CHILD = "training.rl.train_policy"


def sft_command(job_path: Path, accelerate_config: Path | None = None) -> list[str]:
    """Return the command that fine-tunes by the job: one process, or what an accelerate configuration says."""
    return _command(SFT_CHILD, job_path, accelerate_config)


def rl_command(job_path: Path, accelerate_config: Path | None = None) -> list[str]:
    """Return the command that trains a policy by the job: one process, or what an accelerate configuration says."""
    return _command(RL_CHILD, job_path, accelerate_config)


def _command(child: str, job_path: Path, accelerate_config: Path | None) -> list[str]:
    module = ["-m", child, str(job_path)]
    if accelerate_config is None:
        return [sys.executable, *module]
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(accelerate_config)]
    return [sys.executable, *launch, *module]


def run_training_child(
    command: Sequence[str],
    *,
    log_path: Path,
    timeout_s: float,
    result_path: Path | None = None,
    on_progress: Callable[[ProgressEvent], None] | None = None,
    stop_event: threading.Event | None = None,
    env: Mapping[str, str] | None = None,
    grace_s: float = 15.0,
) -> ChildResult:
    """Run a command to its end.

    Parameters
    ----------
    command : sequence of str
        Program and arguments.
    log_path : Path
        Receives standard error, and what is no progress line on standard output; appended to.
    timeout_s : float
        Wall seconds after which the child is stopped and the run has failed.
    result_path : Path, optional
        JSON object that a successful child leaves behind.
    on_progress : callable, optional
        Called in this thread with each event; if it raises, the child is killed.
    stop_event : threading.Event, optional
        Once set, the child is asked to stop.
    env : mapping, optional
        Wins over what the child inherits.
    grace_s : float
        Seconds between the request to stop (SIGTERM) and SIGKILL, both to the whole group.

    Raises
    ------
    TrainingBlocked
        If the child lacks what it needs.
    TrainingFailed
        If it crashed, timed out, or left no readable result; the messages end with its last log lines.
    """
    started = time.monotonic()
    log_path.parent.mkdir(parents=True, exist_ok=True)
    ending: str | None = None
    guarded = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command]
    with (
        log_path.open("ab") as log,
        subprocess.Popen(
            guarded,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            env=_environment(env or {}),
        ) as child,
        _no_survivors(child),
    ):
        assert child.stdout is not None
        kill_at: float | None = None
        for line in _lines(child, child.stdout):
            if line is not None:
                _hand_over(line, log, on_progress)
            now = time.monotonic()
            if ending is None and stop_event is not None and stop_event.is_set():
                ending = "stopped"
            if ending is None and now - started > timeout_s:
                ending = "timeout"
            if ending is not None and kill_at is None:
                _signal_group(child, signal.SIGTERM)
                kill_at = now + grace_s
            if kill_at is not None and now > kill_at:
                _signal_group(child, signal.SIGKILL)
                kill_at = float("inf")
        exit_code = child.wait()
    wall_s = time.monotonic() - started
    if ending == "stopped" and exit_code != 0:
        return ChildResult("stopped", exit_code, {}, wall_s, log_path)
    if ending == "timeout" and exit_code != 0:
        raise TrainingFailed(f"the training child was stopped after {timeout_s:g} s; {_last_words(log_path)}")
    if exit_code == BLOCKED:
        raise TrainingBlocked(f"the training child lacks what it needs; {_last_words(log_path)}")
    if exit_code != 0:
        cause = f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exited with {exit_code}"
        raise TrainingFailed(f"the training child {cause}; {_last_words(log_path)}")
    return ChildResult("completed", 0, _read_result(result_path, log_path), wall_s, log_path)


def _lines(child: subprocess.Popen[bytes], stdout: IO[bytes]) -> Iterator[bytes | None]:
    """Yield whole lines as they come and None at each tick, until the child has ended and its output is drained."""
    os.set_blocking(stdout.fileno(), False)
    pending = b""
    open_ended = True
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            ended = child.poll() is not None
            if open_ended:
                selector.select(0 if ended else TICK_S)
            elif not ended:
                _wait_briefly(child)
            chunk = _read(stdout) if open_ended else None
            if chunk == b"":
                open_ended = False
            if chunk:
                *lines, pending = (pending + chunk).split(b"\n")
                yield from lines
            yield None
            # A grandchild may hold the pipe open: once the child has ended, only what is there is read.
            if ended and not chunk:
                break
    if pending:
        yield pending


def _wait_briefly(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(TICK_S)
    except subprocess.TimeoutExpired:
        return


def _read(stdout: IO[bytes]) -> bytes | None:
    try:
        return os.read(stdout.fileno(), 1 << 16)
    except BlockingIOError:
        return None


def _hand_over(line: bytes, log: IO[bytes], on_progress: Callable[[ProgressEvent], None] | None) -> None:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if isinstance(event, dict) and "event" in event:
        if on_progress is not None:
            on_progress(event)
        return
    log.write(line + b"\n")
    log.flush()


@contextmanager
def _no_survivors(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever happens, leave nothing of the child's group running."""
    try:
        yield
    finally:
        _signal_group(child, signal.SIGKILL)
        child.wait()


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        logger.debug("the training child's group %d is gone already", child.pid)


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not _SECRET_NAME.search(name)}
    paths = [str(_PACKAGE_ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **extra,
    }


def _last_words(log_path: Path) -> str:
    text = log_path.read_bytes()[-4096:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()][-LOG_LINES:]
    return f"its last words: {' | '.join(lines)}" if lines else "it left no log"


def _read_result(result_path: Path | None, log_path: Path) -> Mapping[str, Any]:
    if result_path is None:
        return {}
    try:
        result = json.loads(result_path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingFailed(
            f"the training child left no readable result ({error}); {_last_words(log_path)}"
        ) from error
    if not isinstance(result, dict):
        raise TrainingFailed(f"{result_path} does not hold a JSON object")
    return result
