"""Runs the daemon as its users do: a child process with a data directory of its own, real files, a real database.

Used by the end-to-end tests. It knows only what a user can see: flags, exit code, the two output streams, HTTP, files
and the database; nothing of the daemon is imported into the running process under test.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from data_pipeline.embedded_postgres import EmbeddedPostgres
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres

ROOT = Path(__file__).resolve().parents[2]
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "SYSTEMROOT")
_PAGE = re.compile(r"status page: (http://\S+)/")
_LIMIT_S = 180.0


@dataclass(frozen=True)
class Ended:
    """How a daemon ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """The lines of standard error that are no log records."""
        lines = self.stderr.splitlines()
        return "\n".join(line for line in lines if not re.match(r"\d\d:\d\d:\d\d [A-Z]+ ", line))


@dataclass(frozen=True)
class Answer:
    """One HTTP response."""

    status: int
    text: str

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.text)


def environment(**extra: str) -> dict[str, str]:
    """Return an environment without keys, databases or settings of whoever runs the tests."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **extra}


class Daemon:
    """One process of ``python -m monitoring.production_orchestrator``; killed at the end of a ``with``."""

    def __init__(
        self,
        home: Path,
        *flags: str,
        env: dict[str, str] | None = None,
        data_dir: Path | None = None,
        any_port: bool = True,
    ) -> None:
        self.data_dir = data_dir or home / "data"
        self._streams = tempfile.mkdtemp(prefix="streams-", dir=home)
        self._out, self._err = Path(self._streams, "stdout"), Path(self._streams, "stderr")
        port = ("--metrics_port", "0") if any_port and "--metrics_port" not in flags else ()
        command = [
            sys.executable, "-m", "monitoring.production_orchestrator", "--data_dir", str(self.data_dir), *port, *flags,
        ]  # fmt: skip
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment(**(env or {})), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()

    @property
    def stdout(self) -> str:
        """Standard output so far."""
        return self._out.read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error so far."""
        return self._err.read_text(encoding="utf-8", errors="replace")

    def wait(self, limit_s: float = _LIMIT_S) -> Ended:
        """Wait for the process to end by itself."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon did not end within {limit_s:g} s; it says:\n{self.stderr}") from None
        return Ended(code, self.stdout, self.stderr)

    def terminate(self, limit_s: float = 35.0) -> tuple[Ended, float]:
        """Send SIGTERM; return how it ended and after how many seconds."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        ended = self.wait(limit_s)
        return ended, time.monotonic() - started

    def kill(self) -> None:
        """Send SIGKILL, as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait(10)

    def until(self, condition: Callable[[], Any], what: str, limit_s: float = 60.0) -> Any:
        """Wait until `condition` gives something true while the process lives, and return that."""
        deadline = time.monotonic() + limit_s
        while True:
            if found := condition():
                return found
            if self.process.poll() is not None:
                raise AssertionError(f"the daemon ended ({self.process.returncode}) before {what}:\n{self.stderr}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no {what} within {limit_s:g} s:\n{self.stderr}")
            time.sleep(0.02)

    def base_url(self) -> str:
        """Return where the endpoint answers, as the log says."""
        return str(self.until(lambda: (m := _PAGE.search(self.stderr)) and m.group(1), "the address in the log"))

    def get(self, path: str) -> Answer:
        """Ask the HTTP endpoint."""
        try:
            with urllib.request.urlopen(self.base_url() + path, timeout=10) as response:
                return Answer(response.status, response.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read().decode())

    def status(self) -> dict[str, Any]:
        """Return /status, an empty object while nothing answers."""
        try:
            found: dict[str, Any] = self.get("/status").json()
        except (urllib.error.URLError, ConnectionError, TimeoutError, json.JSONDecodeError):
            return {}
        return found

    def descendants(self) -> list[psutil.Process]:
        """Return the process's living children, all generations."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []


def run_to_end(
    home: Path,
    *flags: str,
    env: dict[str, str] | None = None,
    data_dir: Path | None = None,
    limit_s: float = _LIMIT_S,
) -> Ended:
    """Run a daemon until it ends by itself."""
    with Daemon(home, *flags, env=env, data_dir=data_dir) as daemon:
        return daemon.wait(limit_s)


@contextlib.contextmanager
def new_home() -> Iterator[Path]:
    """Lend a folder that the database's user may enter; whatever database lies below it is stopped at the end."""
    home = Path(tempfile.mkdtemp(prefix="daemon-", dir="/tmp"))
    home.chmod(0o755)
    try:
        yield home
    finally:
        for cluster in home.glob("*/database/postgres-*"):
            stop_orphan(cluster)
        shutil.rmtree(home, ignore_errors=True)


