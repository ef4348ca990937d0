"""Finds conflicts between agents: opposite calls, one signal read both ways, and certainty beside doubt.

Asked after every step of a workflow and by the validator. It reads outputs and nothing else; the order in which they
came makes no difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from utils.schema import AgentOutput, direction

ConflictType = Literal["opposite_recommendations", "signal_conflict", "confidence_disagreement"]
CONFLICT_TYPES: tuple[ConflictType, ...] = ("opposite_recommendations", "signal_conflict", "confidence_disagreement")
"""Gravest first."""

SIGNAL_MAGNITUDE = 0.3
"""|signal| beyond which it takes a side."""

CONFIDENCE_SPREAD, CERTAIN, DOUBTFUL = 0.3, 0.7, 0.4
"""Standard deviation of the confidences (over all opinions, not a sample of them), and its two ends."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """One disagreement.

    Attributes
    ----------
    conflict_type : ConflictType
    agents : tuple of str
        Those who disagree, sorted.
    severity : float
        0..1.
    description : str
    signal : str or None
        The signal that is read both ways.
    """

    conflict_type: ConflictType
    agents: tuple[str, ...]
    severity: float
    description: str
    signal: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What makes it this conflict and no other of the decision."""
        return self.conflict_type, self.signal or ""


def opinions(outputs: Mapping[str, AgentOutput]) -> dict[str, AgentOutput]:
    """Return the outputs that are votes, by name: no abstention, and no validator, who speaks of what others said."""
    return {
        name: outputs[name]
        for name in sorted(outputs)
        if not outputs[name].abstained and outputs[name].agent_type != "validator"
    }


class ConflictDetector:
    """Finds the conflicts among outputs."""

    def detect_conflicts(self, outputs: Mapping[str, AgentOutput]) -> list[Conflict]:
        """Return every conflict once: by type as in `CONFLICT_TYPES`, conflicts of signals by name.

        Parameters
        ----------
        outputs : mapping of str to AgentOutput
            By agent. Abstentions are no votes and take part in none.
        """
        votes = opinions(outputs)
        if len(votes) < 2:
            return []
        return [*_opposite(votes), *_signals(votes), *_confidences(votes)]


def _opposite(votes: Mapping[str, AgentOutput]) -> list[Conflict]:
    sides = {name: direction(output.recommendation) for name, output in votes.items()}
    buyers = [name for name, side in sides.items() if side > 0]
    sellers = [name for name, side in sides.items() if side < 0]
    if not buyers or not sellers:
        return []
    text = f"{', '.join(buyers)} (buy) against {', '.join(sellers)} (sell)"
    return [Conflict("opposite_recommendations", tuple(sorted(buyers + sellers)), 1.0, text)]


def _signals(votes: Mapping[str, AgentOutput]) -> list[Conflict]:
    readings: dict[str, dict[str, float]] = {}
    for name, output in votes.items():
        for signal, value in output.signals.items():
            readings.setdefault(signal, {})[name] = value
    found = []
    for signal in sorted(signal for signal, values in readings.items() if len(values) > 1):
        values = readings[signal]
        up = {name: value for name, value in values.items() if value > SIGNAL_MAGNITUDE}
        down = {name: value for name, value in values.items() if value < -SIGNAL_MAGNITUDE}
        if up and down:
            severity = math.fsum(up.values()) / len(up) - math.fsum(down.values()) / len(down)
            text = f"{signal} is up for {', '.join(up)} and down for {', '.join(down)}"
            found.append(Conflict("signal_conflict", tuple(sorted({**up, **down})), min(1.0, severity), text, signal))
    return found


def _confidences(votes: Mapping[str, AgentOutput]) -> list[Conflict]:
    values = {name: output.confidence for name, output in votes.items()}
    certain = [name for name, value in values.items() if value > CERTAIN]
    doubtful = [name for name, value in values.items() if value < DOUBTFUL]
    if not certain or not doubtful:
        return []
    mean = math.fsum(values.values()) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values.values()) / len(values))
    if spread <= CONFIDENCE_SPREAD:
        return []
    text = f"{', '.join(certain)} certain, {', '.join(doubtful)} in doubt"
    return [Conflict("confidence_disagreement", tuple(sorted(certain + doubtful)), min(1.0, spread), text)]
