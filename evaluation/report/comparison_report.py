"""What the report of a comparison holds: the frozen protocol, every arm's figures, the paired differences, what to distrust.

`training.compare` fills it; the page, the JSON file and the terminal's table are three views of it. Figures that depend on
the wall clock stand apart in `timing`, so that equal comparisons are equal in all else.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from evaluation.comparison import CallFigures, PairedFigures, RandomFigures


@dataclass(frozen=True, slots=True)
class ServiceFigures:
    """How an agent's policy served: spending, answers that could not be used, and what rules had to answer."""

    cost_usd: float
    invalid: int
    answered_by_rules: int
    grounded_share: float | None


@dataclass(frozen=True, slots=True)
class AgentRow:
    """One agent in one arm; `note` says what a reader must know of its policy."""

    arm: str
    agent: str
    policy: str
    note: str
    figures: CallFigures
    service: ServiceFigures
    random: RandomFigures


@dataclass(frozen=True, slots=True)
class PairRow:
    """An arm's agent minus the same agent of the reference, or minus a baseline where `reference` names one."""

    arm: str
    reference: str
    agent: str
    figures: PairedFigures


@dataclass(frozen=True, slots=True)
class BaselineRow:
    """A simple forecast that needs no model."""

    name: str
    figures: CallFigures


@dataclass(frozen=True, slots=True)
class TimingRow:
    """Wall seconds a decision: the share of its batch, or what a server took."""

    arm: str
    agent: str
    latency_p50_s: float | None
    latency_p95_s: float | None


@dataclass(frozen=True, slots=True)
class ComparisonReport:
    """Everything that a comparison found.

    Attributes
    ----------
    protocol : dict
        JSON values, frozen before the first answer; `protocol_sha256` is its content hash.
    kind_of_result : str
        Generated data, or historical replay.
    decisions, unsettled, sessions : int
        A symbol a session; those whose horizon reaches beyond the period are left out; sessions with a settled decision.
    expected_known : bool
        Whether the history says what was to be expected.
    baseline_pairs : tuple of PairRow
        The primary agent of every arm minus each baseline, a family of their own.
    warnings : tuple of str
        What to distrust.
    """

    protocol: dict[str, Any]
    protocol_sha256: str
    kind_of_result: str
    decisions: int
    unsettled: int
    sessions: int
    first_session: str | None
    last_session: str | None
    block_sessions: int
    expected_known: bool
    rows: tuple[AgentRow, ...]
    pairs: tuple[PairRow, ...]
    baselines: tuple[BaselineRow, ...]
    baseline_pairs: tuple[PairRow, ...]
    warnings: tuple[str, ...]
    timing: tuple[TimingRow, ...]
    wall_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; `timing` holds all that the wall clock decides."""
        values = dataclasses.asdict(self)
        values["timing"] = {"rows": values["timing"], "wall_s": values.pop("wall_s")}
        return values
