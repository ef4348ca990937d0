"""One thread with one event loop for all hosted calls, however many are open.

`utils.llm.factory` owns one; it starts with the first call and is closed with its owner. It never outlives `close`, unless
a coroutine refuses to be cancelled, which is logged.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from utils.errors import ProviderError
from utils.logs import logger

_T = TypeVar("_T")

CLOSE_S = 5.0
"""Seconds that cancelled coroutines are given to clean up."""


class LoopThread:
    """Runs coroutines on a thread of its own.

    Parameters
    ----------
    name : str
        Of the thread.
    """

    def __init__(self, name: str = "llm") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def is_running(self) -> bool:
        """Whether the thread runs: not before the first call, not after `close`."""
        return self._thread is not None

    def submit(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> Future[_T]:
        """Run the coroutine that `work` returns; cancelling the future cancels it.

        Raises
        ------
        ProviderError
            Of kind closed, after `close`.
        """
        with self._lock:
            if self._closed:
                raise ProviderError("the models are closed; make new ones", kind="closed")
            return asyncio.run_coroutine_threadsafe(work(), self._started())

    def post(self, callback: Callable[[], None]) -> None:
        """Have the thread call something if it runs. For finalizers, in whatever thread and state: it takes no lock."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it ended this moment
                loop.call_soon_threadsafe(callback)

    def close(self) -> None:
        """Cancel what runs, wait for it to end, and end the thread; may be called twice, not from the thread itself."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_S + 1.0)
        if thread.is_alive():
            logger.warning("the thread %s is still busy after %.0f s and is left behind", self._name, CLOSE_S + 1.0)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run, args=(self._loop,), name=self._name, daemon=True)
            self._thread.start()
        return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        open_ = asyncio.all_tasks(loop)
        for task in open_:
            task.cancel()
        if open_:
            loop.run_until_complete(asyncio.wait(open_, timeout=CLOSE_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())  # name look-ups and SDKs use it
    finally:
        asyncio.set_event_loop(None)
        loop.close()
