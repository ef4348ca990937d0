"""What the operators are made of: a sound output with its facts, the case an operator looks at, and the damaged output.

Operators are pure: they copy the output, draw from the generator in the case alone, and answer None where they do not
apply. Nothing here knows of detectors.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from evaluation.ground_truth import GroundTruth
from utils.json_pointer import ABSENT, get, put
from utils.schema import AgentType

__all__ = ["ABSENT", "ALL_AGENTS", "Case", "Mutant", "Operator", "Sample"]

ALL_AGENTS = "news technical fundamental strategist"
"""The agents whose outputs are damaged."""

Output = dict[str, Any]
"""An output as ``model_dump(mode="json")`` gives it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A sound output.

    Attributes
    ----------
    agent_type : str
    output : dict
        As ``model_dump(mode="json")`` gives it.
    truth : GroundTruth
        What it is held against.
    labels : tuple of str
        Where it comes from, for the report: ``generated filings``, ``enriched``.
    peer : Sample, optional
        A sound output of the same agent on another symbol, from which a mix-up of symbols takes its values.
    """

    agent_type: AgentType
    output: Output
    truth: GroundTruth
    labels: tuple[str, ...] = ()
    peer: Sample | None = None


@dataclass(frozen=True, slots=True)
class Mutant:
    """An output with one known fault.

    Attributes
    ----------
    output : dict
    category : str
    pointer : str
        The corrupted field.
    equivalents : frozenset of str
        Other pointers that name the same fault as well, where the rule compares two fields or names an item as a whole.
    original : object
        What stood at the pointer, `ABSENT` for nothing.
    restore : mapping of str to object
        What stood at the pointer and at every equivalent one, and where the damage was done elsewhere, at that place:
        putting it back undoes the fault and leaves whatever else was changed along.
    consequences : frozenset of str
        Categories whose rule the same fault breaks too; findings of them count neither for nor against.
    sub_code : str, optional
    truth : GroundTruth
        The facts to hold it against: those of the sample, but where a fault needs other ones (an article of another
        company in the feed, the right call being known).
    operator : str
    """

    output: Output
    category: str
    pointer: str
    equivalents: frozenset[str]
    original: Any
    restore: Mapping[str, Any]
    consequences: frozenset[str]
    sub_code: str | None
    truth: GroundTruth
    operator: str = ""

    @property
    def accepted(self) -> frozenset[str]:
        """All pointers that name the fault."""
        return self.equivalents | {self.pointer}

    def repaired(self, damaged: Output | None = None) -> Output:
        """Return the output (or one that was damaged further) with the originals back where the fault is named."""
        output = copy.deepcopy(self.output if damaged is None else damaged)
        for place in sorted(self.restore, key=lambda place: place.count("/")):
            inside = any(place.startswith(other + "/") for other in self.restore)
            if not inside:
                put(output, place, copy.deepcopy(self.restore[place]))
        return output


@dataclass(frozen=True, slots=True)
class Case:
    """What an operator is handed: output, facts, a generator to draw from, and for mix-ups another symbol's output."""

    category: str
    output: Output
    truth: GroundTruth
    rng: random.Random
    peer: Sample | None = None

    def mutant(
        self,
        pointer: str,
        changes: Mapping[str, Any],
        *,
        same: Collection[str] = (),
        consequences: Collection[str] = (),
        sub_code: str | None = None,
        truth: GroundTruth | None = None,
        mend: Collection[str] = (),
    ) -> Mutant:
        """Return the output with `changes` (pointer to value, in order; `ABSENT` removes), the fault being at `pointer`.

        `same` are equivalent pointers, `mend` places to restore besides.
        """
        output = copy.deepcopy(self.output)
        for place, value in changes.items():
            put(output, place, copy.deepcopy(value))
        return Mutant(
            output,
            self.category,
            pointer,
            frozenset(same),
            copy.deepcopy(get(self.output, pointer)),
            {place: copy.deepcopy(get(self.output, place)) for place in (pointer, *same, *mend)},
            frozenset(consequences),
            sub_code,
            truth or self.truth,
        )


@dataclass(frozen=True, slots=True)
class Operator:
    """One way to break the rule of one category, on outputs of some agents."""

    category: str
    agents: frozenset[str]
    function: Callable[[Case], Mutant | None] = field(repr=False)

    @property
    def name(self) -> str:
        """The function's name without the leading underscore."""
        return self.function.__name__.lstrip("_")

    def apply(
        self, agent_type: str, output: Output, truth: GroundTruth, rng: random.Random, peer: Sample | None = None
    ) -> Mutant | None:
        """Return the damaged output, None where the operator does not apply to this one.

        Abstentions rest on nothing that could be damaged, so that no operator applies to them.
        """
        if agent_type not in self.agents or output.get("abstained"):
            return None
        mutant = self.function(Case(self.category, output, truth, rng, peer))
        if mutant is None:
            return None
        return replace(mutant, operator=self.name)


def operators(category: str, agents: str, *functions: Callable[[Case], Mutant | None]) -> tuple[Operator, ...]:
    """Return the operators of a category; `agents` are names with spaces between."""
    return tuple(Operator(category, frozenset(agents.split()), function) for function in functions)
