"""Judging: every opinion is graded when it is given, beside execution and without knowledge of its outcome.

The backlog lives in the database: an opinion without an evaluation is one that still has to be judged, one whose
evaluation is pending is asked about again, after a restart as before it. A grade that comes only after the outcome is
stored, and the reward, which did not wait for it, stays what it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library import evaluations, findings
from data_pipeline.library.evaluations import Evaluation, Waiting
from data_pipeline.library.findings import Finding
from evaluation.error_taxonomy import ErrorInstance, ErrorReport, Severity
from evaluation.fault_localization import report_of
from judge.calibration import ScoreCalibration, fit_calibration
from judge.multi_judge_consensus import ConsensusResult, EvaluationItem, MultiJudgeConsensus
from judge.panel import GRADED_AGENTS
from judge.robustness_guard import GuardFlag
from utils.errors import LibraryUnavailable
from utils.ids import derived_uuid
from utils.logs import logger
from utils.schema import AgentOutput, PortfolioState, parse_output
from utils.telemetry import NO_TELEMETRY, Telemetry

SCORE_DECIMALS = 4
"""Six digits of a score up to 100 are what a column of single precision holds for certain."""

RETRY_AFTER = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=30))
RETRY_LATER = timedelta(hours=1)
RETRY_WITHIN = timedelta(hours=24)
BATCH = 64
"""Opinions that are graded before their grades are stored: what a kill in the middle of a backlog has to pay for again."""

CALIBRATE_EVERY = timedelta(days=7)
_A_MONDAY = datetime(1970, 1, 5, tzinfo=UTC)
CALIBRATION_WINDOW = 2_000
"""Matured opinions that a calibration curve is fitted on: recent enough to speak of the judges as they are."""


def calibration_cutoff(at: datetime) -> datetime:
    """Return the beginning of the week (Monday, UTC): curves in force at `at` are fitted on what had matured before it.

    It depends on nothing but `at`, so that a run which was interrupted grades by the same curves.
    """
    return at - (at - _A_MONDAY) % CALIBRATE_EVERY


def next_retry(first: datetime, now: datetime, attempts: int) -> datetime | None:
    """Return when an evaluation is tried again that has failed `attempts` times, None once 24 hours are over."""
    after = RETRY_AFTER[attempts - 1] if attempts <= len(RETRY_AFTER) else RETRY_LATER
    return now + after if now + after <= first + RETRY_WITHIN else None


@dataclass(frozen=True, slots=True)
class JudgeItem:
    """One opinion to grade, with what was known when it was given; `attempts` and `cost_usd` are those made so far."""

    trajectory_id: str
    decision_id: str
    output: AgentOutput
    context: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class JudgeBatch:
    """The opinions of one instant; pending evaluations that are due by then are tried again first."""

    at: datetime | None
    items: Sequence[JudgeItem]


def judging_context(
    output: AgentOutput,
    *,
    price: float | None,
    daily_volatility: float,
    portfolio: PortfolioState | None,
    agents: Mapping[str, AgentOutput],
    report: ErrorReport,
) -> dict[str, Any]:
    """Return what judges are told beside an output; only a strategist has heard others and looked at the portfolio."""
    context: dict[str, Any] = {"daily_volatility": daily_volatility, "report": report}
    if price is not None:
        context["price"] = price
    if output.agent_type == "strategist":
        context["agent_outputs"] = dict(agents)
        if portfolio is not None:
            context["portfolio"] = asdict(portfolio)
    return context


class Judging:
    """Grades opinions, stores the grades, and passes the scores on.

    Parameters
    ----------
    consensus : MultiJudgeConsensus
    library : ExperienceLibraryPostgres
    run_id : str
    on_scores : callable
        Told the final scores (0..100) by trajectory id.
    calibrate : bool
        Whether to fit the judges' calibration curves on matured outcomes, once a week of the Clock.
    """

    def __init__(
        self,
        consensus: MultiJudgeConsensus,
        library: ExperienceLibraryPostgres,
        run_id: str,
        on_scores: Callable[[Mapping[str, float]], None],
        *,
        calibrate: bool = False,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._consensus = consensus
        self._library = library
        self._run_id = run_id
        self._on_scores = on_scores
        self._calibrate = calibrate
        self._telemetry = telemetry
        self._calibrated_until: datetime | None = None
        self._next_due: datetime | None = None
        self._known = False  # whether the queue of pending ones was read
        self._unstored: tuple[Sequence[JudgeItem], list[Evaluation], list[ConsensusResult]] | None = None
        self._handled: set[str] = set()  # first grades that are stored, of opinions that may be handed in once more
        self._graded: Counter[str] = Counter()
        self._excluded: Counter[tuple[str, str]] = Counter()
        self._last_exclusion: dict[str, str] = {}
        self._states: Counter[str] = Counter()
        self._degraded: str | None = None
        self.pending = 0
        """Evaluations that wait for a quorum, those given up included."""
        self.given_up = 0
        self.ungraded_agents = tuple(name for name in GRADED_AGENTS if not consensus.judges_of(name))
        """Agents whose opinions no judge of the panel grades; they wait for none."""
        if self.ungraded_agents:
            logger.warning(
                "no judge grades the opinions of %s: add local to judges, or name them in judge.hosted_agents",
                ", ".join(self.ungraded_agents),
            )

    def backlog(self) -> JudgeBatch:
        """Return the opinions of this run that no judge was asked about, oldest first."""
        with self._library.connection() as connection, connection.cursor() as cursor:
            rows = evaluations.unjudged(cursor, self._run_id)
        return JudgeBatch(None, self._items([row for row in rows if row.agent_type not in self.ungraded_agents]))

    def process(self, batch: JudgeBatch) -> None:
        """Grade opinions and store the grades; below quorum a grade stays pending and no score exists.

        Safe to repeat after LibraryUnavailable: nobody is asked again about what was answered. An opinion of the backlog
        that is still in the queue as well is graded once.
        """
        self._store()
        if not self._known:
            self._read_queue()
        if batch.at is not None:
            self._recalibrate(batch.at)
            self.retry_due(batch.at)
        elif batch.items:
            self._recalibrate(max(item.output.as_of for item in batch.items))
        self._judge(
            [
                (item, item.output.as_of)
                for item in batch.items
                if item.trajectory_id not in self._handled and item.output.agent_type not in self.ungraded_agents
            ]
        )
        if batch.at is not None:  # they do not come back; those of a backlog may
            self._handled.difference_update(item.trajectory_id for item in batch.items)

    def retry_due(self, now: datetime) -> None:
        """Ask again about every pending evaluation that is due."""
        self._store()
        if self._next_due is None or self._next_due > now:
            return
        self._recalibrate(now)
        with self._library.connection() as connection, connection.cursor() as cursor:
            rows = evaluations.due(cursor, self._run_id, now)
        self._judge([(item, now) for item in self._items(rows)])
        self._read_queue()
        if self._next_due is not None and self._next_due <= now:  # what is stored of it cannot be read
            self._next_due = now + RETRY_LATER

    def status(self) -> dict[str, Any]:
        """Return what people are shown of the panel, as JSON values."""
        return {
            "judges": {
                name: {
                    "graded": self._graded[name],
                    "excluded": {reason: n for (who, reason), n in sorted(self._excluded.items()) if who == name},
                    "last_exclusion": self._last_exclusion.get(name),
                }
                for name in self._consensus.judge_ids
            },
            "evaluations": dict(sorted(self._states.items())),
            "pending": self.pending,
            "given_up": self.given_up,
            "next_retry_at": self._next_due.isoformat() if self._next_due else None,
            "degraded": self._degraded,
        }

    def _judge(self, asked: Sequence[tuple[JudgeItem, datetime]]) -> None:
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            results = self._consensus.evaluate_many(
                [
                    EvaluationItem(
                        item.output.agent_type, item.output, f"{item.output.agent_type}_rubric", item.context, item.decision_id
                    )
                    for item, _ in batch
                ]
            )  # fmt: skip
            rows = [self._row(item, at, result) for (item, at), result in zip(batch, results, strict=True)]
            self._unstored = ([item for item, _ in batch], rows, results)
            self._store()

    def _store(self) -> None:
        """Store the grades that are not stored yet, and tell of them."""
        if self._unstored is None:
            return
        graded, self._unstored = self._unstored, None
        items, rows, results = graded
        try:
            self._library.store_evaluations(rows)
        except LibraryUnavailable:  # anything else it would refuse the next time too
            self._unstored = graded
            raise
        self._handled.update(item.trajectory_id for item in items if not item.attempts)
        for item, row, result in zip(items, rows, results, strict=True):
            self._tell(row, result)
            self._note(item, result)
        scores = {row.trajectory_id: row.final_score for row in rows if row.status == "ok"}
        self._on_scores({name: score for name, score in scores.items() if score is not None})

    def _tell(self, row: Evaluation, result: ConsensusResult) -> None:
        """Keep count of what is pending."""
        self._states[result.status] += 1
        if row.status == "pending":
            self.pending += row.attempts == 1
            self.given_up += row.next_retry_at is None
            if row.next_retry_at is not None:
                self._next_due = min(self._next_due or row.next_retry_at, row.next_retry_at)

    def _note(self, item: JudgeItem, result: ConsensusResult) -> None:
        agent_type = item.output.agent_type
        self._degraded = result.degraded
        self._telemetry.observe("judge_latency_seconds", result.latency_s)
        if len(self._consensus.judges_of(agent_type)) > 1 or len(self._consensus.judge_ids) == 1:
            self._telemetry.gauge("judge_effective_votes", result.effective_votes)
            self._telemetry.gauge("judge_alpha_ratio", result.alpha)
        self._telemetry.count("judge_evaluations_total", agent_type=agent_type)
        if result.final_score is not None:
            self._telemetry.observe("judge_scores", result.final_score, agent_type=agent_type)
        if result.disagreement_detected:
            self._telemetry.count("judge_disagreements_total")
        for grade in result.individual_scores:
            self._graded[grade.judge_id] += 1
        for excluded in result.excluded:
            name, kind = excluded["judge_id"], excluded["reason"].partition(":")[0]
            self._excluded[name, kind] += 1
            self._last_exclusion[name] = excluded["reason"]
            self._telemetry.count("judge_excluded_total", judge_id=name, reason=kind)

    def _row(self, item: JudgeItem, at: datetime, result: ConsensusResult) -> Evaluation:
        attempts = item.attempts + 1
        pending = result.status == "pending"
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
                    **({"cost_usd": s.cost_usd, "tokens": s.tokens} if s.tokens else {}),
                }
                for s in result.individual_scores
            ],
            [*map(dict, result.excluded), *map(_flagged, result.flags)],
            attempts,
            next_retry(item.output.as_of, at, attempts) if pending else None,
            item.cost_usd + result.cost_usd,
        )

    def _items(self, rows: Sequence[Waiting]) -> list[JudgeItem]:
        """Return stored opinions as they were when they were given."""
        decisions = [row.decision_id for row in rows if row.agent_type == "strategist" and row.decision_id]
        with self._library.connection() as connection, connection.cursor() as cursor:
            heard = evaluations.colleagues(cursor, decisions) if decisions else {}
            found = findings.of_trajectories(cursor, [row.trajectory_id for row in rows]) if rows else {}
        items = []
        for row in rows:
            output, faults = parse_output(dict(row.output), row.agent_type)
            if output is None:
                logger.warning(
                    "trajectory %s cannot be judged: its stored output is invalid at %s",
                    row.trajectory_id,
                    faults[0].pointer,
                )
                continue
            agents = {
                name: other
                for name, raw in heard.get(row.decision_id or "", {}).items()
                if (other := parse_output(dict(raw), name)[0])
            }
            portfolio = row.agent_inputs.get("portfolio")
            context = judging_context(
                output,
                price=row.market_state.get("price"),
                daily_volatility=row.market_state.get("inputs", {}).get("daily_volatility", 0.0),
                portfolio=PortfolioState(**portfolio) if portfolio else None,
                agents=agents,
                report=_report(output, found.get(row.trajectory_id, ()), row.not_checked or ()),
            )
            items.append(
                JudgeItem(row.trajectory_id, row.decision_id or "", output, context, row.attempts, row.cost_usd)
            )
        return items

    def _read_queue(self) -> None:
        with self._library.connection() as connection, connection.cursor() as cursor:
            self.pending, self.given_up, self._next_due = evaluations.pending(cursor, self._run_id)
        self._known = True

    def _recalibrate(self, at: datetime) -> None:
        """Fit the judges' curves, where the panel calibrates and a new week has begun since the last fit."""
        until = calibration_cutoff(at)
        if not self._calibrate or (self._calibrated_until is not None and until <= self._calibrated_until):
            return
        with self._library.connection() as connection, connection.cursor() as cursor:
            rows = evaluations.labelled(cursor, self._run_id, until, CALIBRATION_WINDOW)
        curves: dict[str, ScoreCalibration] = {}
        for name in self._consensus.judge_ids:
            pairs = [(score, success) for judge_id, score, success in rows if judge_id == name]
            curve = fit_calibration([score for score, _ in pairs], [success for _, success in pairs])
            if curve is not None:
                curves[name] = curve
        self._consensus.set_calibrations(curves)
        self._calibrated_until = until


def _report(output: AgentOutput, found: Sequence[Finding], not_checked: Sequence[str]) -> ErrorReport:
    """Return the stored findings of an output as the report they came from."""
    errors = [
        ErrorInstance(
            f.category, Severity(f.severity), f.description, f.pointer, f.suggested_fix, f.evidence, output.as_of, f.sub_code
        )
        for f in found
    ]  # fmt: skip
    return report_of(output.agent_type, errors, output.as_of, dict.fromkeys(not_checked, "as stored"))


def _flagged(flag: GuardFlag) -> dict[str, str]:
    """Return what the guard said of an output as the exclusion of all judges that it is."""
    return {"judge_id": "guard", "reason": f"quarantine: {flag.family} at {flag.pointer or 'the output'}"}


def _kept(result: ConsensusResult) -> float | None:
    """Return the score at a precision that the database gives back as it was, so that a resumed run reads the same."""
    return None if result.final_score is None else round(result.final_score, SCORE_DECIMALS)
