"""Faults of the system, one type for each reaction.

Every module raises these and nothing broader; the docstring of a type names what the caller does about it. Used by all
packages. Never caught wholesale: a fault nobody expects must reach the supervision and be seen.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal


class SystemFault(Exception):
    """Root of every fault that the system raises on purpose."""


class ConfigError(SystemFault):
    """A setting is wrong. Reaction: one line that names the field and the remedy, exit code 2, no side effect."""


class ComponentStartError(SystemFault):
    """An enabled part cannot start (port in use, database away, second orchestrator). Reaction: exit code 3."""


class DataUnavailable(SystemFault):
    """There is no data for the question. Reaction: the asking agent abstains."""


class FeedDataError(SystemFault):
    """A record from a feed is malformed. Reaction: skip it, count it, log file and line."""


ProviderFault = Literal[
    "auth", "quota", "budget", "rate", "overload", "timeout", "refusal", "truncated", "malformed", "request", "open",
    "closed", "fault",
]  # fmt: skip
"""Why a provider gave no answer. auth: key missing or refused, off until the next start. quota: spent at the vendor, off
until the next UTC day. budget: spent here. rate, overload, timeout: may pass. refusal, truncated, malformed: the answer was
none. request: the vendor does not understand or does not know the model. open: the circuit breaker holds calls back. closed:
the model has been closed. fault: anything else, such as an adapter that cannot be loaded."""


class ProviderError(SystemFault):
    """A model provider failed. Reaction: fall back to rules, visible in the policy field; a judge is left out.

    Attributes
    ----------
    kind : ProviderFault
    cost_usd, tokens
        What was spent on the answer that cannot be used, as far as it is known.
    """

    def __init__(self, message: str, *, kind: ProviderFault = "fault", cost_usd: float = 0.0, tokens: int = 0) -> None:
        super().__init__(message)
        self.kind: ProviderFault = kind
        self.cost_usd = cost_usd
        self.tokens = tokens


class LibraryUnavailable(SystemFault):
    """The experience library cannot be reached. Reaction: writes wait or are spooled, reads fail."""


class LibraryConflict(SystemFault):
    """Other content is stored under the same identity. Reaction: refuse; never overwrite silently."""


class JudgeError(SystemFault):
    """A judge gave no usable grade. Reaction: it is excluded and counted; no score is invented.

    The text begins with a word for its kind and a colon, such as ``timeout: ...``.

    Attributes
    ----------
    cost_usd, tokens
        What was spent on the answer that is no grade.
    """

    def __init__(self, message: str, *, cost_usd: float = 0.0, tokens: int = 0) -> None:
        super().__init__(message)
        self.cost_usd = cost_usd
        self.tokens = tokens


class RiskRejected(SystemFault):
    """A risk gate refused an order. Reaction: no order; the refusal is an event with its reason."""


class TrainingFailed(SystemFault):
    """A training run failed. Reaction: the champion stays, the trigger is not consumed, retry with back-off."""


class TrainingBlocked(TrainingFailed):
    """What a training needs is not there, such as weights or disk. Reaction: as a failed one, recorded as blocked."""


class LookAheadError(SystemFault):
    """Something asked for data that was not available yet. Reaction: stop; a result built on it is worthless."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known word closest to `word`, or an empty string if none is close."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
