"""What the panel is given and what it says: one item to grade, and the result of grading it.

Made by `MultiJudgeConsensus`, stored and counted by whoever asked it. Plain values without behaviour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from judge.base import JudgeScore
from judge.robustness_guard import GuardFlag
from utils.schema import AgentOutput


@dataclass(frozen=True, slots=True)
class EvaluationItem:
    """One output to grade.

    Attributes
    ----------
    agent_type : str
    output : AgentOutput, mapping or JSON text
    rubric_path : str
        A YAML file or a name such as ``news_rubric``; read once.
    context : mapping
        What was known at decision time, see `judge.base.JudgeRequest`.
    account : str
        Identity of the decision that pays for hosted judges.
    """

    agent_type: str
    output: AgentOutput | Mapping[str, Any] | str
    rubric_path: str
    context: Mapping[str, Any] = field(default_factory=dict)
    account: str = ""


@dataclass(frozen=True, slots=True)
class ConsensusResult:
    """What the panel says of one output. Nothing in it depends on the order in which the judges were named.

    Attributes
    ----------
    status : {"ok", "pending", "quarantined"}
        ``pending`` below quorum: to be tried again, there is no score. ``quarantined``: the guard flagged the output, no
        judge was asked.
    final_score : float or None
        0..100.
    confidence : float
        0..1; 0 without a score.
    agreement_level : float or None
        1 - (max - min)/100; None for fewer than two grades.
    individual_scores : tuple of JudgeScore
        By judge id.
    excluded : tuple of dict
        ``judge_id`` and ``reason``, which begins with one word for its kind; by judge id.
    consensus_method : str
        The method that was asked for.
    disagreement_detected : bool
    resolution_applied : str or None
        What replaced the method: ``median`` on disagreement, ``weighted_average`` where labels are too few.
    alpha : float or None
        Krippendorff's interval alpha over the last 200 items.
    effective_votes : float or None
        What the grading judges are worth together; None until enough items are there to tell.
    cost_usd : float
        Spent on this item, unusable answers included.
    tokens : int
        Read and written by hosted and local models for this item.
    degraded : str or None
        ``budget`` where a judge was left out because the budget is spent: the rest of the panel went on alone.
    flags : tuple of GuardFlag
        Why the output is quarantined.
    latency_s : float
        Wall seconds from the first question to the conclusion; two results that differ in it alone are equal.
    """

    status: Literal["ok", "pending", "quarantined"]
    final_score: float | None
    confidence: float
    agreement_level: float | None
    individual_scores: tuple[JudgeScore, ...]
    excluded: tuple[dict[str, str], ...]
    consensus_method: str
    disagreement_detected: bool
    resolution_applied: str | None
    alpha: float | None
    effective_votes: float | None
    cost_usd: float = 0.0
    tokens: int = 0
    degraded: str | None = None
    flags: tuple[GuardFlag, ...] = ()
    latency_s: float = field(default=0.0, compare=False)
