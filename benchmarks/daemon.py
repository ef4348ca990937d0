"""The section `daemon`: starts it as its users do and measures it from outside: start to ready, decisions a second, memory.

Called by ``python -m benchmarks daemon``.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg

from data_pipeline.embedded_postgres import EmbeddedPostgres

RULES = ("--feed", "replay", "--enable_streaming", "--enable_monitoring", "--agents", "rules")
SAMPLE = ("--streaming_symbols", "AAPL", "MSFT", "GOOGL", "--replay_start", "2010-03-01", "--replay_end", "2013-03-01")


@dataclass(frozen=True)
class Measured:
    """One run of the daemon; times in seconds, memory in MB (10^6 bytes)."""

    ready_s: float
    wall_s: float
    decisions: int
    trajectories: int
    peak_rss_mb: float
    exit_code: int
    summary: dict

    @property
    def decisions_per_s(self) -> float:
        """Decisions persisted a second between ready and the end."""
        return self.decisions / (self.wall_s - self.ready_s)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the daemon over the sample and, where ``REPLAY_DATA_DIR`` names one, over a folder of history; print and return the figures."""
    del options
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        history = os.environ.get("REPLAY_DATA_DIR")
        runs = [("sample history, 3 symbols, 3 years", root / "sample", SAMPLE)]
        if history:
            period = ("--replay_dir", history, "--replay_start", "2014-01-02", "--replay_end", "2015-09-30")
            runs.append(("folder of history, all symbols with news", root / "folder", period))
        else:
            print("REPLAY_DATA_DIR is not set: the run over a folder of history is left out")
        found["import_floor_s"], found["database_floor_s"] = _import_floor(), _database_floor(root / "floor")
        print(f"import floor (numpy, pandas, pydantic, psycopg): {found['import_floor_s']:.2f} s")
        print(f"database floor (initdb and start, embedded):     {found['database_floor_s']:.2f} s\n")
        for name, data_dir, flags in runs:
            measured = run_daemon(data_dir, *RULES, *flags)
            floor = _copy_floor(data_dir)
            _report(name, measured, floor)
            found[name] = asdict(measured) | {"copy_rows_per_s": floor}
    return found


def run_daemon(data_dir: Path, *flags: str, timeout_s: float = 900) -> Measured:
    """Run a replay to its end with an embedded database of its own."""
    port = _free_port()
    summary_path = data_dir / "summary.json"
    data_dir.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "monitoring.production_orchestrator", "--data_dir", str(data_dir), "--metrics_port", str(port),
        "--exit_when_done", "--summary_json", str(summary_path), "--log_level", "WARNING", *flags,
    ]  # fmt: skip
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}) as child:
        process = psutil.Process(child.pid)
        ready: float | None = None
        peak = 0
        while child.poll() is None:
            elapsed = time.perf_counter() - started
            if elapsed > timeout_s:
                child.kill()
                raise TimeoutError(f"the daemon did not end within {timeout_s:.0f} s")
            if ready is None and _is_ready(port):
                ready = time.perf_counter() - started
            try:
                peak = max(peak, process.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.02)
        child.wait()
    wall = time.perf_counter() - started
    summary = json.loads(summary_path.read_text()) if summary_path.exists() else {}
    return Measured(
        ready if ready is not None else float("nan"),
        wall,
        summary.get("decisions", 0),
        summary.get("trajectories", 0),
        peak / 1e6,
        child.returncode,
        summary,
    )


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _report(name: str, m: Measured, copy_rows_per_s: float) -> None:
    rows_per_s = m.trajectories / (m.wall_s - m.ready_s)
    print(name)
    print(f"  start to ready        {m.ready_s:8.2f} s      aim 5 s")
    print(
        f"  decisions persisted   {m.decisions_per_s:8.0f} /s     aim 500 /s ({m.decisions} decisions, {m.trajectories} trajectories)"
    )
    print(
        f"  trajectory rows       {rows_per_s:8.0f} /s     {rows_per_s / copy_rows_per_s:.2f} of a bare COPY of the same rows ({copy_rows_per_s:.0f} /s)"
    )
    print(f"  peak memory           {m.peak_rss_mb:8.0f} MB     aim 150 MB (rules, torch not loaded)")
    print(f"  exit code             {m.exit_code:8d}\n")


def _import_floor() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import numpy, pandas, pydantic, psycopg"], check=True)
    return time.perf_counter() - started


def _database_floor(data_dir: Path) -> float:
    data_dir.mkdir()
    server = EmbeddedPostgres(data_dir)
    started = time.perf_counter()
    server.start()
    elapsed = time.perf_counter() - started
    server.stop()
    return elapsed


def _copy_floor(data_dir: Path) -> float:
    """Return rows a second of copying the run's own trajectories into a table without indexes."""
    server = EmbeddedPostgres(data_dir)
    url = server.start()
    try:
        with psycopg.connect(url) as connection, connection.cursor() as cursor:
            with cursor.copy("COPY (SELECT * FROM trajectories LIMIT 20000) TO STDOUT") as copy:
                data = [bytes(block) for block in copy]
            cursor.execute("CREATE TEMP TABLE floor (LIKE trajectories)")
            started = time.perf_counter()
            with cursor.copy("COPY floor FROM STDIN") as copy:
                for block in data:
                    copy.write(block)
            return cursor.rowcount / (time.perf_counter() - started)
    finally:
        server.stop()
