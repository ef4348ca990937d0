"""Shadow opinions: asked what the serving agent was asked, stored lean, settled, and without effect on any decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from scripted_servers import CONFIG, SYMBOLS, Server, decide, market, with_policies

from agents.policies.base import PolicyRequest
from agents.policies.rules import RulesStrategist, RulesTechnical
from data_pipeline.embeddings import FeatureHashingEmbedder
from orchestration.analysis import Analysis
from orchestration.coordinator import Coordinator
from orchestration.records import (
    open_decision,
    shadow_findings,
    shadow_trajectories,
    trajectories_of,
    trajectory_ids,
)
from utils.errors import ProviderError
from utils.hashing import canonical_json
from utils.schema import AgentOutput, AgentType

__all__ = ["market"]


class Shadow:
    """Answers as the rules do, under a name of its own; keeps what it was asked and does as it is told."""

    reads_experiences = False
    waits = False
    prompt_hash = None

    def __init__(self, agent_type: AgentType, name: str = "local:test@1", **changes: Any) -> None:
        self.agent_type = agent_type
        self.name = name
        self.changes = {"policy": name, **changes}
        self.asked: list[PolicyRequest] = []
        self.error: Exception | None = None
        self.dropped = 0

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        self.asked += requests
        if self.error is not None:
            raise self.error
        rules = RulesStrategist() if self.agent_type == "strategist" else RulesTechnical()
        answers = [output.model_copy(update=self.changes) for output in rules.decide_many(requests)]
        return answers[self.dropped :]


def shadowed(*shadows: Shadow) -> Coordinator:
    coordinator = Coordinator(CONFIG)
    for shadow in shadows:
        coordinator.set_shadows(shadow.agent_type, (shadow,))
    return coordinator


def stored(analyses: Sequence[Analysis]) -> list[str]:
    embedder = FeatureHashingEmbedder()
    rows = []
    for analysis in analyses:
        ids = trajectory_ids("r" * 32, analysis.decision)
        rows += [repr(row) for row in trajectories_of("r" * 32, ids, analysis, "5d", embedder)]
        rows.append(canonical_json(analysis.decision.canonical()))
    return rows


def test_decisions_and_their_rows_are_the_same_bytes_with_and_without_shadows(market: Any) -> None:
    alone = stored(decide(market, Coordinator(CONFIG)))
    coordinator = shadowed(Shadow("technical", recommendation="sell"), Shadow("strategist", recommendation="sell"))
    first = decide(market, coordinator)
    assert stored(first) == alone
    assert sum(map(len, coordinator.shadow_opinions(first))) == 2 * len(SYMBOLS)
    assert stored(first) == alone
    assert stored(decide(market, coordinator)) == alone


def test_a_shadow_is_asked_what_its_agent_was_asked_the_strategists_with_the_opinions_it_weighed(market: Any) -> None:
    served, shadow, strategist = Recording(), Shadow("technical"), Shadow("strategist")
    coordinator = shadowed(shadow, strategist)
    coordinator.set_policy("technical", served)
    analyses = decide(market, coordinator)
    coordinator.shadow_opinions(analyses)
    assert shadow.asked == served.asked
    for request, analysis in zip(strategist.asked, analyses, strict=True):
        assert request.portfolio == analysis.portfolio
        assert request.agent_outputs.items() >= analysis.decision.agents.items()


class Recording(Shadow):
    """The rules, who keep what they were asked."""

    def __init__(self) -> None:
        super().__init__("technical", "rules", policy="rules")


def test_where_the_agent_gave_no_opinion_its_shadow_is_not_asked(market: Any) -> None:
    silent = Recording()
    silent.changes.update(abstained=True, abstain_reason="no data", recommendation="hold", confidence=0.0)
    shadow = Shadow("technical")
    coordinator = shadowed(shadow)
    coordinator.set_policy("technical", silent)
    assert coordinator.shadow_opinions(decide(market, coordinator)) == [[]] * len(SYMBOLS)
    assert shadow.asked == []


@pytest.mark.parametrize("error", [ProviderError("the model is gone"), ZeroDivisionError("a bug")])
def test_a_shadow_that_fails_says_nothing_and_others_are_asked_all_the_same(
    market: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = Shadow("technical", "local:broken@1"), Shadow("technical", "local:sound@1")
    broken.error = error
    coordinator = Coordinator(CONFIG)
    coordinator.set_shadows("technical", (broken, sound))
    said = coordinator.shadow_opinions(decide(market, coordinator))
    assert [[opinion.policy for opinion in opinions] for opinions in said] == [["local:sound@1"]] * len(SYMBOLS)
    assert "its shadow local:broken@1 gave no answers" in caplog.text


def test_a_shadow_whose_rules_answer_or_that_drops_an_answer_says_nothing(market: Any) -> None:
    fallen_back, short = Shadow("technical", policy="rules"), Shadow("strategist")
    short.dropped = 1
    coordinator = shadowed(fallen_back, short)
    assert coordinator.shadow_opinions(decide(market, coordinator)) == [[]] * len(SYMBOLS)


def test_shadows_can_be_taken_away_again(market: Any) -> None:
    shadow = Shadow("technical")
    coordinator = shadowed(shadow)
    assert coordinator.shadows == {"technical": ["local:test@1"]}
    coordinator.set_shadows("technical", ())
    assert coordinator.shadows == {}
    assert coordinator.shadow_opinions(decide(market, coordinator)) == [[]] * len(SYMBOLS)
    assert shadow.asked == []


def test_a_shadows_row_is_marked_stands_beside_its_agents_and_has_an_identity_that_follows_from_both(
    market: Any,
) -> None:
    coordinator = shadowed(Shadow("technical"), Shadow("strategist"))
    analysis = (analyses := decide(market, coordinator))[0]
    said = coordinator.shadow_opinions(analyses)[0]
    ids = trajectory_ids("r" * 32, analysis.decision)
    rows = shadow_trajectories("r" * 32, ids, analysis, said, "5d")
    assert {row.agent_type for row in rows} == {"technical", "strategist"}
    for row in rows:
        assert row.shadow
        assert row.embedding is None
        assert row.decision_id == analysis.decision.decision_id
        assert row.agent_inputs["shadow_of"] == ids[row.agent_type]
        assert row.policy == "local:test@1"
    assert not {row.trajectory_id for row in rows} & set(ids.values())
    again = shadow_trajectories("r" * 32, ids, analysis, said, "5d")
    assert [row.trajectory_id for row in again] == [row.trajectory_id for row in rows]


def test_what_is_wrong_with_a_shadows_opinion_is_found_and_belongs_to_its_row(market: Any) -> None:
    reckless = {"recommendation": "buy", "confidence": 0.8, "abstained": False, "position_size": 0.1, "stop_loss": None}
    coordinator = shadowed(Shadow("strategist", **reckless))
    analyses = decide(market, coordinator)
    said = coordinator.shadow_opinions(analyses)[0]
    ids = trajectory_ids("r" * 32, analyses[0].decision)
    found = shadow_findings(ids, said)
    (row,) = shadow_trajectories("r" * 32, ids, analyses[0], said, "5d")
    assert {finding.trajectory_id for finding in found} == {row.trajectory_id}
    assert ("stop_loss_missing", "fatal") in {(finding.category, finding.severity) for finding in found}


@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_a_shadows_answer_that_no_row_could_hold_is_no_answer(market: Any, value: float) -> None:
    coordinator = shadowed(Shadow("technical", confidence=value))
    assert coordinator.shadow_opinions(decide(market, coordinator)) == [[]] * len(SYMBOLS)


def test_a_shadows_opinion_waits_for_its_outcome_apart_from_those_that_count(market: Any) -> None:
    coordinator = shadowed(Shadow("technical"))
    analyses = decide(market, coordinator)
    said = coordinator.shadow_opinions(analyses)[0]
    ids = trajectory_ids("r" * 32, analyses[0].decision)
    waiting = open_decision(ids, analyses[0].decision, analyses[0].snapshot, said)
    assert waiting is not None
    assert {opinion.trajectory_id for opinion in waiting.opinions} <= set(ids.values())
    (shadow,) = waiting.shadows
    assert (shadow.agent_type, shadow.policy) == ("technical", "local:test@1")


def test_latencies_are_kept_of_a_live_coordinator_alone(market: Any) -> None:
    ticks = iter(range(10_000))
    for timer, kept in ((None, 0), (lambda: float(next(ticks)), len(SYMBOLS))):
        coordinator = with_policies(Server("technical", "buy", 0.6, waits=False), timer=timer)
        decide(market, coordinator)
        assert len(coordinator.latencies_s("technical", "test:model")) == kept
        coordinator.close()


def test_a_model_in_whose_place_rules_answer_is_charged_with_the_time_that_it_took(market: Any) -> None:
    ticks = iter(range(10_000))
    coordinator = Coordinator(CONFIG, timer=lambda: float(next(ticks)))
    slow = Shadow("technical")
    slow.error = ProviderError("no answer within 10 s", kind="timeout")
    coordinator.set_policy("technical", slow)
    assert {a.decision.agents["technical"].policy for a in decide(market, coordinator)} == {"rules"}
    assert len(coordinator.latencies_s("technical", slow.name)) == len(SYMBOLS)
    assert coordinator.latencies_s("technical", "rules") == []
    coordinator.close()


def test_a_policy_that_takes_its_seat_again_is_not_measured_by_its_former_time_in_it(market: Any) -> None:
    ticks = iter(range(10_000))
    coordinator = with_policies(Server("technical", "buy", 0.6, waits=False), timer=lambda: float(next(ticks)))
    policy = coordinator.serving("technical")
    assert policy is not None
    decide(market, coordinator)
    others = coordinator.latencies_s("news", coordinator.policies["news"])
    coordinator.set_policy("technical", policy)
    assert coordinator.latencies_s("technical", policy.name) == []
    assert coordinator.latencies_s("news", coordinator.policies["news"]) == others != []
    coordinator.close()
