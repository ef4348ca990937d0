"""One output under examination: what it says, what it is held against, and what has been found so far.

The engine makes a `Case`, hands it to every rule of the agent in order, and turns it into a report. Rules only read the
output and report; the order of the rules decides which of several findings at one field is the cause.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from evaluation.detectors.asof_facts import AsOfFacts
from evaluation.error_catalogue import CATALOGUE
from evaluation.error_taxonomy import ErrorInstance
from evaluation.ground_truth import GroundTruth
from utils.clock import isoformat
from utils.schema import AgentOutput, Evidence, direction

TOLERANCE = 0.005
"""Relative difference of two figures that still say the same."""

_SHOWN_CHARS = 200
_INT_BITS = 64


@dataclass(frozen=True, slots=True)
class Rule:
    """How one category is decided.

    Attributes
    ----------
    category : str
        Whose not being checked is noted; the check may report others that hang together with it.
    check : callable
        Reports to the case.
    reads : frozenset of str
        Fields of the output without which it cannot run.
    needs : str
        What of the ground truth it cannot do without: empty, ``snapshot``, ``bars``, ``agent_outputs`` or ``portfolio``.
    on_abstentions : bool
        Whether it applies to an output without an opinion.
    """

    category: str
    check: Callable[[Any], None]
    reads: frozenset[str] = frozenset()
    needs: str = ""
    on_abstentions: bool = False


def rule(category: str, check: Callable[[Any], None], reads: str = "", needs: str = "", **flags: bool) -> Rule:
    """Return a rule; `reads` are names with blanks between them."""
    return Rule(category, check, frozenset(reads.split()), needs, **flags)


@dataclass(slots=True)
class Case:
    """An output with what belongs to it.

    Attributes
    ----------
    agent_type : str
    output : AgentOutput, or Any of the agent's own type
        As far as it could be read: fields in `broken` hold placeholders.
    truth : GroundTruth
    facts : AsOfFacts or None
        Of the truth's snapshot.
    raw : mapping or None
        The object as it was given, None if that was a valid model.
    broken : set of str
        Fields that could not be read.
    absent : tuple of str
        Fields that were not given and whose rules speak for them.
    """

    agent_type: str
    output: Any
    truth: GroundTruth
    facts: AsOfFacts | None
    raw: dict[str, Any] | None = None
    broken: set[str] = field(default_factory=set)
    absent: tuple[str, ...] = ()
    errors: list[ErrorInstance] = field(default_factory=list)
    not_checked: dict[str, str] = field(default_factory=dict)
    scratch: dict[str, Any] = field(default_factory=dict)
    """What one rule computed and later ones use, such as the sentiment that the articles have."""

    @property
    def side(self) -> int:
        """+1 buy side, -1 sell side, 0 hold."""
        return direction(self.output.recommendation)

    @property
    def timestamp(self) -> datetime | None:
        """The decision's time, None where neither output nor snapshot tells it."""
        if self.output is not None and "as_of" not in self.broken:
            return self.output.as_of
        return self.truth.snapshot.as_of if self.truth.snapshot else None

    def report(
        self,
        category: str,
        location: str,
        description: str,
        *,
        found: Any = None,
        expected: Any = None,
        corrected: Any = None,
        sub_code: str | None = None,
        **more: Any,
    ) -> None:
        """Add a finding; `corrected` is what the field should hold where that is computable."""
        record = CATALOGUE[category]
        evidence = {key: _plain(value) for key, value in {"expected": expected, "found": found, **more}.items()}
        corrected = _as_json(corrected)
        words = {key: shown(value) for key, value in (("found", found), ("expected", expected)) if value is not None}
        fix = record.suggest(location=location or "the output", **words)
        self.errors.append(
            ErrorInstance(
                category, record.severity, description, location, fix, evidence, self.timestamp, sub_code, corrected
            )
        )

    def skip(self, category: str, reason: str) -> None:
        """Note that a category was not decided, once."""
        self.not_checked.setdefault(category, reason)

    def found_at(self, location: str) -> bool:
        """Return whether anything was found at a field."""
        return any(error.location == location for error in self.errors)

    def found(self, category: str) -> bool:
        """Return whether anything of a category was found."""
        return any(error.category == category for error in self.errors)

    def run(self, rules: tuple[Rule, ...]) -> None:
        """Apply the rules in order; note those that lack what they need."""
        abstained = bool(self.output.abstained)
        for item in rules:
            if abstained and not item.on_abstentions:
                continue
            if self.broken and not self.broken.isdisjoint(item.reads):
                self.skip(item.category, f"{', '.join(sorted(self.broken & item.reads))} cannot be read")
            elif item.needs and not self._has(item.needs):
                self.skip(item.category, f"the ground truth has no {item.needs.replace('_', ' ')}")
            else:
                item.check(self)

    def _has(self, need: str) -> bool:
        if need == "snapshot":
            return self.facts is not None
        if need == "bars":
            return self.facts is not None and self.facts.price is not None
        if need == "agent_outputs":
            return bool(self.truth.agent_outputs)
        return self.truth.portfolio is not None


def shown(value: Any) -> str:
    """Return a value as a person reads it, cut where it is long or deep."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return isoformat(value)
    try:
        text = value if isinstance(value, str) else reprlib.repr(value)
    except ValueError:  # a number of more digits than Python writes
        return f"a {type(value).__name__} too long to be shown"
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


def _plain(value: Any) -> Any:
    """Return a compared value as JSON can hold it."""
    if value is None or isinstance(value, (str, bool)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int) and value.bit_length() <= _INT_BITS:
        return value
    return shown(value)


def _as_json(value: Any) -> Any:
    """Return a right value as the JSON form of an output holds it."""
    if isinstance(value, datetime):
        return isoformat(value)
    if isinstance(value, BaseModel):
        return {name: _as_json(item) for name, item in value}
    if isinstance(value, (tuple, list)):
        return [_as_json(item) for item in value]
    return value


def differs(value: float, expected: float, tolerance: float = TOLERANCE, floor: float = 1e-9) -> bool:
    """Return whether two figures differ by more than a share of the expected one (and by more than rounding)."""
    return not abs(value - expected) <= tolerance * abs(expected) + floor


def letters(text: str, enough: int) -> bool:
    """Return whether a text has at least so many letters."""
    return sum(map(str.isalpha, text[: 4 * enough])) >= enough or sum(map(str.isalpha, text)) >= enough


def evidence_name(item: Evidence) -> str:
    """Return the bare name of what an item cites: the last part of its id."""
    return item.id.rpartition(":")[2]


def stated_price(output: AgentOutput) -> float | None:
    """Return the price in an output's evidence, None without one."""
    for item in output.evidence:
        if (item.id == "bar:close" or item.kind == "price") and isinstance(item.value, float) and item.value > 0:
            return item.value
    return None
