"""A database server that tests kill, stop and bring back; and a child process that writes until it is killed.

Used by the tests of outages. Run as a program it opens a library with a spool and stores trajectories, or only drains.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from data_pipeline.embedded_postgres import EmbeddedPostgres
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory

T0 = datetime(2014, 6, 2, 20, tzinfo=UTC)


def trajectory(name: str, **changes: Any) -> Trajectory:
    """Return a trajectory whose identity is `name`."""
    fields: dict[str, Any] = {
        "trajectory_id": name, "timestamp": T0.timestamp(), "symbol": "AAPL", "agent_type": "technical",
        "market_state": {"regime": "bull_market", "volatility": 0.1 + 0.2}, "agent_inputs": {"bars": 300},
        "reasoning": f"reason {name}", "confidence": 0.75,
    }  # fmt: skip
    return Trajectory(**{**fields, **changes})


def until(condition: Callable[[], Any], what: str, limit_s: float = 30.0) -> Any:
    """Wait until `condition` gives something true, and return that."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no {what} within {limit_s:g} s"
        time.sleep(0.005)
    return found


class OutageServer(EmbeddedPostgres):
    """An embedded server that dies whole, and comes back when the test says so."""

    def die(self) -> None:
        """Kill the postmaster and every backend with SIGKILL, at one moment."""
        pid = self._postmaster()
        assert pid is not None
        postmaster = psutil.Process(pid)
        family = [postmaster, *postmaster.children()]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        until(lambda: not self._ready(), "the end of the server")

    def come_back(self) -> None:
        """Start it again; returns once it answers."""
        until(self.ensure_running, "the server", 60)

    def restart_orderly(self) -> None:
        """Shut down as an administrator does, cutting sessions off, and start again."""
        self._run("pg_ctl", "-D", str(self.cluster), "-m", "fast", "-w", "-t", "60", "stop")
        self.come_back()


def main(role: str, url: str, spool_dir: str, prefix: str) -> None:
    """Drain what is in the spool; as `write`, store trajectories after that and say which are acknowledged."""
    library = ExperienceLibraryPostgres(dsn=url, spool_dir=Path(spool_dir), pool_size=2)
    print("ready", flush=True)
    number = 0
    while role == "write":
        library.store_trajectory(trajectory(f"{prefix}{number}"))
        print(number, flush=True)
        number += 1
    library.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
