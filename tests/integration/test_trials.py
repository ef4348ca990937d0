"""Challengers and champions on a real database: every move of a version, and what moves none.

The opinions are written by hand; they show when a version moves, not how good one is.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from trial_lab import (
    GATE,
    HORIZON,
    SYMBOLS,
    add_version,
    decide,
    decided,
    fatal,
    matured,
    move,
    opinion,
    store,
)

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from evaluation.gate import GateEvidence, GateVerdict, evaluate_gate
from monitoring.metrics_collector import MetricsCollector
from training.model_registry import ModelRegistry, ModelVersion
from training.pipelines.conclusion import conclude
from training.pipelines.online_learning_loop import OnlineLearningConfig, OnlineLearningLoop
from training.pipelines.trigger import SFTPipelineConfig
from training.trials import LoadFault, NothingServed, Trials
from utils.clock import VirtualClock
from utils.errors import LibraryUnavailable
from utils.settings import OrchestratorConfig

pytestmark = pytest.mark.timeout(120)

CHALLENGER, CHAMPION, PREVIOUS = "technical@c", "technical@b", "technical@a"
RULES = "rules"
OTHER_BASE = LoadFault("it was trained on another base model", lasting=True)
SERVER_AWAY = LoadFault("the server is away", lasting=False)


class Recorder(NothingServed):
    """Notes what it is asked to align; `failures` are raised first, `slow` are the seconds of a champion's answers.

    `faults` says which versions cannot be loaded; a predecessor that cannot is replaced by the rules.
    """

    def __init__(self) -> None:
        self.aligned: list[str] = []
        self.failures: list[Exception] = []
        self.slow: list[float] = []
        self.faults: dict[str, LoadFault] = {}

    def align(self, agent_type: str) -> None:
        if self.failures:
            raise self.failures.pop()
        self.aligned.append(agent_type)

    def counterpart(self, agent_type: str, previous: str | None) -> str:
        return super().counterpart(agent_type, None if previous in self.faults else previous)

    def load_fault(self, agent_type: str, version: str) -> LoadFault | None:
        return self.faults.get(version)

    def latencies_s(self, agent_type: str, policy: str) -> list[float]:
        return self.slow if policy == f"local:{CHAMPION}" else []


@pytest.fixture
def library(shared_library: ExperienceLibraryPostgres) -> ExperienceLibraryPostgres:
    """A library without experiences, versions and aliases."""
    with shared_library.connection() as connection:
        connection.execute(
            "TRUNCATE trajectories, datasets, training_runs, model_versions, model_aliases, alias_events CASCADE"
        )
    return shared_library


@pytest.fixture
def metrics() -> MetricsCollector:
    return MetricsCollector(registry=CollectorRegistry())


@pytest.fixture
def serving() -> Recorder:
    return Recorder()


@pytest.fixture
def make_trials(
    library: ExperienceLibraryPostgres, serving: Recorder, metrics: MetricsCollector
) -> Callable[..., Trials]:
    def make(**learning: Any) -> Trials:
        return Trials(library, OrchestratorConfig(learning=learning), serving, telemetry=metrics)

    return make


def aliases(library: ExperienceLibraryPostgres) -> dict[str, str]:
    return {alias: held.model.version for alias, held in ModelRegistry(library).held_by("technical").items()}


def state(library: ExperienceLibraryPostgres, version: str) -> str:
    return next(model.state for model in ModelRegistry(library).versions() if model.version == version)


def reason(library: ExperienceLibraryPostgres, alias: str) -> str:
    return [event for event in ModelRegistry(library).events("technical") if event.alias == alias][-1].reason


@pytest.fixture
def challenged(library: ExperienceLibraryPostgres) -> ModelVersion:
    """A challenger since session 0, beside the rules."""
    model = add_version(library, CHALLENGER)
    move(library, "challenge", model, decided(0))
    return model


@pytest.fixture
def crowned(library: ExperienceLibraryPostgres) -> ModelVersion:
    """A champion since session 0 that replaced another."""
    move(library, "promote", add_version(library, PREVIOUS), decided(-9))
    model = add_version(library, CHAMPION)
    move(library, "promote", model, decided(0))
    return model


def test_a_challenger_serves_at_the_first_check_after_enough_decisions_and_sessions(
    library: ExperienceLibraryPostgres,
    challenged: ModelVersion,
    make_trials: Callable[..., Trials],
    serving: Recorder,
    metrics: MetricsCollector,
) -> None:
    trials = make_trials()
    decide(library, range(1, 9), (RULES, False), (f"local:{CHALLENGER}", True))
    trials.check(matured(4))
    assert aliases(library) == {"challenger": CHALLENGER}
    assert trials.waiting("technical") == (f"{CHALLENGER} is in its shadow stage: 40 of 50 decisions, 4 of 5 sessions")
    assert trials.waiting("news") is None
    trials.check(matured(5))
    assert aliases(library) == {"champion": CHALLENGER}
    assert state(library, CHALLENGER) == "champion"
    assert "not below its bound: +" in reason(library, "champion")
    assert "5 sessions and 50 decisions" in reason(library, "champion")
    assert serving.aligned == ["technical", "technical"]
    assert trials.waiting("technical") is None
    assert metrics.get_current_metrics()['model_promotions_total{agent_type="technical"}'] == 1
    trials.check(matured(5))
    assert len(ModelRegistry(library).events("technical")) == 3


def test_sessions_alone_and_decisions_alone_do_not_end_a_trial(
    library: ExperienceLibraryPostgres, challenged: ModelVersion, make_trials: Callable[..., Trials]
) -> None:
    decide(library, range(1, 20), (RULES, False), (f"local:{CHALLENGER}", True), symbols=SYMBOLS[:2])
    trials = make_trials()
    trials.check(matured(19))
    assert aliases(library) == {"challenger": CHALLENGER}
    decide(library, range(20, 30), (RULES, False), (f"local:{CHALLENGER}", True), symbols=SYMBOLS[:2])
    trials.check(matured(30))
    assert aliases(library) == {"champion": CHALLENGER}


def test_a_challenger_that_does_worse_is_turned_down_within_a_check_of_the_evidence(
    library: ExperienceLibraryPostgres,
    challenged: ModelVersion,
    make_trials: Callable[..., Trials],
    metrics: MetricsCollector,
) -> None:
    trials = make_trials(shadow_decisions=1000)
    decide(library, range(1, 30), (RULES, True), (f"local:{CHALLENGER}", False))
    turned_down = None
    for session in range(1, 30):
        trials.check(matured(session))
        if not aliases(library):
            turned_down = session
            break
    assert turned_down is not None
    assert turned_down <= 4  # what one session loses is several deviations
    assert state(library, CHALLENGER) == "rejected"
    assert "does worse than what serves: its reward differs by -" in reason(library, "challenger")
    assert metrics.get_current_metrics()['model_rejections_total{agent_type="technical"}'] == 1


def test_a_challenger_whose_answers_are_no_opinions_does_not_serve(
    library: ExperienceLibraryPostgres, challenged: ModelVersion, make_trials: Callable[..., Trials]
) -> None:
    decide(library, range(1, 6), (RULES, True), (f"local:{CHALLENGER}", True), abstained=True, recommendation="hold")
    make_trials().check(matured(6))
    assert aliases(library) == {}
    assert "only 0% of its 50 answers were valid" in reason(library, "challenger")


def test_a_challenger_that_can_never_be_loaded_is_turned_down_with_the_reason(
    library: ExperienceLibraryPostgres,
    challenged: ModelVersion,
    make_trials: Callable[..., Trials],
    serving: Recorder,
    metrics: MetricsCollector,
) -> None:
    serving.faults[CHALLENGER] = OTHER_BASE
    trials = make_trials()
    trials.align()
    assert aliases(library) == {"challenger": CHALLENGER}
    trials.check(decided(0))
    assert aliases(library) == {}
    assert state(library, CHALLENGER) == "rejected"
    assert reason(library, "challenger") == f"it cannot be loaded: {OTHER_BASE.reason}"
    assert trials.waiting("technical") is None
    assert metrics.get_current_metrics()['model_rejections_total{agent_type="technical"}'] == 1
    assert serving.aligned == ["technical"] * 2


@pytest.mark.parametrize(
    ("fault", "cause"),
    [(SERVER_AWAY, f"it cannot be loaded: {SERVER_AWAY.reason}"), (None, "its answers fail, or nobody asks it")],
    ids=["away", "mute"],
)
def test_a_challenger_that_says_nothing_for_twenty_sessions_with_decisions_is_turned_down_with_the_cause(
    library: ExperienceLibraryPostgres,
    challenged: ModelVersion,
    make_trials: Callable[..., Trials],
    serving: Recorder,
    fault: LoadFault | None,
    cause: str,
) -> None:
    serving.faults = {} if fault is None else {CHALLENGER: fault}
    trials = make_trials()
    decide(library, range(-30, 1), (RULES, True))  # before its trial
    decide(library, range(1, 3), (RULES, True), (f"local:{CHALLENGER}", True), symbols=SYMBOLS[:1])
    decide(library, range(3, 40, 2), (RULES, True))  # 19 sessions in twice as many days
    for restarted in (trials, make_trials()):
        restarted.check(decided(60))
        assert aliases(library) == {"challenger": CHALLENGER}
        waits = restarted.waiting("technical")
        assert waits is not None
        assert f"2 of 5 sessions; no answer in the last 19 sessions, 20 end the trial: {cause}" in waits
    decide(library, range(61, 62), (RULES, True))
    trials.check(decided(61))
    assert aliases(library) == {}
    assert state(library, CHALLENGER) == "rejected"
    assert f"it has answered nothing in 20 sessions with decisions, 20 end a trial: {cause}" in reason(
        library, "challenger"
    )


def test_sessions_without_answers_are_counted_from_the_last_answer_on_and_an_abstention_is_one(
    library: ExperienceLibraryPostgres, challenged: ModelVersion, make_trials: Callable[..., Trials]
) -> None:
    decide(library, range(1, 20), (RULES, True))
    decide(library, range(20, 21), (RULES, True), (f"local:{CHALLENGER}", True), abstained=True)
    decide(library, range(21, 40), (RULES, True))
    trials = make_trials()
    trials.check(decided(39))
    assert aliases(library) == {"challenger": CHALLENGER}


def test_a_champion_that_degrades_is_rolled_back_to_its_predecessor_within_one_check_of_the_evidence(
    library: ExperienceLibraryPostgres,
    crowned: ModelVersion,
    make_trials: Callable[..., Trials],
    serving: Recorder,
    metrics: MetricsCollector,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trials = make_trials()
    decide(library, range(1, 20), (f"local:{CHAMPION}", True), (f"local:{PREVIOUS}", True))
    decide(library, range(20, 30), (f"local:{CHAMPION}", False), (f"local:{PREVIOUS}", True))
    for session in range(1, 20):
        trials.check(matured(session))
    assert aliases(library) == {"champion": CHAMPION, "previous": PREVIOUS}
    (shown,) = trials.snapshot()
    assert shown["champion_trial"]["sessions"] == 19
    lost = -shown_difference()
    needed = math.floor(shown_threshold(trials) / (lost / deviation() - 0.25)) + 1
    for session in range(20, 20 + needed - 1):
        trials.check(matured(session))
    assert aliases(library)["champion"] == CHAMPION
    trials.check(matured(20 + needed - 1))
    assert aliases(library) == {"champion": PREVIOUS}
    assert (state(library, CHAMPION), state(library, PREVIOUS)) == ("retired", "champion")
    assert f"it does worse than {PREVIOUS}" in reason(library, "champion")
    assert f"ROLLBACK: {CHAMPION} is withdrawn, {PREVIOUS} serves the technical agent again" in caplog.text
    assert metrics.get_current_metrics()['model_rollbacks_total{agent_type="technical"}'] == 1
    assert serving.aligned == ["technical", "technical"]


def shown_difference() -> float:
    """Return what a session loses, wrong in place of right, by the gate's reward."""
    from data_pipeline.library.shadow_pairs import ShadowPair, Side
    from training.trial_evidence import session_differences

    right, wrong = Side("buy", 0.7, False), Side("sell", 0.7, False)
    pair = ShadowPair("a", "S00", decided(1), matured(1), 0.03, 0.0, 0.015, wrong, right)
    (found,) = session_differences([pair], "serving", horizon_sessions=HORIZON, round_trip_cost=0.0016)
    return found.difference


