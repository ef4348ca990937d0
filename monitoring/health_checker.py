"""Health: asks every component whether it can do its work, and raises alerts when one cannot.

Checks are active (a query, a heartbeat, a queue), never a flag that somebody set once. A closed market and a finished
replay are healthy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from utils.errors import SystemFault
from utils.logs import logger

Check = Callable[[], str | None]
"""Returns None if all is well, else what is wrong in one sentence."""


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """The health of one component; `failures` counts checks in a row that found it ill."""

    component: str
    healthy: bool
    detail: str | None
    failures: int


class HealthChecker:
    """Checks components at an interval.

    Parameters
    ----------
    check_interval : float
        Seconds between rounds.
    alert_threshold : int
        Failures in a row that raise an alert; a recovery after one is told as well.
    data_dir : Path
        Whose disk is watched.
    """

    def __init__(self, check_interval: float = 60, alert_threshold: int = 3, data_dir: Path = Path()) -> None:
        self._interval = check_interval
        self._threshold = alert_threshold
        self._data_dir = data_dir
        self._checks: dict[str, Check] = {}
        self._status: dict[str, HealthStatus] = {}
        self._callbacks: list[Callable[[HealthStatus], None]] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, components: Mapping[str, Check]) -> None:
        """Begin to check the given components; the first round is done on return."""
        self._checks = dict(components)
        self._stop.clear()
        self.check_now()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop checking; idempotent."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(5)
        self._thread = None

    def add_alert_callback(self, callback: Callable[[HealthStatus], None]) -> None:
        """Have `callback` told of each alert and each recovery."""
        self._callbacks.append(callback)

    def check_now(self) -> None:
        """Do one round of checks."""
        for name, check in self._checks.items():
            try:
                detail = check()
            except SystemFault as error:
                detail = str(error)
            except Exception as error:  # a check that breaks is news of its component, and must not end all checking
                detail = f"{type(error).__name__}: {error}"
                logger.exception("health: the check of %s broke", name)
            self._note(name, detail)

    def get_health_status(self) -> dict[str, HealthStatus]:
        """Return the latest status of every component."""
        with self._lock:
            return dict(self._status)

    def get_system_health(self) -> dict[str, Any]:
        """Return the overall verdict, who is ill and why, and the machine's resources."""
        status = self.get_health_status()
        ill = {name: s.detail for name, s in status.items() if not s.healthy}
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(str(self._data_dir if self._data_dir.exists() else Path.cwd()))
        return {
            "overall_healthy": not ill,
            "unhealthy_components": sorted(ill),
            "details": ill,
            "component_count": len(status),
            "healthy_count": len(status) - len(ill),
            "system_resources": {
                "cpu_percent": psutil.cpu_percent(interval=None),
                "memory_percent": memory.percent,
                "memory_available_gb": round(memory.available / 1e9, 2),
                "disk_percent": disk.percent,
                "disk_free_gb": round(disk.free / 1e9, 2),
            },
        }

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.check_now()

    def _note(self, name: str, detail: str | None) -> None:
        with self._lock:
            before = self._status.get(name)
            failures = 0 if detail is None else (before.failures if before else 0) + 1
            status = HealthStatus(name, detail is None, detail, failures)
            self._status[name] = status
        recovered = detail is None and before is not None and before.failures >= self._threshold
        if failures == self._threshold:
            logger.error("health: %s has failed %d checks in a row: %s", name, failures, detail)
        if recovered:
            logger.info("health: %s has recovered", name)
        if recovered or failures == self._threshold:
            for callback in self._callbacks:
                callback(status)
