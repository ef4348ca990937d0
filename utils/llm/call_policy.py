"""What happens after a failed call: wait and ask again, ask for a better answer, give up, or leave the model alone.

`utils.llm.hosted` keeps one `ModelGate` a model and one `Attempts` a call. Pure but for the clock and the random numbers
that it is handed; it never sleeps and never asks anybody.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from utils.errors import ProviderError, ProviderFault
from utils.llm.adapter import VendorError
from utils.llm.base import ChatMessage

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 8.0
MAX_OVERLOAD_RETRIES = 2
MAX_RATE_RETRIES = 4
BREAKER_FAILURES = 5
BREAKER_WINDOW_S = 60.0
BREAKER_OPEN_S = 30.0
REPAIR_NEEDS_S = 0.5
"""Seconds that must be left of the deadline for a second answer to be worth its price."""

_LONGEST_QUOTED_ANSWER = 4000
"""Characters of a bad answer that the model is shown again."""

_BREAKER_KINDS: frozenset[ProviderFault] = frozenset({"overload", "timeout", "fault"})
"""What says that the vendor is not well, rather than that it did not like the question."""


@dataclass(frozen=True, slots=True)
class NextStep:
    """What to do after a failure. `wait_s` seconds pass before a retry; a repair follows at once."""

    action: Literal["retry", "repair", "fail"]
    wait_s: float = 0.0


class Attempts:
    """Decides, failure by failure, how one call goes on.

    Parameters
    ----------
    rng : random.Random
        Source of the jitter.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._overload_retries = 0
        self._rate_retries = 0
        self._repaired = False

    def after(self, error: VendorError, remaining_s: float) -> NextStep:
        """Return what to do, with `remaining_s` seconds left of the deadline; a wait always fits in them."""
        if error.kind in ("malformed", "truncated"):
            if self._repaired or remaining_s < REPAIR_NEEDS_S:
                return NextStep("fail")
            self._repaired = True
            return NextStep("repair")
        if error.kind == "rate":
            retries, self._rate_retries = self._rate_retries, self._rate_retries + 1
            limit = MAX_RATE_RETRIES
        elif error.kind == "overload":
            retries, self._overload_retries = self._overload_retries, self._overload_retries + 1
            limit = MAX_OVERLOAD_RETRIES
        else:
            return NextStep("fail")
        wait_s = max(error.retry_after_s or 0.0, full_jitter_s(retries, self._rng))
        return NextStep("retry", wait_s) if retries < limit and wait_s < remaining_s else NextStep("fail")


def full_jitter_s(retries: int, rng: random.Random) -> float:
    """Return seconds drawn evenly from 0 to a bound that doubles from 0.5 with each retry before, up to 8.

    Full jitter as in M. Brooker, "Exponential Backoff And Jitter" (2015).
    """
    return rng.uniform(0.0, min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0**retries))


def repaired(messages: Sequence[ChatMessage], error: VendorError) -> list[ChatMessage]:
    """Return the messages with the bad answer and what was wrong with it, for one more try."""
    if error.kind == "truncated":
        wrong = "Your answer was cut off because it was too long."
        ask = "Answer again, much shorter, with exactly one complete JSON object."
    else:
        wrong = f"Your answer cannot be used: {error.reason or error}."
        ask = "Answer again with exactly one valid JSON object that fits the schema, without any text around it."
    said = error.answer.text.strip()[:_LONGEST_QUOTED_ANSWER] if error.answer else ""
    said = said.encode("utf-8", "replace").decode()  # half of a surrogate pair cannot be sent back
    if said:
        return [*messages, ChatMessage("assistant", said), ChatMessage("user", f"{wrong} {ask}")]
    if messages and messages[-1].role == "user":  # vendors want turns to alternate, and no empty one
        return [*messages[:-1], ChatMessage("user", f"{messages[-1].content}\n\n{ask}")]
    return [*messages, ChatMessage("user", ask)]


