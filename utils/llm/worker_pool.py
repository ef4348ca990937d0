"""A few daemon threads for calls that cannot be made on the event loop: a synchronous SDK, a model on this machine.

Adapters own one each, and so does the workflow's manager. Python's own executor is no substitute: it waits for hung calls when the interpreter ends.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")

_JOIN_S = 2.0


class WorkerPool:
    """Runs functions on at most `size` threads, which start when they are needed.

    Parameters
    ----------
    size : int
        Threads.
    name : str
        Of the threads.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._held = 0
        self._abandoned: set[Future[Any]] = set()
        self._closed = False

    @property
    def is_full(self) -> bool:
        """Whether every thread has a job."""
        with self._lock:
            return self._held >= self._size

    def submit(self, work: Callable[[], _T]) -> Future[_T]:
        """Run `work` as soon as a thread is free; a job that has not begun can be cancelled.

        Raises
        ------
        RuntimeError
            After `close`.
        """
        future: Future[_T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._held += 1
            self._staff()
            self._jobs.put((future, work))
        return future

    def abandon(self, future: Future[Any]) -> None:
        """Believe no more in a job of this pool: if it is under way, another thread takes the place of its own until it ends."""
        with self._lock:
            if not future.cancel() and not future.done():
                self._abandoned.add(future)
                self._size += 1
                self._staff()

    def close(self) -> None:
        """Let the threads end; those that hang in a call are left behind after 2 seconds."""
        with self._lock:
            self._closed = True
            threads = tuple(self._threads)
            for _ in threads:
                self._jobs.put(None)
        for thread in threads:
            thread.join(_JOIN_S / len(threads))

    def _staff(self) -> None:
        if self._held > len(self._threads) and len(self._threads) < self._size:
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, work = job
            result: Any = None
            fault: BaseException | None = None
            started = future.set_running_or_notify_cancel()
            if started:
                try:
                    result = work()
                except BaseException as error:  # the future carries it to whoever waits
                    fault = error
            with self._lock:
                self._held -= 1
            if started and fault is not None:
                future.set_exception(fault)
            elif started:
                future.set_result(result)
            with self._lock:
                if future in self._abandoned:  # its place is taken
                    self._abandoned.discard(future)
                    self._size -= 1
                    self._threads.remove(threading.current_thread())
                    return
            del job, future, work, result, fault
