"""The benchmark section ``daemon``: start, decisions a second and memory of the daemon, beside their floors."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.daemon import Measured, run_daemon
from data_pipeline.embedded_postgres import EmbeddedPostgres

RULES = ("--feed", "replay", "--enable_streaming", "--enable_monitoring", "--agents", "rules")
SAMPLE = ("--streaming_symbols", "AAPL", "MSFT", "GOOGL", "--replay_start", "2010-03-01", "--replay_end", "2013-03-01")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the daemon on the sample, and on REPLAY_DATA_DIR where it is set; print and return its figures."""
    figures: dict[str, Any] = {}
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
        print(f"import floor (numpy, pandas, pydantic, psycopg): {_import_floor():.2f} s")
        print(f"database floor (initdb and start, embedded):     {_database_floor(root / 'floor'):.2f} s\n")
        for name, data_dir, flags in runs:
            measured = run_daemon(data_dir, *RULES, *flags)
            _report(name, measured, _copy_floor(data_dir))
            figures[name] = asdict(measured) | {"decisions_per_s": measured.decisions_per_s}
    return figures


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
