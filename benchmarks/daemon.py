"""Starts the daemon as its users do and measures it from outside: start to ready, decisions a second, memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil


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