def shown_threshold(trials: Trials) -> float:
    from training.live_trial import LiveTrial

    return LiveTrial(1.0, OrchestratorConfig().learning.false_alarm_years).threshold


def deviation() -> float:
    from training.live_trial import deviation_of

    return deviation_of(GATE)


def test_without_a_predecessor_the_rules_are_the_measure_and_serve_again(
    library: ExperienceLibraryPostgres, make_trials: Callable[..., Trials]
) -> None:
    move(library, "promote", add_version(library, CHAMPION), decided(0))
    decide(library, range(1, 20), (f"local:{CHAMPION}", False), (RULES, True))
    make_trials().check(matured(20))
    assert aliases(library) == {}
    assert "it does worse than rules" in reason(library, "champion")


@pytest.mark.parametrize(
    ("fault", "left"), [(OTHER_BASE, {}), (SERVER_AWAY, {"champion": PREVIOUS})], ids=["for good", "for now"]
)
def test_a_champion_whose_predecessor_cannot_be_loaded_falls_by_what_shadows_it_in_its_place(
    library: ExperienceLibraryPostgres,
    crowned: ModelVersion,
    make_trials: Callable[..., Trials],
    serving: Recorder,
    fault: LoadFault,
    left: dict[str, str],
) -> None:
    serving.faults[PREVIOUS] = fault
    decide(library, range(1, 20), (f"local:{CHAMPION}", False), (RULES, True))
    trials = make_trials()
    trials.align()
    assert trials.snapshot()[0]["champion_trial"]["against"] == RULES
    trials.check(matured(20))
    assert aliases(library) == left
    assert reason(library, "champion").startswith("it does worse than rules")
    lost = f"{PREVIOUS}, the version before, cannot serve again: {fault.reason}"
    assert (lost in reason(library, "champion")) is fault.lasting


