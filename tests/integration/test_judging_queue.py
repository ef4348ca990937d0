"""Judging against a real library: pending grades are asked for again on schedule, survive restarts, and are never invented."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from output_factory import AS_OF, strategist_output, technical_output

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres, Trajectory
from data_pipeline.library import evaluations
from judge.base import JudgeRequest, JudgeScore
from judge.local_judge import LocalJudge
from judge.multi_judge_consensus import MultiJudgeConsensus
from orchestration.judging import BATCH, JudgeBatch, JudgeItem, Judging, calibration_cutoff, next_retry
from utils.errors import JudgeError, LibraryUnavailable
from utils.schema import AgentOutput


class SwitchedJudge:
    """Fails until it is switched on, and counts what it was asked."""

    judge_id = "other"

    def __init__(self) -> None:
        self.works = False
        self.asked = 0
        self.score = 60.0

    def grade(self, request: JudgeRequest) -> JudgeScore:
        self.asked += 1
        if not self.works:
            raise JudgeError("overload: 503 from a server that is tired")
        return JudgeScore(self.judge_id, self.score, 0.5, "fine", dict.fromkeys(request.rubric.weights, self.score))


def row(number: int, output: AgentOutput, **changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "trajectory_id": f"t{number}",
        "decision_id": f"d{number}",
        "timestamp": output.as_of.timestamp(),
        "symbol": output.symbol,
        "agent_type": output.agent_type,
        "recommendation": output.recommendation,
        "market_state": {"price": 100.0, "inputs": {"daily_volatility": 0.01}},
        "agent_inputs": {"bars": 300},
        "reasoning": output.reasoning,
        "confidence": output.confidence,
        "workflow_trace": {"output": output.model_dump(mode="json", exclude_defaults=True)},
    }
    return Trajectory(**{**fields, **changes})


class Panel:
    """A panel of the local judge and one that fails when told to, wired to a library."""

    def __init__(self, library: ExperienceLibraryPostgres) -> None:
        self.library = library
        self.judge = SwitchedJudge()
        self.scores: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        consensus = MultiJudgeConsensus([], judges=[LocalJudge(), self.judge])
        self.judging = Judging(consensus, self.library, "adhoc", self.scores.update)

    def stored(self, name: str = "t0") -> tuple[Any, ...]:
        with self.library.connection() as connection:
            found = connection.execute(
                "SELECT status, final_score, attempts, next_retry_at, scores, excluded FROM judge_evaluations "
                "WHERE trajectory_id = %s",
                (name,),
            ).fetchall()
        assert len(found) == 1
        return tuple(found[0])


@pytest.fixture
def panel(library: ExperienceLibraryPostgres) -> Panel:
    return Panel(library)


@pytest.fixture
def opinion(library: ExperienceLibraryPostgres) -> JudgeItem:
    output = technical_output()
    library.store_trajectory(row(0, output))
    return JudgeItem("t0", "d0", output)


def later(**duration: float) -> datetime:
    return AS_OF + timedelta(**duration)


def test_below_quorum_an_evaluation_is_pending_without_a_score_and_due_after_a_minute(
    panel: Panel, opinion: JudgeItem
) -> None:
    panel.judging.process(JudgeBatch(AS_OF, [opinion]))
    status, score, attempts, due, scores, excluded = panel.stored()
    assert (status, score, attempts, due) == ("pending", None, 1, later(minutes=1))
    assert [grade["judge_id"] for grade in scores] == ["local"]
    assert excluded[0]["judge_id"] == "other" and excluded[0]["reason"].startswith("overload:")
    assert panel.scores == {}
    assert panel.judging.pending == 1 and panel.judging.given_up == 0


def test_a_pending_evaluation_is_asked_about_only_once_it_is_due(panel: Panel, opinion: JudgeItem) -> None:
    panel.judging.process(JudgeBatch(AS_OF, [opinion]))
    panel.judging.retry_due(later(seconds=59))
    assert panel.judge.asked == 1
    panel.judging.retry_due(later(seconds=60))
    assert panel.judge.asked == 2
    assert panel.stored()[2:4] == (2, later(minutes=6))


def test_a_judge_that_recovers_turns_a_pending_evaluation_into_a_grade(panel: Panel, opinion: JudgeItem) -> None:
    panel.judging.process(JudgeBatch(AS_OF, [opinion]))
    panel.judge.works = True
    panel.judging.process(JudgeBatch(later(days=1), []))
    status, score, attempts, due, scores, excluded = panel.stored()
    assert (status, attempts, due, excluded) == ("ok", 2, None, [])
    assert {grade["judge_id"] for grade in scores} == {"local", "other"}
    assert panel.scores == {"t0": score}
    assert panel.judging.pending == 0
    panel.judging.retry_due(later(days=2))
    assert panel.judge.asked == 2


def test_the_queue_survives_a_restart(panel: Panel, opinion: JudgeItem) -> None:
    panel.judging.process(JudgeBatch(AS_OF, [opinion]))
    panel.restart()
    panel.judge.works = True
    panel.judging.process(panel.judging.backlog())
    assert panel.judging.pending == 1 and panel.stored()[0] == "pending"
    panel.judging.retry_due(later(minutes=1))
    assert panel.stored()[0] == "ok"


def test_the_schedule_is_a_minute_five_thirty_then_hourly_for_a_day() -> None:
    moments: list[timedelta] = []
    now: datetime | None = AS_OF
    while now is not None and len(moments) < 100:
        following = next_retry(AS_OF, now, len(moments) + 1)
        if following is not None:
            moments.append(following - now)
        now = following
    assert moments[:4] == [timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=30), timedelta(hours=1)]
    assert set(moments[3:]) == {timedelta(hours=1)}
    assert timedelta(hours=23) <= sum(moments, timedelta()) <= timedelta(hours=24)


def test_after_a_day_an_evaluation_is_given_up_and_says_so(panel: Panel, opinion: JudgeItem) -> None:
    panel.judging.process(JudgeBatch(AS_OF, [opinion]))
    panel.judging.retry_due(later(days=1))
    assert panel.stored()[:4] == ("pending", None, 2, None)
    assert panel.judging.status()["given_up"] == 1
    asked = panel.judge.asked
    panel.judging.retry_due(later(days=30))
    assert panel.judge.asked == asked


def test_a_repeated_write_of_an_earlier_attempt_changes_nothing(panel: Panel, opinion: JudgeItem) -> None:
    panel.judging.process(JudgeBatch(AS_OF, [opinion]))
    panel.judge.works = True
    panel.judging.retry_due(later(minutes=1))
    graded = panel.stored()
    panel.judge.works = False
    panel.restart()
    panel.judging.process(JudgeBatch(AS_OF, [opinion]))
    assert panel.stored() == graded


def test_opinions_that_no_judge_saw_are_the_backlog_and_shadow_ones_are_not(
    panel: Panel, library: ExperienceLibraryPostgres
) -> None:
    output = technical_output()
    library.store_trajectory(row(0, output))
    library.store_trajectory(row(1, output, shadow=True))
    items = panel.judging.backlog().items
    assert [item.trajectory_id for item in items] == ["t0"]
    assert items[0].output == output
    assert items[0].context["price"] == 100.0 and items[0].context["daily_volatility"] == 0.01


def test_the_same_opinion_gets_the_same_grade_from_memory_and_from_the_database(
    panel: Panel, library: ExperienceLibraryPostgres
) -> None:
    panel.judge.works = True
    output = technical_output()
    library.store_trajectory(row(0, output))
    stored = panel.judging.backlog().items[0]
    fresh = JudgeItem("t0", "d0", output, stored.context)
    judge = LocalJudge()
    consensus = MultiJudgeConsensus([], judges=[judge])
    grades = [
        consensus.evaluate("technical", item.output, "technical_rubric", item.context) for item in (stored, fresh)
    ]
    assert grades[0].final_score == grades[1].final_score
    assert grades[0].final_score is not None


def test_labels_are_only_of_what_had_matured_before(panel: Panel, library: ExperienceLibraryPostgres) -> None:
    panel.judge.works = True
    output = technical_output()
    for number in range(3):
        library.store_trajectory(
            row(number, output, actual_return=0.01, reward=0.1, success=number != 1, matured_at=later(days=7 + number))
        )
    panel.judging.process(panel.judging.backlog())

    def labels(before: datetime, limit: int = 100) -> Sequence[tuple[str, float, bool]]:
        with library.connection() as connection, connection.cursor() as cursor:
            return evaluations.labelled(cursor, "adhoc", before, limit)

    assert labels(later(days=7)) == []
    two = labels(later(days=8, seconds=1))
    assert sorted({name for name, _, _ in two}) == ["local", "other"]
    assert [success for name, _, success in two if name == "other"] == [False, True]
    assert len(labels(later(days=30), limit=1)) == 2


def test_an_opinion_that_the_backlog_has_covered_is_not_graded_again_out_of_the_queue(
    panel: Panel, opinion: JudgeItem
) -> None:
    panel.judge.works = True
    panel.judging.process(panel.judging.backlog())
    told = dict(panel.scores)
    panel.judge.score = 55.0
    panel.judging.process(JudgeBatch(AS_OF, [opinion]))
    assert panel.judge.asked == 1
    assert panel.scores == told == {"t0": panel.stored()[1]}


def test_grades_that_could_not_be_stored_are_stored_later_and_nobody_is_asked_again(
    panel: Panel, opinion: JudgeItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(rows: Any) -> None:
        raise LibraryUnavailable("the database is away and the spool is full")

    panel.judge.works = True
    with monkeypatch.context() as outage:
        outage.setattr(panel.library, "store_evaluations", away)
        for _ in range(3):
            with pytest.raises(LibraryUnavailable):
                panel.judging.process(JudgeBatch(AS_OF, [opinion]))
    assert panel.scores == {}
    panel.judging.process(JudgeBatch(AS_OF, [opinion]))
    assert panel.judge.asked == 1
    assert panel.stored()[0] == "ok" and panel.scores == {"t0": panel.stored()[1]}


def test_a_grade_that_the_database_refuses_for_good_does_not_come_back(panel: Panel, opinion: JudgeItem) -> None:
    panel.judge.works = True
    with pytest.raises(ValueError, match="trajectory"):
        panel.judging.process(JudgeBatch(AS_OF, [JudgeItem("unknown", "d9", opinion.output)]))
    panel.judging.process(panel.judging.backlog())
    assert panel.stored()[0] == "ok"


def test_a_pending_opinion_that_cannot_be_read_is_not_looked_at_again_and_again(
    panel: Panel, opinion: JudgeItem, caplog: pytest.LogCaptureFixture
) -> None:
    panel.judging.process(JudgeBatch(AS_OF, [opinion]))
    with panel.library.connection() as connection:
        connection.execute(
            "UPDATE trajectories SET workflow_trace = jsonb_set(workflow_trace, '{output,confidence}', '7')"
        )
    for seconds in range(60, 70):
        panel.judging.retry_due(later(seconds=seconds))
    assert caplog.text.count("cannot be judged") == 1
    panel.judging.retry_due(later(hours=2))
    assert caplog.text.count("cannot be judged") == 2


class CalibratedPanel:
    """A panel that calibrates, with matured opinions whose success says what its judge's score is worth."""

    def __init__(self, library: ExperienceLibraryPostgres) -> None:
        self.library = library
        self.judge = SwitchedJudge()
        self.judge.works = True
        self.scores: dict[str, float] = {}
        self.made = 0
        self.restart()

    def restart(self) -> None:
        self.consensus = MultiJudgeConsensus([], "calibrated", judges=[self.judge])
        self.judging = Judging(self.consensus, self.library, "adhoc", self.scores.update, calibrate=True)

    def mature(self, count: int, right: int, at: datetime) -> None:
        """Store graded opinions that have matured, so many of them right."""
        graded = []
        for number in range(self.made, self.made + count):
            output = technical_output()
            success = number - self.made < right
            outcome = {"actual_return": 0.01, "reward": 0.1, "success": success, "matured_at": at}
            self.library.store_trajectory(row(number, output, **outcome))
            graded.append(
                evaluations.Evaluation(
                    uuid.uuid4(), f"t{number}", "ok", 60.0, 0.5, None, None, "calibrated",
                    [{"judge_id": "other", "score": 60.0}], [],
                )
            )  # fmt: skip
        self.library.store_evaluations(graded)
        self.made += count

    def opinion(self, at: datetime) -> JudgeItem:
        output = technical_output(as_of=at)
        self.library.store_trajectory(row(self.made, output))
        self.made += 1
        return JudgeItem(f"t{self.made - 1}", "d", output)


