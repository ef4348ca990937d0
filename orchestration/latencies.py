"""How long the last answers of each policy took. Kept by a live coordinator for whoever watches a model's service."""

from __future__ import annotations

from collections import deque

KEPT_ANSWERS = 200
"""Of a policy in an agent's seat: enough for a 95th percentile, few enough to forget a bad hour."""


class Latencies:
    """The newest latencies by agent and policy; written by the threads that ask agents, read by any."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str], deque[float]] = {}

    def note(self, agent_type: str, policy: str, seconds: float) -> None:
        """Take in one answer."""
        self._newest.setdefault((agent_type, policy), deque(maxlen=KEPT_ANSWERS)).append(seconds)

    def forget(self, agent_type: str) -> None:
        """Drop what is known of an agent's policies: whoever takes its seat is not measured by a former time in it."""
        for key in list(self._newest):
            if key[0] == agent_type:
                self._newest.pop(key, None)

    def of(self, agent_type: str, policy: str) -> list[float]:
        """Return the seconds of a policy's newest answers, oldest first."""
        newest = self._newest.get((agent_type, policy))
        return [] if newest is None else list(newest.copy())
