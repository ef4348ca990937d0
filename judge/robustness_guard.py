"""Screens an output before any judge reads it: texts that speak to a judge in place of the reader.

The consensus calls `RobustnessGuard.screen` first on every output. Pure code over the output's own texts: it asks nobody,
changes nothing and grades nothing. What it looks for stands in `FAMILIES`; `judge.injection_signs` holds the patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from judge.injection_signs import injection_score
from utils.json_pointer import join
from utils.schema import AgentOutput

FLAG_SCORE = 0.5
"""Strength of the signs, 0..1, from which on a text is flagged."""

Action = Literal["reject", "quarantine"]


@dataclass(frozen=True, slots=True)
class Family:
    """One way of gaming a judge.

    Attributes
    ----------
    name : str
    action : {"reject", "quarantine"}
        What becomes of an output with it: no judge sees a quarantined one.
    score : callable
        From a text to the strength of its signs, 0..1.
    """

    name: str
    action: Action
    score: Callable[[str], float]


FAMILIES: tuple[Family, ...] = (Family("instruction_injection", "quarantine", injection_score),)
"""Families in the order of their gravity; one more is one more row."""


@dataclass(frozen=True, slots=True)
class GuardFlag:
    """One text that was flagged: the family, a JSON pointer to the field, and the strength of the signs, 0..1."""

    family: str
    pointer: str
    score: float


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """What becomes of an output: the gravest action of its flags, ``pass`` without any."""

    verdict: Literal["pass", "reject", "quarantine"]
    flags: tuple[GuardFlag, ...]


_PASSED = GuardVerdict("pass", ())
_NO_TEXT = frozenset((float, int, bool, type(None), datetime))


class RobustnessGuard:
    """Screens outputs.

    Parameters
    ----------
    families : tuple of Family
    """

    def __init__(self, families: tuple[Family, ...] = FAMILIES) -> None:
        self._families = families

    def screen(self, output: AgentOutput) -> GuardVerdict:
        """Return the verdict on every text of an output, names in its maps and lists as a whole included."""
        if not self._suspicious(output):
            return _PASSED
        flags: list[GuardFlag] = []
        actions: set[Action] = set()
        for pointer, text in _texts(output.model_dump(mode="python")):
            for family in self._families:
                score = family.score(text)
                if score >= FLAG_SCORE:
                    flags.append(GuardFlag(family.name, pointer, round(score, 4)))
                    actions.add(family.action)
        verdict = "quarantine" if "quarantine" in actions else "reject" if actions else "pass"
        return GuardVerdict(verdict, tuple(flags))  # type: ignore[arg-type]

    def _suspicious(self, output: AgentOutput) -> bool:
        """Return whether any text would be flagged; nearly all outputs are sound, and then nobody asks for pointers."""
        return any(family.score(text) >= FLAG_SCORE for text in _bare_texts(output) for family in self._families)


def _bare_texts(output: AgentOutput) -> set[str]:
    """Return what `_texts` yields, each once and without pointers."""
    found: set[str] = set()
    waiting: list[Any] = [output]
    while waiting:
        node = waiting.pop()
        kind = type(node)
        if kind in _NO_TEXT:
            continue
        if kind is str:
            found.add(node)
        elif kind is dict:
            found.update(key for key in node if " " in key)
            waiting += node.values()
        elif kind is tuple or kind is list:
            waiting += node
            if len(node) > 1 and all(isinstance(item, str) for item in node):
                found.add(" ".join(node))
        elif isinstance(node, BaseModel):
            waiting += node.__dict__.values()
    return found


def _texts(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every text of a document with its pointer."""
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), document)]
    while waiting:
        where, node = waiting.pop()
        if isinstance(node, str):
            yield join(*where), node
        elif isinstance(node, dict):
            if where:
                yield from ((join(*where, key), key) for key in node if isinstance(key, str) and " " in key)
            waiting += [((*where, key), value) for key, value in reversed(node.items())]
        elif isinstance(node, (list, tuple)):
            waiting += [((*where, index), value) for index, value in reversed(tuple(enumerate(node)))]
            if len(node) > 1 and all(isinstance(item, str) for item in node):
                yield join(*where), " ".join(node)
