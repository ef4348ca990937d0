"""What a sampled decision is worth, by code alone: each completion is scored on what would have come of it.

`train_policy` hands `CounterfactualReward` to the trainer; the tests and the benchmarks score answers with it. A text is a
decision or it is nothing: no part of it is guessed, and no judge is asked, since none has seen a completion just written.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agents.policies.local.decisions import CONFIDENCES, ParsedDecision, cited_evidence, is_grounded, parse_decision
from agents.policies.local.states import CITED
from evaluation.error_taxonomy import ErrorCategory, ErrorSeverityClassifier, Severity, StrategistAgentError
from judge.reward_calculator import RETURN_CLAMP, TYPICAL_VOLATILITY, RewardCalculator, RewardHistory, TradingOutcome
from training.executable import executable
from training.rl.job import COMPONENTS, Outcome, RewardWeights, RLExample
from utils.schema import direction

CALIBRATION_SPAN = 4.0
"""Largest magnitude of `RewardComponents.confidence_reward`."""

CALM_VOLATILITY, EXTREME_VOLATILITY = 1.5, 3.0
"""Daily volatility in multiples of the typical one from which on a side is exposed, and at which it is fully so."""

TAIL_START, TAIL_END = 1.0, 3.0
"""Loss in ordinary moves from which on it is one of the tail, and at which it is as bad as can be."""

INVALID = -1.0
"""Every component of what is no decision: the floor, below any decision however wrong."""

_SIZING_AGENTS = ("strategist",)
_SEVERITY = ErrorSeverityClassifier()


@dataclass(frozen=True, slots=True)
class Score:
    """The parts of one completion's reward, each within -1..1, and their weighted sum.

    `errors` are those of the error taxonomy that code can decide on the text.
    """

    decision: float
    risk: float
    reasoning: float
    calibration: float
    total: float
    valid: bool
    grounded: bool = False
    side: int = 0
    errors: tuple[str, ...] = ()


class CounterfactualReward:
    """Scores decisions on the outcomes of their rows.

    decision: the return part of `RewardCalculator` for the side that would have been carried out: side times the
    market-relative return, net of costs, in ordinary moves of the instrument; divided by `scale` and clamped to -1..1.

    calibration: its confidence part, the skill of the stated confidence over the base rate of that side (Brier); divided
    by its span.

    risk, of agents that set a size alone: the mean of exposure (a side where the daily volatility known at the decision is
    extreme) and tail loss (a loss beyond one ordinary move), each -1..0. Size and stop are the rules' whatever the text
    says, so nothing here can see them; the path between entry and exit is not known for the side that was not taken.

    reasoning: 1 without an error, 0 with acceptable ones, -1 otherwise, by the severities of the error taxonomy. Cited
    words that the state does not say are a hallucination; no citation where there is something to cite is an
    unsupported claim, half of it an incomplete analysis; a confidence or a citation that the language of decisions does
    not know is an invalid value, and a sale of what is not held ignores the portfolio. It reads citations, not prose.

    Parameters
    ----------
    agent_type : str
    examples : sequence of RLExample
    weights : RewardWeights
    outcomes : mapping of int to sequence of Outcome, optional
        By example, what it is rewarded by in place of its own outcomes; see `training.rl.neighbours`.
    scale : float
        What a decision's return is measured by, in ordinary moves; see `decision_scale`.
    """

    __name__ = "reward"

    def __init__(
        self,
        agent_type: str,
        examples: Sequence[RLExample],
        weights: RewardWeights,
        outcomes: Mapping[int, Sequence[Outcome]] | None = None,
        scale: float = RETURN_CLAMP,
    ) -> None:
        self._agent_type = agent_type
        self._examples = examples
        self._weights = weights
        self._outcomes = outcomes or {}
        self._scale = scale
        self._known: dict[tuple[int, str], Score] = {}
        self._calculator = RewardCalculator(volatility_scaling=True)
        self.floor = INVALID * math.fsum(getattr(weights, name) for name in COMPONENTS)

    def __call__(
        self,
        completions: Sequence[Any],
        number: Sequence[int],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        """Return the rewards of a batch, as the trainer asks for them; `number` is the row of each completion."""
        scores = [
            self._score_of(row, completion[-1]["content"]) for row, completion in zip(number, completions, strict=True)
        ]
        for name, value in batch_figures(scores).items():
            log_metric(name, value)
        return [score.total for score in scores]

    def _score_of(self, row: int, text: str) -> Score:
        """Return what an answer to a row is worth; the answers of a group are few, so each is looked at once."""
        if (row, text) not in self._known:
            self._known[row, text] = self.score(self._examples[row], text, self._outcomes.get(row))
        return self._known[row, text]

    def score(self, example: RLExample, text: str, outcomes: Sequence[Outcome] | None = None) -> Score:
        """Return what an answer to an example's state is worth, by its own outcomes or by those given."""
        decision = parse_decision(text)
        if decision is None:
            return Score(INVALID, INVALID, INVALID, INVALID, self.floor, valid=False)
        state = example.state_text
        taken = executable(self._agent_type, state, decision.recommendation, decision.confidence)
        decided, risk, calibration = (
            math.fsum(values)
            for values in zip(
                *(self._realised(taken, decision, outcome) for outcome in outcomes or example.outcomes), strict=True
            )
        )
        decided = min(max(decided / self._scale, -1.0), 1.0)
        errors = text_errors(self._agent_type, state, decision)
        reasoning = _graded(errors)
        total = math.fsum(
            getattr(self._weights, name) * value
            for name, value in zip(COMPONENTS, (decided, risk, reasoning, calibration), strict=True)
        )
        grounded = is_grounded(state, decision)
        return Score(decided, risk, reasoning, calibration, total, True, grounded, direction(taken), errors)

    def _realised(self, taken: str, decision: ParsedDecision, outcome: Outcome) -> tuple[float, float, float]:
        """Return decision, risk and calibration under one outcome, by its weight."""
        side = direction(taken)
        found = self._calculator.calculate_reward(
            TradingOutcome(
                symbol="",
                recommendation=taken,
                actual_return=outcome.actual_return,
                holding_period=float(outcome.horizon_sessions),
                predicted_confidence=decision.confidence,
                costs=outcome.round_trip_cost if side else 0.0,
                volatility=outcome.volatility or None,
            ),
            benchmark_return=outcome.benchmark_return,
            history=RewardHistory(base_rates=outcome.base_rates),
            apply_risk=False,
        )
        risk = 0.0
        if side and self._agent_type in _SIZING_AGENTS:
            volatility = (outcome.volatility or TYPICAL_VOLATILITY) / TYPICAL_VOLATILITY
            exposure = _ramp(volatility, CALM_VOLATILITY, EXTREME_VOLATILITY)
            risk = -(exposure + _ramp(-found.return_reward, TAIL_START, TAIL_END)) / 2
        weight = outcome.weight
        calibration = found.confidence_reward / CALIBRATION_SPAN
        return weight * found.return_reward, weight * risk, weight * calibration


