"""Work that needs the database waits while it is away, and is done again once it answers.

Stages and the commits of the trading cycle share it. Nothing else is waited out: every other fault goes to the caller.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from utils.errors import LibraryUnavailable
from utils.logs import logger

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


def patiently(name: str, work: Callable[[], None], stop: threading.Event, revive: Callable[[], None]) -> None:
    """Do the work; while the library is away, wait with doubling pauses and do it again.

    Parameters
    ----------
    name : str
        Who waits, for the log.
    work : callable
        May raise LibraryUnavailable, and must then have changed nothing or be safe to repeat.
    stop : threading.Event
        Once set, the next failure is the last.
    revive : callable
        Brings back what is ours of the library, after each pause.

    Raises
    ------
    LibraryUnavailable
        If it was given up.
    """
    delay = FIRST_PAUSE_S
    while True:
        try:
            work()
        except LibraryUnavailable as error:
            if stop.is_set():
                raise
            logger.warning("%s waits %.1f s: %s", name, delay, error)
        else:
            return
        stop.wait(delay)
        delay = min(2 * delay, LONGEST_PAUSE_S)
        revive()
