"""A stage of the daemon's work that runs beside the decisions: judging, learning.

One thread, one bounded queue. In a replay the decision thread waits until the stage is idle before it moves the clock
on; live it does not. An item is done when it was processed, not when it was taken: after a failure the stage recovers
from the database first.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from monitoring.supervision import Heartbeat, SupervisedThread
from utils.errors import ComponentStartError, LibraryUnavailable
from utils.patience import patiently

Item = TypeVar("Item")
_POLL_S = 0.2


class Stage(Generic[Item]):
    """Processes items in order.

    Parameters
    ----------
    name : str
        Of the thread.
    process : callable
        Does one item; may raise LibraryUnavailable, which is waited out.
    recover : callable
        Called at each start of the thread: does what the database says is left to do.
    revive : callable
        Called while the database is away.
    size : int
        Items that may wait; `submit` blocks beyond.
    idle : callable
        Called again and again while nothing waits; may raise LibraryUnavailable.
    """

    def __init__(
        self,
        name: str,
        process: Callable[[Item], None],
        recover: Callable[[], None],
        revive: Callable[[], None],
        on_state: Callable[[str], None],
        size: int = 64,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._idle_work = idle
        self._process = process
        self._recover = recover
        self._revive = revive
        self._queue: queue.Queue[Item] = queue.Queue(size)
        self._idle = threading.Condition()
        self._open = 0
        self._covered = 0  # of the open ones: those that recovery will have done
        self.thread = SupervisedThread(name, self._body, on_state)

    def start(self) -> None:
        """Start the thread; it recovers first."""
        with self._idle:
            self._open += 1
            self._covered += 1
        self.thread.start()

    def submit(self, item: Item) -> None:
        """Hand an item over; waits while the queue is full."""
        with self._idle:
            self._open += 1
        while not self.thread.heartbeat.stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                self._raise_if_given_up()
                continue
            return

    @property
    def pending(self) -> int:
        """Items that wait or are in hand."""
        return self._open

    def wait_idle(self, heartbeat: Heartbeat, backlog: int = 0) -> bool:
        """Wait until all but `backlog` of the items handed over are done; False if told to stop meanwhile.

        Raises
        ------
        ComponentStartError
            If the stage was given up.
        """
        with self._idle:
            while self._open > backlog and not heartbeat.stop.is_set() and not self.thread.heartbeat.stop.is_set():
                self._idle.wait(_POLL_S)
                heartbeat.beat()
                self._raise_if_given_up()
            return self._open <= backlog

    def stop(self, timeout_s: float) -> bool:
        """Stop after the item in hand; return whether it did in time."""
        return self.thread.stop(timeout_s)

    def _raise_if_given_up(self) -> None:
        if self.thread.state.startswith("failed"):
            raise ComponentStartError(f"{self.thread.name} was given up ({self.thread.state})")

    def _body(self, heartbeat: Heartbeat) -> None:
        while True:  # what was in the queue before a failure is in the database too: recovery covers it
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
            self._covered += 1
        self._patiently(self._recover, heartbeat)
        with self._idle:
            self._open -= self._covered
            self._covered = 0
            self._idle.notify_all()
        while not heartbeat.stop.is_set():
            heartbeat.beat()
            try:
                item = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                self._patiently(self._idle_work, heartbeat)
                continue
            self._covered += 1
            self._patiently(functools.partial(self._process, item), heartbeat)
            with self._idle:
                self._covered -= 1
                self._open -= 1
                self._idle.notify_all()

    def _patiently(self, work: Callable[[], None], heartbeat: Heartbeat) -> None:
        """Do the work; while the database is away, wait; told to stop, leave it to the next start."""
        with contextlib.suppress(LibraryUnavailable):  # comes through only once it was told to stop
            patiently(self.thread.name, work, heartbeat.stop, self._revive)


class Repeated(Generic[Item]):
    """Work of a stage of which the database does not say what is left: an item that failed is done again by the recovery.

    Parameters
    ----------
    process : callable
        Does one item; safe to repeat.
    """

    def __init__(self, process: Callable[[Item], None]) -> None:
        self._process = process
        self._failed: list[Item] = []

    def __call__(self, item: Item) -> None:
        """Do an item, and remember it until it is done."""
        self._failed = [item]
        self._process(item)
        self._failed = []

    def recover(self) -> None:
        """Do the item again that was in hand when the thread died, if one was."""
        for item in self._failed:
            self(item)