def decision_scale(outcomes: Iterable[Sequence[Outcome]]) -> float:
    """Return two standard deviations of what states lead to, in ordinary moves.

    The more outcomes are pooled, the less they differ; without it the weight of a decision would shrink beside those of
    the other parts, and training would polish answers that are wrong.
    """
    expected = [math.fsum(outcome.weight * outcome.move for outcome in of_one) for of_one in outcomes]
    return 2 * statistics.pstdev(expected) or RETURN_CLAMP if expected else RETURN_CLAMP


def text_errors(agent_type: str, state_text: str, decision: ParsedDecision) -> tuple[str, ...]:
    """Return the errors of the taxonomy that a decision's text shows."""
    found: list[str] = []
    due = cited_evidence(agent_type, state_text).split()
    if decision.evidence and not is_grounded(state_text, decision):
        found.append(ErrorCategory.HALLUCINATION)
    elif due and not decision.evidence:
        found.append(ErrorCategory.UNSUPPORTED_CLAIM)
    elif len(decision.evidence.keys() & set(CITED[agent_type])) < len(due):
        found.append(ErrorCategory.INCOMPLETE_ANALYSIS)
    if decision.confidence not in CONFIDENCES or not decision.evidence.keys() <= set(CITED[agent_type]):
        found.append(ErrorCategory.INVALID_VALUE)
    wanted = decision.recommendation
    if direction(wanted) < 0 and executable(agent_type, state_text, wanted, 1.0) == "hold":
        found.append(StrategistAgentError.PORTFOLIO_CONTEXT_IGNORED)
    return tuple(str(error) for error in found)


def batch_figures(scores: Sequence[Score]) -> dict[str, float]:
    """Return the means that the training reports: the components by name, and shares of all completions."""
    count = len(scores)
    figures = {name: math.fsum(getattr(score, name) for score in scores) / count for name in COMPONENTS}
    shares: Mapping[str, int] = {
        "valid": sum(score.valid for score in scores),
        "grounded": sum(score.grounded for score in scores),
        "buys": sum(score.valid and score.side > 0 for score in scores),
        "sells": sum(score.valid and score.side < 0 for score in scores),
    }
    errors = Counter(error for score in scores for error in score.errors)
    figures |= {name: value / count for name, value in shares.items()}
    return figures | {f"errors/{name}": value / count for name, value in sorted(errors.items())}


def _graded(errors: Sequence[str]) -> float:
    if not errors:
        return 1.0
    severities = [Severity(_SEVERITY.classify(error)) for error in errors]
    return 0.0 if _SEVERITY.is_acceptable(severities) else -1.0


def _ramp(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)
