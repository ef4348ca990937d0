"""Threads under supervision: each has a heartbeat, is restarted with back-off when it dies, and is given up loudly.

Owned by the orchestrator. A body is a function that works until it is told to stop; when it raises, it is started again
after 1, 2, 4 ... 60 s, at most ten times an hour.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from utils.errors import SystemFault
from utils.logs import logger

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 60.0
RESTARTS_PER_HOUR = 10


class Heartbeat:
    """Says when a thread was last seen alive, and tells it whether to stop."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._last = time.monotonic()

    def beat(self) -> None:
        """Note that the thread is alive."""
        self._last = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._last


class SupervisedThread:
    """Runs `body(heartbeat)` in a thread of its own.

    Parameters
    ----------
    name : str
    body : callable
        Returns when its work is done or `heartbeat.stop` is set.
    on_state : callable
        Told of each new state: running, degraded, stopped, finished, ``failed: ...``.
    first_backoff_s : float
        Pause before the first restart; doubles up to a minute.
    """

    def __init__(
        self,
        name: str,
        body: Callable[[Heartbeat], None],
        on_state: Callable[[str], None] = lambda state: None,
        first_backoff_s: float = FIRST_BACKOFF_S,
    ) -> None:
        self.name = name
        self.heartbeat = Heartbeat()
        self.restarts = 0
        self.state = "initialized"
        self._body = body
        self._on_state = on_state
        self._first_backoff_s = first_backoff_s
        self._recent: deque[float] = deque()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._set("running")
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ask the body to stop and wait; return whether it did in time."""
        self.heartbeat.stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        backoff = self._first_backoff_s
        while not self.heartbeat.stop.is_set():
            began = time.monotonic()
            try:
                self.heartbeat.beat()
                self._body(self.heartbeat)
            except Exception as error:
                if self.heartbeat.stop.is_set():
                    break
                if time.monotonic() - began > 600:
                    backoff = self._first_backoff_s
                if not self._may_restart():
                    self._set(f"failed: {_in_words(error)}")
                    logger.error(
                        "%s is given up after %d restarts within an hour: %s",
                        self.name,
                        RESTARTS_PER_HOUR,
                        _in_words(error),
                    )
                    return
                self._set(f"degraded: {_in_words(error)}")
                logger.warning(
                    "%s stopped with an error and is started again in %.0f s: %s",
                    self.name, backoff, _in_words(error), exc_info=not isinstance(error, SystemFault),
                )  # fmt: skip
                self.heartbeat.stop.wait(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF_S)
                self.restarts += 1
                self._set("running")
            else:
                self._set("stopped" if self.heartbeat.stop.is_set() else "finished")
                return
        self._set("stopped")

    def _may_restart(self) -> bool:
        now = time.monotonic()
        self._recent.append(now)
        while now - self._recent[0] > 3600:
            self._recent.popleft()
        return len(self._recent) <= RESTARTS_PER_HOUR

    def _set(self, state: str) -> None:
        self.state = state
        self._on_state(state)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