def test_fatal_findings_count_beside_what_shadows_a_champion_in_the_place_of_a_lost_predecessor(
    library: ExperienceLibraryPostgres, crowned: ModelVersion, make_trials: Callable[..., Trials], serving: Recorder
) -> None:
    serving.faults[PREVIOUS] = OTHER_BASE
    rows = [opinion(session, symbol, f"local:{CHAMPION}", True) for session in (1, 2) for symbol in SYMBOLS]
    beside = [opinion(session, symbol, RULES, True, shadow=True) for session in (1, 2) for symbol in SYMBOLS]
    store(library, [*rows, *beside], [fatal(row) for row in rows])
    make_trials().check(decided(2))
    assert aliases(library) == {}
    assert "fatal findings in 20 of its outputs, in 0 of rules's" in reason(library, "champion")


def test_a_champion_is_measured_by_its_predecessor_again_once_that_can_be_loaded(
    library: ExperienceLibraryPostgres, crowned: ModelVersion, make_trials: Callable[..., Trials], serving: Recorder
) -> None:
    serving.faults[PREVIOUS] = SERVER_AWAY
    decide(library, range(1, 3), (f"local:{CHAMPION}", True), (RULES, True))
    decide(library, range(3, 4), (f"local:{CHAMPION}", True), (f"local:{PREVIOUS}", True))
    trials = make_trials()
    trials.check(matured(3))
    assert trials.snapshot()[0]["champion_trial"]["sessions"] == 2
    serving.faults.clear()
    trials.align(again=True)
    trials.check(matured(3))
    (shown,) = trials.snapshot()
    assert (shown["champion_trial"]["against"], shown["champion_trial"]["sessions"]) == (f"local:{PREVIOUS}", 1)


