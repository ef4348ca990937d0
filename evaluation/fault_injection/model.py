"""What the operators are made of: a sound output with its facts, the case an operator looks at, and the damaged output.

Operators are pure: they copy the output, draw from the generator in the case alone, and answer None where they do not
apply. Nothing here knows of detectors.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from evaluation.fault_injection.pointers import ABSENT, get, put
from evaluation.ground_truth import GroundTruth
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
    consequences: frozenset[str]
    sub_code: str | None
    truth: GroundTruth
    operator: str = ""

    @property
    def accepted(self) -> frozenset[str]:
        """All pointers that name the fault."""
        return self.equivalents | {self.pointer}

    def repaired(self) -> Output:
        """Return the damaged output with the original value back at the pointer, and nothing else changed."""
        output = copy.deepcopy(self.output)
        put(output, self.pointer, copy.deepcopy(self.original))
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
    ) -> Mutant:
        """Return the output with `changes` (pointer to value, in order; `ABSENT` removes), the fault being at `pointer`."""
        output = copy.deepcopy(self.output)
        for place, value in changes.items():
            put(output, place, copy.deepcopy(value))
        return Mutant(
            output,
            self.category,
            pointer,
            frozenset(same),
            copy.deepcopy(get(self.output, pointer)),
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
        return Mutant(
            mutant.output, self.category, mutant.pointer, mutant.equivalents, mutant.original, mutant.consequences,
            mutant.sub_code, mutant.truth, self.name,
        )  # fmt: skip


def operators(category: str, agents: str, *functions: Callable[[Case], Mutant | None]) -> tuple[Operator, ...]:
    """Return the operators of a category; `agents` are names with spaces between."""
    return tuple(Operator(category, frozenset(agents.split()), function) for function in functions)
