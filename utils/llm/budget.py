"""What hosted models may cost: in a day of UTC over all of them, and for one decision in USD and tokens.

Every hosted call reserves an upper estimate before it is sent and settles with what it really used. What is spent or
reserved is kept in a small file, so that a daemon that crashes and restarts cannot spend the day's money again.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from utils.errors import ProviderError
from utils.logs import logger
from utils.telemetry import NO_TELEMETRY, Telemetry

MAX_ACCOUNTS = 4096
"""Decisions that are remembered; one that is long over is not asked for again."""

_ROUNDING_USD = 1e-9

_STEP = 0.01
"""Share of the day's money that the file is ahead by while calls are out."""


def utc_today() -> date:
    """Return the date of UTC by the wall clock: vendors charge by it, in replays too."""
    return datetime.now(UTC).date()


@dataclass(slots=True)
class _Account:
    usd: float = 0.0
    tokens: int = 0
    open_calls: int = 0


@dataclass(frozen=True, slots=True)
class Reservation:
    """An estimate that stands until it is settled."""

    account: str
    usd: float
    tokens: int


class Budget:
    """Refuses calls that could exceed a limit. Safe to use from any thread.

    Parameters
    ----------
    usd_per_day, usd_per_decision : float
        USD; 0 allows only what costs nothing.
    tokens_per_decision : int
        Of input and output together.
    path : Path, optional
        File that keeps the day's spending over restarts; None keeps it in memory alone.
    today : callable
        The date of UTC.
    telemetry : Telemetry
        Is told the gauge ``llm_budget_left_usd``.
    """

    def __init__(
        self,
        usd_per_day: float,
        usd_per_decision: float = math.inf,
        tokens_per_decision: float = math.inf,
        path: Path | None = None,
        today: Callable[[], date] = utc_today,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._usd_per_day = usd_per_day
        self._usd_per_decision = usd_per_decision
        self._tokens_per_decision = tokens_per_decision
        self._path = path
        self._today = today
        self._telemetry = telemetry
        self._lock = threading.Lock()
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._reserved_usd = 0.0
        self._refused = False
        self._cannot_write = False
        self._day = today()
        self._spent_usd = self._kept_usd = self._stored(self._day)
        self._report()

    @property
    def usd_per_day(self) -> float:
        """The limit of a day in USD."""
        return self._usd_per_day

    @property
    def spent_today(self) -> float:
        """USD that settled calls of this UTC day cost, those before a restart included."""
        with self._lock:
            self._turn_of_day()
            return self._spent_usd

    @property
    def exhausted(self) -> bool:
        """Whether the day's money is spent, or the last call that cost some was refused for the want of it."""
        with self._lock:
            self._turn_of_day()
            return self._refused or self._spent_usd >= self._usd_per_day

    def reserve(self, usd: float, tokens: int, account: str = "") -> Reservation:
        """Set an upper estimate of a call aside.

        Parameters
        ----------
        usd : float
        tokens : int
            Input and output together.
        account : str
            The decision it is for; empty has no limits of its own.

        Raises
        ------
        ProviderError
            Of kind budget, with the setting that is exceeded.
        """
        with self._lock:
            self._turn_of_day()
            committed = self._spent_usd + self._reserved_usd
            if usd > 0 and committed + usd > self._usd_per_day + _ROUNDING_USD:
                self._refused = True
                raise _over("budget.usd_per_day", f"{self._usd_per_day:.2f} USD", f"{committed:.4f}", f"{usd:.4f}")
            held = self._account(account)
            if account and usd > 0 and held.usd + usd > self._usd_per_decision + _ROUNDING_USD:
                limit = f"{self._usd_per_decision:.2f} USD"
                raise _over("budget.usd_per_decision", limit, f"{held.usd:.4f}", f"{usd:.4f}")
            if account and held.tokens + tokens > self._tokens_per_decision:
                raise _over("budget.tokens_per_decision", f"{self._tokens_per_decision}", f"{held.tokens}", f"{tokens}")
            held.usd += usd
            held.tokens += tokens
            held.open_calls += 1
            if usd > 0:
                self._refused = False
                self._reserved_usd += usd
                self._store()
            return Reservation(account, usd, tokens)

    def settle(self, reservation: Reservation, usd: float, tokens: int) -> None:
        """Put what a call really used in the place of its estimate."""
        with self._lock:
            self._turn_of_day()
            held = self._account(reservation.account)
            held.usd = max(0.0, held.usd + usd - reservation.usd)
            held.tokens = max(0, held.tokens + tokens - reservation.tokens)
            held.open_calls = max(0, held.open_calls - 1)
            self._reserved_usd = max(0.0, self._reserved_usd - reservation.usd)
            if usd > 0 or reservation.usd > 0:
                self._spent_usd += usd
                if self._reserved_usd <= _ROUNDING_USD:
                    self._reserved_usd = 0.0
                self._store()
                self._report()

    def close(self) -> None:
        """Make the file say exactly what is spent, and what calls that are still out may take."""
        with self._lock:
            self._turn_of_day()
            if self._kept_usd != self._spent_usd + self._reserved_usd and self._kept_usd > 0:
                self._write(self._spent_usd + self._reserved_usd)

    def _account(self, name: str) -> _Account:
        if not name:
            return _Account()
        held = self._accounts.setdefault(name, _Account())
        self._accounts.move_to_end(name)
        if len(self._accounts) > MAX_ACCOUNTS:
            oldest = next((key for key, value in self._accounts.items() if not value.open_calls and key != name), None)
            if oldest is not None:
                del self._accounts[oldest]
        return held

    def _turn_of_day(self) -> None:
        today = self._today()
        if today > self._day:  # a clock that is set back does not give the money back
            self._day = today
            self._spent_usd = 0.0
            self._refused = False
            self._kept_usd = -1.0  # the file is yesterday's
            if self._reserved_usd > 0:  # calls that are out across midnight are paid out of the new day
                self._store()
            self._report()

    def _report(self) -> None:
        self._telemetry.gauge("llm_budget_left_usd", max(0.0, self._usd_per_day - self._spent_usd))

    def _stored(self, day: date) -> float:
        """Return what the file says was spent on a day; a file that is not readable counts as the whole day's money."""
        if self._path is None or not self._path.exists():
            return 0.0
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            stored_day, usd = date.fromisoformat(stored["day"]), float(stored["usd"])
            if not (math.isfinite(usd) and usd >= 0):
                raise ValueError(f"usd is {usd}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning(
                "%s is not readable (%s): the day's budget counts as spent; delete the file to begin anew",
                self._path, " ".join(str(error).split())[:100],
            )  # fmt: skip
            return self._usd_per_day
        return usd if stored_day >= day else 0.0

    def _store(self) -> None:
        """Keep at least what is spent and reserved: after a crash, calls that were out count with their estimate.

        The file runs up to a hundredth of the day ahead, so that it is not written for each call; `close` makes it exact. It
        is not forced to disk: a crash of the process loses nothing.
        """
        committed = self._spent_usd + self._reserved_usd
        if committed > self._kept_usd:
            self._write(max(committed, min(committed + _STEP * self._usd_per_day, self._usd_per_day)))

    def _write(self, usd: float) -> None:
        if self._path is None:
            return
        content = json.dumps({"day": self._day.isoformat(), "usd": usd})
        aside = self._path.with_name(f".{self._path.name}.{os.getpid()}.aside")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(content, encoding="utf-8")
            aside.replace(self._path)
        except OSError as error:
            if not self._cannot_write:
                logger.warning("cannot keep the spending in %s (%s); a restart forgets it", self._path, error.strerror)
            self._cannot_write = True
        else:
            self._kept_usd = usd
            self._cannot_write = False


def _over(setting: str, limit: str, committed: str, wanted: str) -> ProviderError:
    return ProviderError(
        f"{setting}: of {limit}, {committed} are spent or reserved and this call may take {wanted}; raise it or wait",
        kind="budget",
    )