def test_a_champion_as_good_as_its_predecessor_is_not_rolled_back(
    library: ExperienceLibraryPostgres, crowned: ModelVersion, make_trials: Callable[..., Trials]
) -> None:
    for session in range(1, 120):
        serving, shadow = (session % 2 == 0, session % 2 == 1) if session % 4 < 2 else (True, True)
        decide(
            library,
            range(session, session + 1),
            (f"local:{CHAMPION}", serving),
            (f"local:{PREVIOUS}", shadow),
            symbols=SYMBOLS[:1],
        )
    trials = make_trials()
    trials.check(matured(120))
    assert aliases(library)["champion"] == CHAMPION


def test_decisions_that_something_else_served_or_that_came_before_do_not_count_for_a_champion(
    library: ExperienceLibraryPostgres, crowned: ModelVersion, make_trials: Callable[..., Trials]
) -> None:
    decide(library, range(-8, 1), (f"local:{CHAMPION}", False), (f"local:{PREVIOUS}", True))
    decide(library, range(1, 20), (RULES, False), (f"local:{PREVIOUS}", True))
    trials = make_trials()
    trials.check(matured(20))
    assert trials.snapshot()[0]["champion_trial"]["decisions"] == 0
    assert aliases(library)["champion"] == CHAMPION


def with_fatal(library: ExperienceLibraryPostgres, session: int, champion: int, predecessor: int) -> None:
    rows, found = [], []
    for number, symbol in enumerate(SYMBOLS):
        serving = opinion(session, symbol, f"local:{CHAMPION}", True)
        shadow = opinion(session, symbol, f"local:{PREVIOUS}", True, shadow=True)
        rows += [serving, shadow]
        found += [fatal(serving)] * 2 * (number < champion) + [fatal(shadow)] * (number < predecessor)
    store(library, rows, found)


