"""Judging: every opinion is graded when it is given, beside execution and without knowledge of its outcome.

The backlog lives in the database: an opinion without an evaluation is one that still has to be judged, after a restart
as before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library import evaluations
from data_pipeline.library.evaluations import Evaluation
from judge.multi_judge_consensus import ConsensusResult, MultiJudgeConsensus
from utils.ids import derived_uuid
from utils.logs import logger
from utils.schema import AgentOutput, parse_output
from utils.telemetry import NO_TELEMETRY, Telemetry

SCORE_DECIMALS = 4
"""Six digits of a score up to 100 are what a column of single precision holds for certain."""


@dataclass(frozen=True, slots=True)
class JudgeItem:
    """One opinion to grade."""

    trajectory_id: str
    output: AgentOutput


class Judging:
    """Grades opinions, stores the grades, and passes the scores on.

    Parameters
    ----------
    consensus : MultiJudgeConsensus
    library : ExperienceLibraryPostgres
    run_id : str
    on_scores : callable
        Told the final scores (0..100) by trajectory id.
    """

    def __init__(
        self,
        consensus: MultiJudgeConsensus,
        library: ExperienceLibraryPostgres,
        run_id: str,
        on_scores: Callable[[Mapping[str, float]], None],
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._consensus = consensus
        self._library = library
        self._run_id = run_id
        self._on_scores = on_scores
        self._telemetry = telemetry

    def backlog(self) -> list[JudgeItem]:
        """Return the opinions of this run that no judge has seen, oldest first."""
        with self._library.connection() as connection, connection.cursor() as cursor:
            rows = evaluations.unjudged(cursor, self._run_id)
        items = []
        for identity, agent_type, trace in rows:
            output, findings = parse_output(trace.get("output"), agent_type)
            if output is None:
                logger.warning(
                    "trajectory %s cannot be judged: its stored output is invalid at %s", identity, findings[0].pointer
                )
                continue
            items.append(JudgeItem(identity, output))
        return items

    def process(self, items: Sequence[JudgeItem]) -> None:
        """Grade opinions and store the grades; below quorum a grade stays pending and no score exists."""
        results = [(item, self._grade(item)) for item in items]
        if not results:
            return
        self._library.store_evaluations([self._row(item, result) for item, result in results])
        self._on_scores(
            {item.trajectory_id: score for item, r in results if r.status == "ok" and (score := _kept(r)) is not None}
        )

    def _grade(self, item: JudgeItem) -> ConsensusResult:
        agent_type = item.output.agent_type
        started = time.perf_counter()
        result = self._consensus.evaluate(agent_type, item.output, f"{agent_type}_rubric")
        self._telemetry.observe("judge_latency_seconds", time.perf_counter() - started)
        self._telemetry.gauge("judge_effective_votes", result.effective_votes)
        self._telemetry.gauge("judge_alpha_ratio", result.alpha)
        self._telemetry.count("judge_evaluations_total", agent_type=agent_type)
        if result.final_score is not None:
            self._telemetry.observe("judge_scores", result.final_score, agent_type=agent_type)
        if result.disagreement_detected:
            self._telemetry.count("judge_disagreements_total")
        for excluded in result.excluded:
            self._telemetry.count("judge_excluded_total", judge_id=excluded["judge_id"], reason=excluded["reason"][:40])
        return result

    def _row(self, item: JudgeItem, result: ConsensusResult) -> Evaluation:
        return Evaluation(
            derived_uuid(self._run_id, "evaluation", item.trajectory_id),
            item.trajectory_id,
            result.status,
            _kept(result),
            result.confidence,
            result.agreement_level,
            result.effective_votes,
            result.consensus_method,
            [
                {
                    "judge_id": s.judge_id,
                    "score": s.score,
                    "confidence": s.confidence,
                    "criteria": dict(s.criteria_scores),
                    "reasoning": s.reasoning,
                }
                for s in result.individual_scores
            ],
            [dict(excluded) for excluded in result.excluded],
        )


def _kept(result: ConsensusResult) -> float | None:
    """Return the score at a precision that the database gives back as it was, so that a resumed run reads the same."""
    return None if result.final_score is None else round(result.final_score, SCORE_DECIMALS)
