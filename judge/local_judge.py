"""A deterministic judge: errors found by the fault detectors, and the quality of the rest computed by code.

Always on the panel, because it costs nothing and cannot be talked to. It is one vote among others, and it grades whether
an output is sound, grounded and calibrated, never whether the call came true: it is not told.
"""

from __future__ import annotations

from evaluation.error_taxonomy import ErrorReport
from evaluation.fault_localization import FaultLocalizationEngine
from judge.base import JudgeRequest, JudgeScore
from judge.finding_costs import FATAL_CAP, checked_share, costs_by_dimension
from judge.local_checks import fundamental, news, strategist, technical
from judge.local_checks.facts import Facts, Rule
from utils.errors import JudgeError
from utils.schema import OUTPUT_MODELS

CHECKS: dict[str, dict[str, tuple[Rule, ...]]] = {
    "news": news.RULES,
    "technical": technical.RULES,
    "fundamental": fundamental.RULES,
    "strategist": strategist.RULES,
}
"""Agent type to dimension to rules."""

_NOTED_BELOW = 0.6
"""A check that earns less than this is named in the reasoning."""

_NOTED_ERRORS = 8


class LocalJudge:
    """Grades outputs by code.

    A dimension begins with what its quality checks earn, 0..100, and each error of the output's report takes points off the
    dimension it belongs to (`judge.finding_costs`); a fatal one caps the total at 40. What the detectors report no check
    charges again. The report is the context's, else it is made here from what the context says was known.

    The confidence of a grade is the mean of two shares, by weight of the dimensions: of the quality checks that could be
    applied, and of the error categories that could be decided on. Without a snapshot or a portfolio there is less to hold
    an output against.

    Parameters
    ----------
    judge_id : str
    """

    def __init__(self, judge_id: str = "local") -> None:
        self.judge_id = judge_id
        self._engine = FaultLocalizationEngine()

    def grade(self, request: JudgeRequest) -> JudgeScore:
        """Grade one output.

        Raises
        ------
        JudgeError
            If the output abstained, is not of the agent's type, or the rubric has a dimension that code cannot check.
        """
        output, agent_type = request.output, request.agent_type
        if output.abstained:
            raise JudgeError("abstained: an abstention has no reasoning to grade")
        table = CHECKS.get(agent_type)
        if table is None or type(output) is not OUTPUT_MODELS[agent_type]:
            raise JudgeError(f"unsupported: code has no checks for {type(output).__name__} as {agent_type}")
        report: ErrorReport | None = request.context.get("report")
        if report is None:
            report = self._engine.detect_faults(agent_type, output, request.truth())
        facts = Facts(output, request.known(), report.errors)
        costs, decided = costs_by_dimension(agent_type, report.errors), checked_share(agent_type, report.not_checked)
        criteria: dict[str, float] = {}
        remarks = [f"{error.category} at {error.location or 'the output'}" for error in report.errors[:_NOTED_ERRORS]]
        score = covered = 0.0
        for name, weight in request.rubric.weights.items():
            if name not in table:
                raise JudgeError(f"unsupported: code has no checks for the dimension {name!r}")
            quality, applied = _quality(table[name], facts, remarks)
            criteria[name] = max(0.0, quality - costs.get(name, 0.0))
            score += weight * criteria[name]
            covered += weight * (applied + decided.get(name, applied)) / 2
        score = min(100.0, FATAL_CAP if report.has_fatal_errors() else 100.0, score)
        band = request.rubric.reward_mapping.band(score)
        reasoning = f"{band}: " + (
            "; ".join(remarks) if remarks else "no error is found and every check that applies is met"
        )
        return JudgeScore(self.judge_id, score, min(1.0, covered), reasoning, criteria)


def _quality(rules: tuple[Rule, ...], facts: Facts, remarks: list[str]) -> tuple[float, float]:
    """Return what the checks of a dimension earn, 0..100, and the share of them that applied; note those that fail."""
    earned = applied = total = 0.0
    for rule in rules:
        value = rule.check(facts)
        total += rule.weight
        if value is None:
            continue
        applied += rule.weight
        earned += rule.weight * value
        if value < _NOTED_BELOW:
            remarks.append(rule.failure)
    # where no check applies only errors can speak against the output
    return (100 * earned / applied if applied else 100.0), applied / total