@pytest.mark.parametrize(("champion", "predecessor", "falls"), [(8, 0, True), (8, 4, False), (6, 0, False)])
def test_a_champion_falls_by_fatal_findings_only_where_more_than_twice_as_many_are_shown(
    library: ExperienceLibraryPostgres,
    crowned: ModelVersion,
    make_trials: Callable[..., Trials],
    champion: int,
    predecessor: int,
    falls: bool,
) -> None:
    trials = make_trials()
    for session in (1, 2):
        with_fatal(library, session, champion, predecessor)
        trials.check(decided(session))
    assert (aliases(library)["champion"] == PREVIOUS) is falls
    assert ("fatal findings in 16 of its outputs" in reason(library, "champion")) is falls


def test_slow_answers_of_a_champion_roll_it_back(
    library: ExperienceLibraryPostgres, crowned: ModelVersion, make_trials: Callable[..., Trials], serving: Recorder
) -> None:
    trials = make_trials()
    serving.slow = [0.6] * 99
    trials.check(decided(1))
    assert aliases(library)["champion"] == CHAMPION
    serving.slow = [0.6] * 100
    trials.check(decided(2))
    assert aliases(library)["champion"] == PREVIOUS
    assert "took up to 600 ms; the limit is 500 ms" in reason(library, "champion")


def test_a_champion_and_a_challenger_are_on_trial_side_by_side(
    library: ExperienceLibraryPostgres, crowned: ModelVersion, make_trials: Callable[..., Trials]
) -> None:
    move(library, "challenge", add_version(library, CHALLENGER), decided(0))
    shadows = ((f"local:{PREVIOUS}", True), (f"local:{CHALLENGER}", True))
    decide(library, range(1, 5), (f"local:{CHAMPION}", True), *shadows)
    trials = make_trials()
    trials.check(matured(4))
    (shown,) = trials.snapshot()
    assert (shown["champion_trial"]["decisions"], shown["challenger_trial"]["decisions"]) == (40, 40)
    assert shown["champion_trial"]["against"] == f"local:{PREVIOUS}"
    decide(library, range(5, 7), (f"local:{CHAMPION}", True), *shadows)
    trials.check(matured(6))
    assert aliases(library) == {"champion": CHALLENGER, "previous": CHAMPION}
    assert trials.snapshot()[0]["champion_trial"]["against"] == f"local:{CHAMPION}"