def stop_orphan(cluster: Path) -> None:
    """Stop the postmaster that a killed daemon left behind."""
    with contextlib.suppress(FileNotFoundError, ValueError, IndexError, psutil.NoSuchProcess):
        postmaster = psutil.Process(int((cluster / "postmaster.pid").read_text().splitlines()[0]))
        postmaster.send_signal(signal.SIGQUIT)
        psutil.wait_procs([postmaster], timeout=10)


def postmaster_pid(data_dir: Path) -> int:
    """Return the process id of the embedded server."""
    return int((EmbeddedPostgres(data_dir).cluster / "postmaster.pid").read_text().splitlines()[0])


@contextlib.contextmanager
def database(data_dir: Path) -> Iterator[ExperienceLibraryPostgres]:
    """Open the database of a daemon that has ended."""
    library = ExperienceLibraryPostgres.embedded(data_dir)
    try:
        yield library
    finally:
        library.close()


def query(data_dir: Path, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Return the rows of a query in the database of a daemon that has ended."""
    with database(data_dir) as library, library.connection() as connection:
        return connection.execute(sql, parameters).fetchall()


OUTCOME_ROWS = (
    "SELECT trajectory_id, content_hash, decision_id, actual_return, reward, success, benchmark_return, max_drawdown, costs, "
    'matured_at FROM trajectories ORDER BY as_of, symbol COLLATE "C", agent_type COLLATE "C", trajectory_id'
)
EVALUATION_ROWS = (
    "SELECT evaluation_id::text, trajectory_id, status, final_score, method, scores, excluded FROM judge_evaluations "
    "ORDER BY trajectory_id, evaluation_id"
)
PORTFOLIO_ROWS = "SELECT event_id::text, kind, as_of, hash FROM portfolio_events ORDER BY seq"
REGIME_ROWS = "SELECT symbol, as_of, kind, old, new FROM regime_events ORDER BY as_of, symbol"
TRAINING_ROWS = (
    "SELECT t.training_run_id::text, t.state, t.dataset_id, t.data_cutoff, t.started_at, t.metrics->>'version', t.metrics->>'verdict', "
    "m.sha256, m.state, m.gate FROM training_runs t LEFT JOIN model_versions m ON m.version = t.metrics->>'version' "
    "ORDER BY t.started_at, t.training_run_id"
)


@dataclass(frozen=True)
class Stored:
    """Everything that two equal runs must have in common in their databases; wall times are left out."""

    outcomes: list[tuple[Any, ...]]
    evaluations: list[tuple[Any, ...]]
    portfolio: list[tuple[Any, ...]]
    regimes: list[tuple[Any, ...]]
    trainings: list[tuple[Any, ...]]

    @property
    def last_hash(self) -> str:
        """The end of the portfolio's hash chain, which stands for all of it."""
        return str(self.portfolio[-1][3])


def stored(data_dir: Path) -> Stored:
    """Read what a run left in its database."""
    with database(data_dir) as library, library.connection() as connection:
        found = [
            connection.execute(sql).fetchall()
            for sql in (OUTCOME_ROWS, EVALUATION_ROWS, PORTFOLIO_ROWS, REGIME_ROWS, TRAINING_ROWS)
        ]
    return Stored(*found)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the decisions of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


LEARNING = (
    "--feed", "replay", "--streaming_symbols", "AAPL", "GOOGL", "IBM", "MSFT",
    "--replay_start", "2010-03-01", "--replay_end", "2010-07-30", "--exit_when_done",
)  # fmt: skip
"""A run in which the first training is ready on 2010-07-13, with 60 sessions and 240 decisions for the gate."""

LEARNING_SETTINGS = "sft_min_trajectories: 40\nsft_retrain_interval_hours: 8760\n"


@dataclass(frozen=True)
class Learned:
    """What a run with one training leaves."""

    decisions: bytes
    summary: dict[str, Any]
    stored: Stored


def learning_flags(home: Path) -> tuple[str, ...]:
    """Return the flags of a run with one training, and write its settings."""
    settings = home / "learning.yaml"
    settings.write_text(LEARNING_SETTINGS)
    decisions, summary = str(home / "decisions.jsonl"), str(home / "summary.json")
    return (*LEARNING, "--config", str(settings), "--decisions_jsonl", decisions, "--summary_json", summary)


def learned_in(home: Path) -> Learned:
    """Read what a run with `learning_flags` left."""
    summary = json.loads((home / "summary.json").read_text())
    summary.pop("database")
    return Learned((home / "decisions.jsonl").read_bytes(), summary, stored(home / "data"))
