"""Which agents a decision asks, and who waits for whom: the graph that a workflow starts with.

Made by the supervisor's routing for a decision, or by hand for `DynamicWorkflowManager`; rewriting rules change a copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from utils.errors import ConfigError, nearest

CONCURRENT_AT_FIRST = 2
"""Agents that start together in adaptive mode: their agreement or conflict decides what else is asked."""


@dataclass(frozen=True, slots=True)
class WorkflowGraph:
    """Agents in the order in which they are preferred, each with those it waits for.

    Attributes
    ----------
    steps : tuple of (str, tuple of str)
    """

    steps: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def routed(cls, agents: Sequence[str], mode: Literal["adaptive", "sequential"] = "adaptive") -> WorkflowGraph:
        """Return the graph of routed agents.

        Parameters
        ----------
        agents : sequence of str
            In order of preference, each once.
        mode : {"adaptive", "sequential"}
            adaptive: the first two together, each of the others after all before it; sequential: one after another.
        """
        return _routed(tuple(agents), mode)

    @classmethod
    def together(cls, agents: Sequence[str]) -> WorkflowGraph:
        """Return the graph of agents that all start at once."""
        return cls(tuple((name, ()) for name in agents))

    @classmethod
    def of(cls, dependencies: Mapping[str, Sequence[str]], order: Sequence[str] | None = None) -> WorkflowGraph:
        """Return the graph of agents with their dependencies.

        Raises
        ------
        ConfigError
            If an agent stands twice, waits for one that is not there, or for itself by any way.
        """
        names = tuple(order if order is not None else dependencies)
        if len(set(names)) < len(names):
            raise ConfigError("initial_agents: an agent stands twice; name each once")
        settled: set[str] = set()
        for name in names:
            for needed in dependencies[name]:
                if needed not in dependencies:
                    raise ConfigError(
                        f"initial_agents: {name} waits for {needed!r}, which is not there{nearest(needed, names)}"
                    )
        while len(settled) < len(names):
            free = {name for name in names if name not in settled and settled.issuperset(dependencies[name])}
            if not free:
                stuck = ", ".join(name for name in names if name not in settled)
                raise ConfigError(f"initial_agents: {stuck} wait for one another; remove a dependency")
            settled |= free
        return cls(tuple((name, tuple(dependencies[name])) for name in names))

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents in order."""
        return tuple(name for name, _ in self.steps)


@lru_cache(maxsize=256)
def _routed(names: tuple[str, ...], mode: str) -> WorkflowGraph:
    together = CONCURRENT_AT_FIRST if mode == "adaptive" else 1
    return WorkflowGraph.of(
        {name: names[:index] if index >= together else () for index, name in enumerate(names)}, names
    )