def test_an_outage_during_the_weekly_fit_does_not_put_it_off_by_a_week(
    library: ExperienceLibraryPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = CalibratedPanel(library)
    panel.mature(200, 150, AS_OF)
    at = later(days=8)
    item = panel.opinion(at)

    def away(*_: Any) -> None:
        raise LibraryUnavailable("the database is away")

    with monkeypatch.context() as outage:
        outage.setattr(evaluations, "labelled", away)
        with pytest.raises(LibraryUnavailable):
            panel.judging.process(JudgeBatch(at, [item]))
    panel.judging.process(JudgeBatch(at, [item]))
    assert panel.scores[item.trajectory_id] == pytest.approx(75.0)


@pytest.mark.parametrize("by_backlog", [False, True])
def test_after_a_restart_grades_are_calibrated_as_without_one(
    library: ExperienceLibraryPostgres, by_backlog: bool
) -> None:
    panel = CalibratedPanel(library)
    monday = calibration_cutoff(later(days=8))
    panel.mature(200, 150, AS_OF)
    panel.judging.process(JudgeBatch(monday, []))
    panel.mature(200, 0, monday + timedelta(days=1))  # only next week's curve knows of them
    at = monday + timedelta(days=3)
    before, after = panel.opinion(at), panel.opinion(at)
    panel.judging.process(JudgeBatch(at, [before]))
    panel.restart()
    panel.judging.process(panel.judging.backlog() if by_backlog else JudgeBatch(at, [after]))
    assert panel.scores[before.trajectory_id] == pytest.approx(75.0)
    assert panel.scores[after.trajectory_id] == panel.scores[before.trajectory_id]
    panel.judging.process(JudgeBatch(monday + timedelta(days=7), [last := panel.opinion(at + timedelta(days=4))]))
    assert panel.scores[last.trajectory_id] == pytest.approx(37.5, abs=0.5)


def test_a_long_backlog_is_stored_as_it_goes_so_that_a_kill_does_not_pay_for_all_of_it_again(
    panel: Panel, library: ExperienceLibraryPostgres
) -> None:
    class Killed(BaseException):
        pass

    class Mortal(SwitchedJudge):
        def grade(self, request: JudgeRequest) -> JudgeScore:
            if self.asked == BATCH + 5:
                raise Killed
            return super().grade(request)

    output = technical_output()
    for number in range(BATCH + 10):
        library.store_trajectory(row(number, output))
    panel.judge = Mortal()
    panel.judge.works = True
    panel.restart()
    with pytest.raises(Killed):
        panel.judging.process(panel.judging.backlog())
    assert len(panel.judging.backlog().items) == 10


@pytest.mark.parametrize("change", [lambda e: e, lambda e: {**e, "final_score": 99.0}])
def test_a_grade_is_never_replaced(
    panel: Panel, opinion: JudgeItem, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    from dataclasses import asdict, replace

    panel.judge.works = True
    captured: list[Any] = []
    original = panel.library.store_evaluations
    panel.library.store_evaluations = lambda rows: (captured.extend(rows), original(rows))[1]  # type: ignore[method-assign]
    try:
        panel.judging.process(JudgeBatch(AS_OF, [opinion]))
    finally:
        del panel.library.store_evaluations
    before = panel.stored()
    repeated = replace(captured[0], final_score=change(asdict(captured[0]))["final_score"], attempts=5)
    panel.library.store_evaluations([repeated])
    assert panel.stored() == before


class ScopedPanel(Panel):
    """A panel whose other judge grades strategists alone, with or without the local judge beside it."""

    def __init__(self, library: ExperienceLibraryPostgres, *, local: bool) -> None:
        self.local = local
        super().__init__(library)

    def restart(self) -> None:
        configs = [{"id": "other", "model": "local", "agents": ["strategist"]}]
        ready = [LocalJudge(), self.judge] if self.local else [self.judge]
        self.judging = Judging(MultiJudgeConsensus(configs, judges=ready), self.library, "adhoc", self.scores.update)

    def opinions(self) -> list[JudgeItem]:
        """Store an analyst's opinion and a strategist's, and return both."""
        items = []
        for number, output in enumerate((technical_output(), strategist_output())):
            self.library.store_trajectory(row(number, output))
            items.append(JudgeItem(f"t{number}", f"d{number}", output))
        return items


def test_an_opinion_that_only_the_local_judge_is_to_grade_does_not_wait_for_others(
    library: ExperienceLibraryPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    panel = ScopedPanel(library, local=True)
    panel.judging.process(JudgeBatch(AS_OF, panel.opinions()))
    status, score, _, due, scores, excluded = panel.stored("t0")
    assert (status, due, excluded, [grade["judge_id"] for grade in scores]) == ("ok", None, [], ["local"])
    assert panel.scores == {"t0": score}
    assert panel.stored("t1")[0] == "pending"
    assert (panel.judge.asked, panel.judging.pending) == (1, 1)
    panel.judge.works = True
    panel.judging.process(JudgeBatch(later(days=1), []))
    assert panel.stored("t1")[0] == "ok"
    assert (panel.judge.asked, panel.judging.pending) == (2, 0)
    assert "no judge grades" not in caplog.text


@pytest.mark.parametrize("by_backlog", [False, True])
def test_without_a_judge_for_them_opinions_are_not_graded_and_wait_for_nobody_and_the_log_says_so_once(
    library: ExperienceLibraryPostgres, caplog: pytest.LogCaptureFixture, by_backlog: bool
) -> None:
    panel = ScopedPanel(library, local=False)
    panel.judge.works = True
    given = panel.opinions()
    panel.judging.process(panel.judging.backlog() if by_backlog else JudgeBatch(AS_OF, given))
    assert panel.stored("t1")[0] == "ok"
    assert panel.judge.asked == 1
    with library.connection() as connection:
        assert connection.execute("SELECT count(*) FROM judge_evaluations").fetchone() == (1,)
    assert panel.judging.status()["pending"] == 0
    assert panel.judging.backlog().items == []
    panel.judging.process(JudgeBatch(later(days=1), []))
    assert caplog.text.count("no judge grades the opinions of news, technical, fundamental") == 1
