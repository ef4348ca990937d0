"""The validator by rules: finds the conflicts among the analysts, resolves each, and says one thing in place of many.

Called through `agents.validator_agent` once the analysts of a symbol have answered and a rule of the workflow asked for
it. It sees their outputs and the regime, no market of its own, and is never surer than the surest of those it speaks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agents.base_agent import abstain
from agents.conflicts.detection import CONFLICT_TYPES, Conflict, ConflictDetector, opinions
from agents.conflicts.resolution import AdvancedConflictResolver, ConflictResolution, ResolutionContext
from agents.policies.base import PolicyRequest
from data_pipeline.rounding import figure
from utils.schema import AgentOutput, AgentType, ResolvedConflict, ValidatorOutput

MAX_REASONING_CHARS = 4000


class RulesValidator:
    """A `Policy` over conflicts.

    Notes
    -----
    The gravest conflict decides: by type (opposite recommendations, conflict of signals, disagreement of confidences),
    then by severity, then by name. The others are resolved and recorded. Without any conflict the view is the
    confidence-weighted one of all analysts, held with its share of the confidence times that of the surest.
    """

    agent_type: AgentType = "validator"
    name = "rules"
    reads_experiences = False
    waits = False
    prompt_hash: str | None = None

    def __init__(
        self, resolver: AdvancedConflictResolver | None = None, detector: ConflictDetector | None = None
    ) -> None:
        self._resolver = resolver or AdvancedConflictResolver()
        self._detector = detector or ConflictDetector()

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        """Answer every request; where every analyst abstains the answer is an abstention."""
        return [self._decide(request) for request in requests]

    def _decide(self, request: PolicyRequest) -> AgentOutput:
        snapshot = request.snapshot
        votes = opinions(request.agent_outputs)
        if not votes:
            reason = "there is no opinion to validate"
            return abstain(self.agent_type, snapshot.symbol, snapshot.as_of, reason, self.name)
        inputs = snapshot.inputs
        context = ResolutionContext(
            inputs.volatility,
            inputs.trend_strength,
            inputs.news_impact,
            request.regime.overall_regime,
            snapshot.as_of,
        )
        conflicts = sorted(self._detector.detect_conflicts(votes), key=_gravity)
        resolved = [(conflict, self._resolver.resolve_conflict(conflict, votes, context)) for conflict in conflicts]
        verdict = resolved[0][1] if resolved else self._resolver.pooled(votes)
        surest = max((votes[name].confidence for name in verdict.contributing_agents), default=0.0)
        # a share of the votes is no conviction: without a conflict it only tempers what the surest says
        confidence = min(verdict.final_confidence, surest) if resolved else verdict.final_confidence * surest
        said = [f"{conflict.description}. {resolution.reasoning}." for conflict, resolution in resolved]
        return ValidatorOutput(
            symbol=snapshot.symbol,
            as_of=snapshot.as_of,
            recommendation=verdict.final_recommendation,
            confidence=figure(confidence),
            reasoning=" ".join(said or [f"No conflict among {', '.join(votes)}. {verdict.reasoning}."])[
                :MAX_REASONING_CHARS
            ],
            policy=self.name,
            replaces=verdict.contributing_agents,
            resolutions=tuple(
                self._recorded(conflict, resolution, votes, context) for conflict, resolution in resolved
            ),
        )

    def _recorded(
        self,
        conflict: Conflict,
        resolution: ConflictResolution,
        votes: Mapping[str, AgentOutput],
        context: ResolutionContext,
    ) -> ResolvedConflict:
        """Return a conflict as the trace keeps it: with what every strategy would have said, for when the outcome is known."""
        return ResolvedConflict(
            conflict_type=conflict.conflict_type,
            agents=conflict.agents,
            severity=figure(conflict.severity),
            strategy=resolution.strategy_used,
            chosen_by=resolution.chosen_by,
            rule_strategy=self._resolver.default_strategy(conflict, votes, context),
            recommendation=resolution.final_recommendation,
            confidence=figure(resolution.final_confidence),
            signal=conflict.signal,
            alternatives=dict(self._resolver.alternatives(conflict, votes, context)),
        )


def _gravity(conflict: Conflict) -> tuple[int, float, str]:
    return CONFLICT_TYPES.index(conflict.conflict_type), -conflict.severity, conflict.signal or ""