def test_a_rollback_begins_the_challengers_trial_anew_beside_what_serves_now(
    library: ExperienceLibraryPostgres, crowned: ModelVersion, make_trials: Callable[..., Trials]
) -> None:
    move(library, "challenge", add_version(library, CHALLENGER), decided(0))
    shadows = ((f"local:{PREVIOUS}", True), (f"local:{CHALLENGER}", True))
    decide(library, range(1, 20), (f"local:{CHAMPION}", False), *shadows)
    trials = make_trials()
    trials.check(matured(19))
    trials.check(matured(19))
    assert aliases(library) == {"champion": PREVIOUS, "challenger": CHALLENGER}
    assert state(library, CHAMPION) == "retired"
    assert trials.waiting("technical") == f"{CHALLENGER} is in its shadow stage: 0 of 50 decisions, 0 of 5 sessions"
    last = matured(19).date() - decided(0).date()
    decide(library, range(last.days + 1, last.days + 6), (f"local:{PREVIOUS}", True), (f"local:{CHALLENGER}", True))
    trials.check(matured(last.days + 5))
    assert aliases(library)["champion"] == CHALLENGER


def test_a_champion_that_falls_to_the_rules_begins_the_challengers_trial_anew_beside_them(
    library: ExperienceLibraryPostgres, make_trials: Callable[..., Trials]
) -> None:
    move(library, "promote", add_version(library, CHAMPION), decided(0))
    move(library, "challenge", add_version(library, CHALLENGER), decided(0))
    decide(library, range(1, 5), (f"local:{CHAMPION}", True), (RULES, True), (f"local:{CHALLENGER}", True))
    trials = make_trials()
    trials.check(matured(4))
    assert trials.snapshot()[0]["challenger_trial"]["decisions"] == 40
    with library.connection() as connection, connection.cursor() as cursor:
        ModelRegistry(library).withdraw(cursor, "technical", matured(4), "expired", to_previous=False)
    begun_anew = f"{CHALLENGER} is in its shadow stage: 0 of 50 decisions, 0 of 5 sessions"
    first = (matured(4).date() - decided(0).date()).days + 1
    decide(library, range(first, first + 4), (RULES, True), (f"local:{CHALLENGER}", True))
    for after in (trials, make_trials()):
        after.check(matured(4))
        assert aliases(library) == {"challenger": CHALLENGER}
        assert after.waiting("technical") == begun_anew
        after.check(matured(first + 3))
        assert aliases(library) == {"challenger": CHALLENGER}
    decide(library, range(first + 4, first + 5), (RULES, True), (f"local:{CHALLENGER}", True))
    trials.check(matured(first + 4))
    assert aliases(library) == {"champion": CHALLENGER}


def test_a_move_by_another_process_is_noticed_and_begins_the_trial_anew(
    library: ExperienceLibraryPostgres,
    challenged: ModelVersion,
    make_trials: Callable[..., Trials],
    serving: Recorder,
) -> None:
    trials = make_trials()
    decide(library, range(1, 5), (RULES, False), (f"local:{CHALLENGER}", True))
    trials.check(matured(4))
    move(library, "turn_down", challenged, matured(4))
    move(library, "challenge", challenged, matured(4))
    trials.check(matured(4))
    assert serving.aligned == ["technical", "technical"]
    assert trials.snapshot()[0]["challenger_trial"]["decisions"] == 0
    move(library, "turn_down", challenged, matured(4), "an operator's word")
    trials.check(matured(4))
    assert serving.aligned == ["technical"] * 3
    (shown,) = trials.snapshot()
    assert shown["challenger"] is None
    assert shown["last_move"]["reason"] == "an operator's word"


def test_a_move_that_another_process_was_first_to_make_is_not_made_again(
    library: ExperienceLibraryPostgres, crowned: ModelVersion, make_trials: Callable[..., Trials]
) -> None:
    trials = make_trials()
    trials.check(decided(0))
    decide(library, range(1, 20), (f"local:{CHAMPION}", False), (f"local:{PREVIOUS}", True))
    known = trials._agents["technical"]
    move(library, "promote", add_version(library, CHALLENGER), decided(3))
    trials._withdraw("technical", known, matured(19), "evidence of before")
    assert aliases(library) == {"champion": CHALLENGER, "previous": CHAMPION}


