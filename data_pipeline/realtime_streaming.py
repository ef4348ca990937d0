"""Carries a feed's instants from the feed's own thread to the one that decides on them.

The orchestrator starts and stops a `FeedPump`; the bounded queue in it blocks the feed, so nothing of a replay is lost
however slow the consumer is. It decides nothing and swallows nothing: what breaks the feed breaks the consumer's `get`.
"""

from __future__ import annotations

import queue
import threading
import time
from datetime import datetime

from data_pipeline.feeds.base import MarketFeed
from utils.schema import Instant, MarketUpdate

__all__ = ["FeedPump", "MarketUpdate"]

_POLL_S = 0.1
"""How often a blocked feed thread looks whether it is to stop, and shows that it is alive."""

_END = None


class FeedPump:
    """The feed's thread and the queue behind it.

    Parameters
    ----------
    feed : MarketFeed
        Closed by `stop`.
    queue_size : int
        Instants that may wait; the feed blocks beyond that.
    after : datetime, optional
        Instants up to it are done already; see `MarketFeed.instants`.
    """

    def __init__(self, feed: MarketFeed, queue_size: int = 10_000, after: datetime | None = None) -> None:
        if queue_size < 1:
            raise ValueError(f"queue_size must be at least 1, got {queue_size}")
        self._feed = feed
        self._after = after
        self._queue: queue.Queue[Instant | None] = queue.Queue(queue_size)
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._beat = time.monotonic()
        self._waiting_for_feed = False

    @property
    def ended(self) -> bool:
        """Whether the feed has ended and everything it gave has been consumed."""
        return self._ended.is_set()

    @property
    def depth(self) -> int:
        """How many instants wait in the queue."""
        return self._queue.qsize()

    @property
    def alive(self) -> bool:
        """Whether the feed's thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def heartbeat(self) -> float:
        """Monotonic time (s) at which the feed's thread was last known to be well.

        While it waits inside the feed for the next instant, that is now: waiting is a feed's business, and a lost
        connection is repaired there.
        """
        return time.monotonic() if self.alive and self._waiting_for_feed else self._beat

    def start(self) -> None:
        """Start the thread; does nothing if it was started before."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
                self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Close the feed and wait for the thread; what still waits in the queue can be consumed or left."""
        self._stopping.set()
        self._feed.close()
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def get(self, timeout: float | None = None) -> Instant | None:
        """Return the next instant; None after `timeout` seconds without one, or once the feed has ended.

        Raises
        ------
        BaseException
            Whatever ended the feed's thread, after all instants before it have been consumed.
        """
        if self._ended.is_set():
            self._finish()
            return None
        try:
            instant = self._queue.get(timeout=timeout)
        except queue.Empty:
            return None
        if instant is _END:
            self._finish()
        return instant

    def _finish(self) -> None:
        self._ended.set()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            instants = self._feed.instants(self._after)
            while not self._stopping.is_set():
                self._waiting_for_feed = True
                instant = next(instants, _END)
                self._waiting_for_feed = False
                if instant is _END or not self._put(instant):
                    break
        except BaseException as error:  # kept whole for the consumer, whose `get` raises it
            self._failure = error
        finally:
            self._waiting_for_feed = False
            self._put_end()

    def _put(self, instant: Instant | None) -> bool:
        """Put into the queue, waiting for room; False if told to stop meanwhile."""
        while True:
            self._beat = time.monotonic()
            try:
                self._queue.put(instant, timeout=0 if self._stopping.is_set() else _POLL_S)
            except queue.Full:
                if self._stopping.is_set():
                    return False
                continue
            return True

    def _put_end(self) -> None:
        """Mark the end; when told to stop with a full queue the newest instant gives way, for nobody will take it."""
        while not self._put(_END):
            try:
                self._queue.get_nowait()
            except queue.Empty:
                continue
