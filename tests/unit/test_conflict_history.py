"""What came of conflicts is learned from matured outcomes alone, and only once it is certain enough."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from opinion_factory import opinion

from agents.policies.rules.validator import RulesValidator
from agents.validator_agent import ValidatorAgent
from evaluation.bootstrap import Interval, lower_bound
from orchestration import conflict_history
from orchestration.conflict_history import ConflictAnalyzer, PastConflict, RealisedOutcome, came_true, past_conflicts
from orchestration.conflict_resolution import STRATEGIES, AdvancedConflictResolver, ConflictDetector, ResolutionContext
from orchestration.rewrite_rules import default_rules
from orchestration.workflow_graph import WorkflowGraph
from orchestration.workflow_run import WorkflowRun
from utils.setting_sections import WorkflowSettings

START = datetime(2014, 1, 6, 21, tzinfo=UTC)
OUTPUTS = {"news": opinion("buy", 0.8), "technical": opinion("sell", 0.6)}
(CONFLICT,) = ConflictDetector().detect_conflicts(OUTPUTS)


def cases(count: int, better: str = "domain_expertise", wins: int = 9) -> list[PastConflict]:
    """Days on which one strategy was right in nine of ten and the others in one of ten."""
    return [
        PastConflict(
            START + timedelta(days=day), START + timedelta(days=day + 7), "opposite_recommendations", "neutral",
            {name: (day % 10 < wins) == (name == better) for name in STRATEGIES},
        )
        for day in range(count)
    ]  # fmt: skip


def preferred(analyzer: ConflictAnalyzer, as_of: datetime | None = None) -> str | None:
    return analyzer.preferred("opposite_recommendations", "neutral", as_of, "confidence_weighted")


def test_a_strategy_that_was_right_more_often_is_preferred() -> None:
    analyzer = ConflictAnalyzer()
    analyzer.learn(cases(60))
    assert preferred(analyzer) == "domain_expertise"
    resolver = AdvancedConflictResolver(preference=analyzer)
    found = resolver.resolve_conflict(CONFLICT, OUTPUTS, ResolutionContext(regime="neutral"))
    assert (found.strategy_used, found.chosen_by, found.final_recommendation) == ("domain_expertise", "learned", "sell")
    elsewhere = resolver.resolve_conflict(CONFLICT, OUTPUTS, ResolutionContext(regime="crash"))
    assert (elsewhere.strategy_used, elsewhere.chosen_by) == ("confidence_weighted", "rule")


def test_fewer_than_thirty_cases_teach_nothing() -> None:
    analyzer = ConflictAnalyzer()
    analyzer.learn(cases(29))
    assert preferred(analyzer) is None
    analyzer.learn(cases(30)[29:])
    assert preferred(analyzer) == "domain_expertise"


def test_what_had_not_matured_is_not_known() -> None:
    analyzer = ConflictAnalyzer()
    analyzer.learn(cases(60))
    assert preferred(analyzer, START + timedelta(days=36)) is None  # the 30th matures on that very instant
    assert preferred(analyzer, START + timedelta(days=36, seconds=1)) == "domain_expertise"


def test_a_slight_advantage_is_not_certain_enough() -> None:
    analyzer = ConflictAnalyzer()
    analyzer.learn(cases(60, wins=6))
    assert preferred(analyzer) is None


def test_many_conflicts_of_few_days_count_as_few() -> None:
    analyzer = ConflictAnalyzer()
    analyzer.learn([case for case in cases(10) for _ in range(10)])
    assert preferred(analyzer) is None


def test_a_trace_and_an_outcome_make_a_case() -> None:
    run = WorkflowRun(
        WorkflowGraph.routed(("news", "technical")), default_rules(WorkflowSettings()), about={"regime": "neutral"}
    )
    while calls := run.ready():
        for call in calls:
            run.start(call)
        for call in calls:
            answer = ValidatorAgent(RulesValidator()).analyze(run.outputs) if call.agent == "validator" else None
            run.record(call, answer or OUTPUTS[call.agent], 0.0)
    outcome = RealisedOutcome(-0.03, 0.001, START + timedelta(days=7))
    (case,) = past_conflicts([(START, run.trace, outcome)])
    assert (case.conflict_type, case.regime) == ("opposite_recommendations", "neutral")
    assert case.right == {
        "temporal_priority": False, "domain_expertise": True, "confidence_weighted": False, "signal_strength": False,
        "ensemble_voting": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "actual_return", "expected"),
    [("buy", 0.002, True), ("buy", 0.001, False), ("sell", -0.02, True), ("hold", 0.019, True), ("hold", -0.02, False)],
)
def test_a_call_is_right_by_the_measure_of_rewards(said: str, actual_return: float, expected: bool) -> None:
    assert came_true(said, actual_return, 0.001) == expected


def test_statistics_count_conflicts_and_say_who_was_right() -> None:
    analyzer = ConflictAnalyzer()
    analyzer.add_conflict(CONFLICT, AdvancedConflictResolver().resolve_conflict(CONFLICT, OUTPUTS), "neutral")
    analyzer.add_conflict(CONFLICT)
    analyzer.learn(cases(10))
    found = analyzer.get_statistics()
    assert (found["total_conflicts"], found["unresolved"], found["matured"]) == (2, 1, 10)
    assert found["by_strategy"] == {"confidence_weighted": 1}
    assert found["success_rates"][0]["domain_expertise"] == 0.9


def test_what_is_learned_elsewhere_makes_nothing_be_reckoned_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    reckoned: list[int] = []

    def counted(daily: list[float], block: int, level: float) -> Interval:
        reckoned.append(len(daily))
        return lower_bound(daily, block, level)

    monkeypatch.setattr(conflict_history, "lower_bound", counted)
    analyzer = ConflictAnalyzer()
    analyzer.learn(cases(60))
    assert preferred(analyzer) == "domain_expertise"
    once = len(reckoned)
    analyzer.learn([])
    analyzer.learn([replace(case, regime="crash") for case in cases(60)])
    assert preferred(analyzer) == "domain_expertise"
    assert len(reckoned) == once
    analyzer.learn(cases(61)[60:])
    assert preferred(analyzer) == "domain_expertise"
    assert reckoned[once:] == [61] * once