def test_a_crash_between_the_move_and_the_alignment_is_made_good_by_the_next_check_and_by_the_next_start(
    library: ExperienceLibraryPostgres,
    challenged: ModelVersion,
    make_trials: Callable[..., Trials],
    serving: Recorder,
) -> None:
    trials = make_trials()
    trials.check(decided(0))
    decide(library, range(1, 6), (RULES, False), (f"local:{CHALLENGER}", True))
    serving.failures = [RuntimeError("killed")]
    with pytest.raises(RuntimeError, match="killed"):
        trials.check(matured(5))
    assert aliases(library) == {"champion": CHALLENGER}
    assert serving.aligned == ["technical"]
    trials.check(matured(5))
    assert serving.aligned == ["technical"] * 2
    restarted = make_trials()
    restarted.align()
    assert serving.aligned == ["technical"] * 3
    restarted.check(matured(5))
    assert len(ModelRegistry(library).events("technical")) == 3


def test_a_restart_reads_the_same_figures_that_a_run_without_one_has_gathered(
    library: ExperienceLibraryPostgres, crowned: ModelVersion, make_trials: Callable[..., Trials]
) -> None:
    uninterrupted = make_trials()
    for session in range(1, 15):
        symbols = SYMBOLS[: 1 + session % 3]
        decide(
            library,
            range(session, session + 1),
            (f"local:{CHAMPION}", session != 13),
            (f"local:{PREVIOUS}", True),
            symbols=symbols,
        )
        if session % 2:
            uninterrupted.check(matured(session))
    uninterrupted.check(matured(14))
    restarted = make_trials()
    restarted.check(matured(14))
    assert restarted.snapshot() == uninterrupted.snapshot()
    assert restarted.snapshot()[0]["champion_trial"]["alarm_ratio"] > 0


def test_what_is_not_known_yet_is_not_read(
    library: ExperienceLibraryPostgres, challenged: ModelVersion, make_trials: Callable[..., Trials]
) -> None:
    decide(library, range(1, 8), (RULES, False), (f"local:{CHALLENGER}", True))
    trials = make_trials()
    trials.check(matured(2) - timedelta(seconds=1))
    assert trials.snapshot()[0]["challenger_trial"]["decisions"] == 10