class CircuitBreaker:
    """Holds calls back from a model that keeps failing: 5 failures in 60 s close it off for 30 s, then one call may try.

    Parameters
    ----------
    monotonic : callable
        Seconds that never go back.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._failures: deque[float] = deque(maxlen=BREAKER_FAILURES)
        self._open_until: float | None = None
        self._trying = False

    @property
    def is_open(self) -> bool:
        """Whether calls are held back, but for the one trial."""
        return self._open_until is not None

    @property
    def open_for_s(self) -> float:
        """Seconds until a call may try again; 0 when one may."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - self._monotonic())

    @property
    def would_allow(self) -> bool:
        """Whether a call may go out now."""
        return self._open_until is None or (not self._trying and self._monotonic() >= self._open_until)

    def allow(self) -> bool:
        """Return whether a call may go out; whoever is let out must report `succeeded`, `failed` or `abandoned`."""
        allowed = self.would_allow
        if allowed and self._open_until is not None:
            self._trying = True
        return allowed

    def succeeded(self) -> None:
        """Take note that the vendor answers."""
        self._failures.clear()
        self._open_until = None
        self._trying = False

    def failed(self) -> None:
        """Take note of a failure; a failed trial opens for another 30 s."""
        now = self._monotonic()
        self._failures.append(now)
        tried, self._trying = self._trying, False
        recent = len(self._failures) == BREAKER_FAILURES and now - self._failures[0] <= BREAKER_WINDOW_S
        if tried or (recent and self._open_until is None):
            self._open_until = now + BREAKER_OPEN_S
            self._failures.clear()

    def abandoned(self) -> None:
        """Take note that a call ended without telling anything of the vendor."""
        self._trying = False


class ModelGate:
    """Whether a model may be asked now: off until restart, off until tomorrow, held back, or free.

    Parameters
    ----------
    name : str
        ``<provider>:<model>``, for messages.
    monotonic : callable
        Seconds that never go back.
    today : callable
        The date of UTC.
    """

    def __init__(self, name: str, monotonic: Callable[[], float], today: Callable[[], date]) -> None:
        self._name = name
        self._today = today
        self._breaker = CircuitBreaker(monotonic)
        self._off: ProviderError | None = None
        self._spent_on: date | None = None

    @property
    def state(self) -> str:
        """``ready``, ``off: <kind>`` or ``open``."""
        if self._off is not None:
            return f"off: {self._off.kind}"
        if self._spent_on == self._today():
            return "off: quota"
        return "open" if self._breaker.is_open else "ready"

    def check(self) -> None:
        """Let whoever asks know.

        Raises
        ------
        ProviderError
            If the model is off or held back.
        """
        if self._off is not None:
            raise ProviderError(str(self._off), kind=self._off.kind)
        if self._spent_on == self._today():
            raise ProviderError(
                f"{self._name}: the vendor's quota is spent; off until the next day (UTC)", kind="quota"
            )
        if not self._breaker.would_allow:
            raise ProviderError(
                f"{self._name}: held back after {BREAKER_FAILURES} failures within {BREAKER_WINDOW_S:.0f} s; "
                f"tried again in {self._breaker.open_for_s:.0f} s",
                kind="open",
            )

    def enter(self) -> None:
        """Do as `check` does and let a call through, which must end with `leave`."""
        self.check()
        self._breaker.allow()

    def leave(self, error: VendorError | None, *, told: bool = True) -> None:
        """Take note of how a call ended; `told` is false if nothing was learnt of the vendor, as of a cancelled call."""
        if not told:
            self._breaker.abandoned()
            return
        if error is not None and error.kind == "auth":
            self.turn_off(error)
        elif error is not None and error.kind == "quota":
            self._spent_on = self._today()
        if error is not None and error.kind in _BREAKER_KINDS:
            self._breaker.failed()
        else:
            self._breaker.succeeded()

    def turn_off(self, error: ProviderError) -> None:
        """Refuse every call from now on with this error's kind and words."""
        self._off = error
