"""What live decisions say of a version beside the one it is compared with: a CUSUM over sessions, and when it speaks.

Pure functions of paired outcomes; `training.trials` reads these and acts. It never compares judges' grades, and never
calls a version better: it only notices that one is worse.

Notes
-----
The statistic is one-sided: S = max(0, S - d/σ - k), an alarm where S > h. d is a session's mean reward difference,
the version under trial minus its reference, each reward by realised outcome alone, so that the mean is 0 where it is no
worse.

- σ is the long-run standard deviation of d: the standard error of the gate's verdict times the root of its sessions.
  Outcomes of overlapping horizons make d a moving average; its sums spread by σ, not by the smaller deviation of one
  session. The verdict estimates σ from few blocks (3 of 20 sessions at the least), so it is widened as the gate's own
  bound is, by t over z. Without that, an estimate that comes out small alarms in 30 % of first years after a gate of 60
  sessions, instead of 10 %.
- k = .25 is half of the shift looked for, .5 σ a session. Measured at a horizon of 5 sessions it finds that shift after
  43 sessions and one of 1 σ after 15; k = .5 would find them after 74 and 14.
- h solves Siegmund's approximation (Sequential Analysis, 1985) for the mean time to a false alarm.

Measured for ten years of 252 sessions (2,520), 600 runs each, h = 10.38, σ known: mean time to a false alarm 2,511 ± 203
sessions for independent d, 6,147 ± 508 for horizons of 5, 22,300 for 20: overlap makes alarms rarer, never more frequent. A
drop of .5 σ is found after 39, 43, 46 sessions on average, one of 1 σ after 14, 15, 15. With σ from a gate of 60, 120,
250 sessions (horizon 5, 1,000 runs): a false alarm in the first year in 9.8, 10.1, 10.1 % (an exact one: 9.5 %), half of
the drops of .5 σ found within 63, 43, 40 sessions, of 1 σ within 19, 16, 15. Where σ was overestimated, small drops
are found late: after a gate of 60 sessions one of .5 σ takes 303 on average.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.bootstrap import few_blocks_factor

SESSIONS_PER_YEAR = 252
REFERENCE_VALUE = 0.25
"""k of the CUSUM, in σ: half the shift that it is tuned to."""

FALLBACK_DEVIATION = 1.0
"""σ where no verdict gives one. Rewards lie in -1..1; the widest mean difference of a session that the market shares spreads
by about .45, and horizons of 5 sessions widen the spread of its sums by √5. Rather late than rash."""

SMALLEST_DEVIATION = 0.02
"""A held-out period in which both said nearly the same says nothing about the spread of their differences: below this the
fallback is taken."""

WIDENING_LEVEL = 0.98
"""At which t over z is taken, whatever level the gate used: the one that the notes above were measured with."""

OVERSHOOT = 1.166
FATAL_RATIO = 2.0
FATAL_LEVEL = 0.02
MIN_FATAL = 5
"""Fatal outputs of a champion below which they never count against it; by its own evidence it takes 14 where the other
has none."""

LATENCY_LIMIT_S = 0.5
MIN_LATENCIES = 100
LATENCY_QUANTILE = 0.95
MAX_SILENT_SESSIONS = 20
"""Sessions with decisions, one after the other, in which a challenger may say nothing: a month in which a server that is away
comes back, and after which its agent's trainings have waited for it long enough."""

MIN_VALIDITY = 0.90
"""Share of a challenger's answers that must be opinions, as in the gate."""


@dataclass(frozen=True, slots=True)
class SessionDifference:
    """Mean reward difference of a session's decisions, the version under trial minus its reference.

    `valid` counts the decisions on which the version under trial had an opinion; the others are differences of 0.
    """

    session: date
    matured_at: datetime
    difference: float
    decisions: int
    valid: int


def alarm_threshold(mean_sessions: float, reference_value: float = REFERENCE_VALUE) -> float:
    """Return h, in σ, for a mean time to a false alarm: Siegmund's approximation with drift -k, solved by bisection.

    ARL = (exp(2kb) - 2kb - 1) / (2k²) with b = h + 1.166.

    Raises
    ------
    ValueError
        If the mean time is below one session or k is not positive.
    """
    if mean_sessions < 1 or reference_value <= 0:
        raise ValueError(f"mean_sessions must be at least 1 and k positive, not {mean_sessions} and {reference_value}")
    low, high = 0.0, 1.0

    def mean_time(b: float) -> float:
        x = 2 * reference_value * b
        return (math.exp(x) - x - 1) / (2 * reference_value**2)

    while mean_time(high) < mean_sessions:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_time(middle) < mean_sessions else (low, middle)
    return max(0.0, low - OVERSHOOT)


def deviation_of(gate: Mapping[str, Any] | None) -> float:
    """Return σ, the long-run deviation of a session's difference, from a gate's stored verdict; see the module's notes."""
    gate = gate or {}
    error = (gate.get("reward") or {}).get("standard_error")
    sessions, block = int(gate.get("sessions") or 0), int(gate.get("block") or 1)
    if error is None or sessions <= block:
        return FALLBACK_DEVIATION
    # the standard error has the factor's first part, √(n/(n - block)), already
    widened = few_blocks_factor(sessions, block, WIDENING_LEVEL) / math.sqrt(sessions / (sessions - block))
    deviation = float(error) * math.sqrt(sessions) * widened
    return deviation if deviation >= SMALLEST_DEVIATION else FALLBACK_DEVIATION