def verdict_of(outcome: str) -> GateVerdict:
    return replace(evaluate_gate(GateEvidence(())), verdict=outcome, reasons=("it earns more",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcome", "stage", "state_after", "held"),
    [
        ("promote", True, "shadow", {"challenger": CHALLENGER}),
        ("promote", False, "champion", {"champion": CHALLENGER}),
        ("reject", True, "rejected", {}),
        ("insufficient_evidence", True, "trained", {}),
    ],
)
def test_a_verdict_leads_to_a_trial_or_to_service_where_there_is_no_shadow_stage(
    library: ExperienceLibraryPostgres, outcome: str, stage: bool, state_after: str, held: dict[str, str]
) -> None:
    model = add_version(library, CHALLENGER)
    with library.connection() as connection, connection.cursor() as cursor:
        said = conclude(ModelRegistry(library), cursor, model, verdict_of(outcome), decided(1), shadow_stage=stage)
    assert (said, state(library, CHALLENGER), aliases(library)) == (state_after, state_after, held)


def test_a_version_trained_by_hand_meanwhile_takes_the_place_of_the_challenger(
    library: ExperienceLibraryPostgres, challenged: ModelVersion
) -> None:
    rival = add_version(library, CHAMPION)
    with library.connection() as connection, connection.cursor() as cursor:
        conclude(ModelRegistry(library), cursor, rival, verdict_of("promote"), decided(1))
    assert aliases(library) == {"challenger": CHAMPION}
    assert state(library, CHALLENGER) == "rejected"


def test_the_bytes_that_serve_trained_again_keep_their_verdict_and_are_no_challenger_of_themselves(
    library: ExperienceLibraryPostgres, crowned: ModelVersion
) -> None:
    before = aliases(library)
    for outcome in ("promote", "reject"):
        with library.connection() as connection, connection.cursor() as cursor:
            conclude(ModelRegistry(library), cursor, crowned, verdict_of(outcome), decided(1))
        champion = ModelRegistry(library).holder("technical", "champion")
        assert champion is not None
        assert (champion.state, champion.gate) == ("champion", GATE)
        assert aliases(library) == before


def test_two_who_promote_at_once_do_so_one_after_the_other(library: ExperienceLibraryPostgres) -> None:
    first, second = (add_version(library, name) for name in (PREVIOUS, CHAMPION))
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    other = threading.Thread(target=move, args=(library, "promote", second, decided(2)))
    deadline = time.monotonic() + 30
    with library.connection() as connection, connection.cursor() as cursor:
        ModelRegistry(library).promote(cursor, first, decided(1), "by hand")
        other.start()
        while cursor.execute(waiting).fetchone() == (0,):
            assert time.monotonic() < deadline, "the other did not wait"
    other.join(30)
    assert aliases(library) == {"champion": CHAMPION, "previous": PREVIOUS}
    assert state(library, PREVIOUS) == "retired"


class NeverTrained:
    """A pipeline that must not be asked."""

    kind = "sft"
    config = SFTPipelineConfig()
    on_progress: Any = None

    def run_pipeline(self, **asked: Any) -> dict[str, Any]:
        raise AssertionError("a training began while there was a challenger")


def test_trainings_of_an_agent_wait_while_it_has_a_challenger_and_say_so(
    library: ExperienceLibraryPostgres, challenged: ModelVersion, make_trials: Callable[..., Trials]
) -> None:
    pipelines: list[Any] = [NeverTrained()]
    loop = OnlineLearningLoop(
        OnlineLearningConfig(), library, pipelines, VirtualClock(decided(0)), trials=make_trials()
    )
    loop.check(decided(1))
    status = loop.get_status()
    assert status["triggers"][0]["detail"].startswith(f"{CHALLENGER} is in its shadow stage: 0 of 50 decisions")
    assert status["versions"][0]["challenger"] == CHALLENGER
    assert status["training_log_count"] == 1  # that of the challenger


class Impatient(threading.Event):
    """Waits for nothing."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


class Awayed:
    """A pipeline whose database is away the first time."""

    kind = "sft"
    config = SFTPipelineConfig()
    on_progress: Any = None

    def __init__(self, done: threading.Event, clock: VirtualClock) -> None:
        self._done = done
        self._clock = clock
        self.asked: list[Any] = []

    def run_pipeline(self, **asked: Any) -> dict[str, Any]:
        self.asked.append(asked["at"])
        if len(self.asked) == 1:
            self._clock.advance_to(asked["at"] + timedelta(minutes=1))
            raise LibraryUnavailable("gone")
        self._done.set()
        return {"run_id": None, "skipped": "nothing to do"}


def test_a_check_that_the_database_cut_off_is_made_up_for_within_its_interval(
    library: ExperienceLibraryPostgres, make_trials: Callable[..., Trials]
) -> None:
    stop = Impatient()
    clock = VirtualClock(decided(0))
    pipelines: list[Any] = [Awayed(stop, clock)]
    loop = OnlineLearningLoop(OnlineLearningConfig(), library, pipelines, clock, trials=make_trials())
    loop._stop = stop
    loop._run()
    assert pipelines[0].asked == [decided(0), decided(0) + timedelta(minutes=1)]


def test_the_versions_are_looked_at_at_every_check_and_while_none_comes_once_a_minute(
    library: ExperienceLibraryPostgres, challenged: ModelVersion, make_trials: Callable[..., Trials]
) -> None:
    decide(library, range(1, 7), (RULES, False), (f"local:{CHALLENGER}", True))
    loop = OnlineLearningLoop(
        OnlineLearningConfig(check_interval_hours=10_000), library, [], VirtualClock(decided(0)), trials=make_trials()
    )
    loop.check(matured(4))
    loop.tend(matured(5) - timedelta(seconds=1))
    loop.tend(matured(5) + timedelta(seconds=58))
    assert aliases(library) == {"challenger": CHALLENGER}
    loop.tend(matured(5) + timedelta(seconds=59))
    assert aliases(library) == {"champion": CHALLENGER}
