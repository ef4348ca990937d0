"""A deterministic judge: every dimension of a rubric computed by code from the output and its evidence.

Always on the panel, because it costs nothing and cannot be talked to. It grades whether an output is consistent,
grounded and calibrated, never whether the call came true: it is not told.
"""

from __future__ import annotations

from judge.base import JudgeRequest, JudgeScore
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


class LocalJudge:
    """Grades outputs by code.

    The confidence of a grade is the share of the checks, by weight, that could be applied: without prices, portfolio or
    evidence there is less to hold an output against.

    Parameters
    ----------
    judge_id : str
    """

    def __init__(self, judge_id: str = "local") -> None:
        self.judge_id = judge_id

    def grade(self, request: JudgeRequest) -> JudgeScore:
        """Grade one output.

        Raises
        ------
        JudgeError
            If the output abstained, is not of the agent's type, or the rubric has a dimension that code cannot check.
        """
        output = request.output
        if output.abstained:
            raise JudgeError("abstained: an abstention has no reasoning to grade")
        table = CHECKS.get(request.agent_type)
        if table is None or type(output) is not OUTPUT_MODELS[request.agent_type]:
            raise JudgeError(f"unsupported: code has no checks for {type(output).__name__} as {request.agent_type}")
        facts = Facts(output, request.context)
        criteria: dict[str, float] = {}
        failures: list[str] = []
        score = covered = 0.0
        for name, weight in request.rubric.weights.items():
            if name not in table:
                raise JudgeError(f"unsupported: code has no checks for the dimension {name!r}")
            earned = applied = total = 0.0
            for rule in table[name]:
                value = rule.check(facts)
                total += rule.weight
                if value is None:
                    continue
                applied += rule.weight
                earned += rule.weight * value
                if value < _NOTED_BELOW:
                    failures.append(rule.failure)
            grade = 100 * earned / applied
            criteria[name] = grade
            score += weight * grade
            covered += weight * applied / total
        score = min(100.0, score)
        band = request.rubric.reward_mapping.band(score)
        reasoning = f"{band}: " + ("; ".join(failures) if failures else "every check that applies is met")
        return JudgeScore(self.judge_id, score, min(1.0, covered), reasoning, criteria)