class LiveTrial:
    """The fold of a version's live differences, in order of maturity.

    Parameters
    ----------
    deviation : float
        σ, above 0.
    false_alarm_years : float
        Mean time to a false alarm, years of 252 sessions.

    Attributes
    ----------
    decisions, valid, sessions : int
    statistic : float
        S, in σ.
    alarmed_on : date or None
        The session at which S first passed the threshold.
    """

    def __init__(self, deviation: float, false_alarm_years: float) -> None:
        if not deviation > 0:
            raise ValueError(f"deviation must be above 0, not {deviation}")
        self.deviation = deviation
        self.threshold = alarm_threshold(false_alarm_years * SESSIONS_PER_YEAR)
        self.decisions = 0
        self.valid = 0
        self.sessions = 0
        self.statistic = 0.0
        self.alarmed_on: date | None = None
        self._total = 0.0

    def add(self, found: SessionDifference) -> None:
        """Take in the next session; after an alarm the statistic stands still."""
        self.decisions += found.decisions
        self.valid += found.valid
        self.sessions += 1
        self._total += found.difference
        if self.alarmed_on is None:
            self.statistic = max(0.0, self.statistic - found.difference / self.deviation - REFERENCE_VALUE)
            if self.statistic > self.threshold:
                self.alarmed_on = found.session

    @property
    def mean(self) -> float | None:
        """Mean difference of a session, None before the first."""
        return self._total / self.sessions if self.sessions else None

    @property
    def share(self) -> float:
        """The statistic as a share of its threshold."""
        return self.statistic / self.threshold

    @property
    def in_words(self) -> str:
        """The figures of an alarm."""
        mean = 0.0 if self.mean is None else self.mean
        return (
            f"its reward differs by {mean:+.3f} a session over {self.sessions} sessions and {self.decisions} decisions; "
            f"CUSUM {self.statistic:.1f} of {self.threshold:.1f} deviations of {self.deviation:.3f}"
        )


def too_many_fatal(version: int, reference: int) -> bool:
    """Return whether a version's rate of fatal outputs is shown to be more than twice its reference's.

    Both answered the same questions, so that of n fatal outputs the version has Binomial(n, 2/3) at a ratio of just 2.
    Looked at after every decision, an exact test at a level of 2 % would fire falsely in the end; so the likelihood ratio
    against it is averaged over all greater shares, evenly: a martingale at a ratio of 2 and less below, which passes
    1 / level = 50 with a chance of at most 2 % however often one looks (Ville's inequality).

    Parameters
    ----------
    version, reference : int
        Outputs with a fatal finding, on the same decisions.
    """
    if version < MIN_FATAL:
        return False
    for_version, for_reference, weights = _greater_shares()
    log_ratio = version * for_version + reference * for_reference
    highest = float(log_ratio.max())
    evidence = highest + math.log(float((np.exp(log_ratio - highest) * weights).sum()))
    return evidence > -math.log(FATAL_LEVEL)


@functools.cache
def _greater_shares() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return log likelihood ratios of either's fatal output at the shares above 2/3, and the weights of an even mean."""
    null = FATAL_RATIO / (1 + FATAL_RATIO)
    nodes, weights = np.polynomial.legendre.leggauss(64)
    share = null + (1 - null) * (nodes + 1) / 2
    return np.log(share / null), np.log((1 - share) / (1 - null)), weights / 2


def too_slow(latencies_s: list[float]) -> float | None:
    """Return the 95th percentile (s) of the last answers if it is beyond the limit; None if not, or of fewer than 100."""
    if len(latencies_s) < MIN_LATENCIES:
        return None
    slow = float(np.quantile(latencies_s, LATENCY_QUANTILE))
    return slow if slow > LATENCY_LIMIT_S else None


def too_silent(sessions: int, cause: str) -> str | None:
    """Return why a challenger without answers in its last `sessions` is turned down, in words; None while it may go on."""
    if sessions < MAX_SILENT_SESSIONS:
        return None
    return f"it has answered nothing in {sessions} sessions with decisions, {MAX_SILENT_SESSIONS} end a trial: {cause}"


def challenger_verdict(trial: LiveTrial, decisions: int, sessions: int) -> tuple[bool, str] | None:
    """Return whether a challenger is promoted, and why; None while its trial is not over."""
    if trial.alarmed_on is not None:
        return False, f"it does worse than what serves: {trial.in_words}"
    if trial.decisions < decisions or trial.sessions < sessions:
        return None
    if trial.valid < MIN_VALIDITY * trial.decisions:
        share = trial.valid / trial.decisions
        return False, f"only {share:.0%} of its {trial.decisions} answers were valid; {MIN_VALIDITY:.0%} are needed"
    mean = 0.0 if trial.mean is None else trial.mean
    return True, (
        f"the live paired difference is not below its bound: {mean:+.3f} a session over {trial.sessions} sessions and "
        f"{trial.decisions} decisions; CUSUM {trial.statistic:.1f} of {trial.threshold:.1f}"
    )
