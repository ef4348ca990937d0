"""Every decision records its states: what a local policy was, or would have been, asked about it, byte for byte."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import Any

import pytest
from hosted_questions import RULES, request
from market_data_builders import news_update

from agents.policies.base import PastExperience, Policy, PolicyRequest
from agents.policies.local.decisions import prompt_hash, stored_state
from agents.policies.local.engine import Question
from agents.policies.local.policy import LocalModelPolicy
from agents.policies.local.states import LOCAL_AGENTS, StateWriter, state_values
from data_pipeline.asof_store import AsOfStore
from data_pipeline.embeddings import FeatureHashingEmbedder
from data_pipeline.feeds.factory import build_feed
from data_pipeline.library.trajectories import Trajectory
from orchestration.analysis import Analysis
from orchestration.coordinator import Coordinator
from orchestration.execution.portfolio import Portfolio
from orchestration.records import trajectories_of, trajectory_ids
from utils.errors import ProviderError
from utils.schema import AgentOutput, AgentType, MarketUpdate
from utils.settings import OrchestratorConfig

SYMBOLS = ("AAPL", "GOOG", "IBM", "MSFT")
PERIOD: dict[str, Any] = {"streaming_symbols": SYMBOLS, "replay_start": "2012-06-01", "replay_end": "2012-06-08"}
NEWS = {"GOOG": "profits surge and the outlook is strong", "MSFT": "fraud probe, shares crash", "IBM": "annual meeting"}
Key = tuple[str, str, str]


class Market:
    """Six sessions of the sample history, with filings of one company and daily news of three."""

    def __init__(self) -> None:
        feed = build_feed(OrchestratorConfig(**PERIOD))
        self.calendar = feed.calendar
        self.instants = list(feed.instants())
        self._updates = sorted(
            (*feed.history(), *(update for instant in self.instants for update in instant.updates), *self._invented()),
            key=attrgetter("available_at"),
        )

    def _invented(self) -> Iterator[MarketUpdate]:
        for filing in request("fundamental").snapshot.filings:
            yield MarketUpdate(filing.symbol, "filing", filing, filing.event_time, filing.available_at, "test")
        for instant in self.instants:
            for symbol, text in NEWS.items():
                at = instant.at - timedelta(hours=2 + len(symbol))
                yield news_update(at, f"{text} on day {instant.at.day}", symbol, f"{symbol}-{instant.at.day}")

    def analyses(self, coordinator: Coordinator, *, knowing_all: bool = False) -> list[Analysis]:
        """Decide at each instant, on a store that holds all or what had come until then."""
        store, portfolio = AsOfStore(self.calendar), Portfolio(cash=1e5)
        waiting = iter(self._updates)
        found: list[Analysis] = []
        upcoming = next(waiting, None)
        for instant in self.instants:
            while upcoming is not None and (knowing_all or upcoming.available_at <= instant.at):
                store.add(upcoming)
                upcoming = next(waiting, None)
            found += coordinator.analyze(store.as_of(instant.at), instant.session, SYMBOLS, portfolio)
        coordinator.close()
        return found


@pytest.fixture(scope="module")
def market() -> Market:
    return Market()


@pytest.fixture(scope="module")
def by_rules(market: Market) -> dict[Key, str | None]:
    return recorded(market.analyses(coordinator("rules")))


def coordinator(agents: str, **more: Any) -> Coordinator:
    return Coordinator(OrchestratorConfig(agents=agents, **PERIOD, **more.pop("settings", {})), run_id="run", **more)


def trajectories(analyses: Sequence[Analysis]) -> list[Trajectory]:
    embedder = FeatureHashingEmbedder()
    return [
        row
        for analysis in analyses
        for row in trajectories_of("run", trajectory_ids("run", analysis.decision), analysis, "5d", embedder)
    ]


def recorded(analyses: Sequence[Analysis]) -> dict[Key, str | None]:
    """Return the state of each opinion by agent, symbol and time, as it comes back from JSON."""
    return {
        (row.agent_type, row.symbol, str(row.as_of)): stored_state(json.loads(json.dumps(dict(row.agent_inputs))))
        for row in trajectories(analyses)
        if not row.abstained
    }


Said = Callable[[AgentOutput, int], "tuple[str, float] | str | ProviderError"]
"""What a model answers, by what the rules think and how often it was asked about that before."""


class Seats:
    """Local policies for every seat whose models remember which state an opinion was given on."""

    def __init__(self, said: Said, **settings: Any) -> None:
        self._said = said
        self._states = StateWriter.configured(OrchestratorConfig(**settings))
        self.asked: dict[Key, list[str]] = {}
        self.decided_on: dict[tuple[Key, float], str] = {}

    def policy_for(self, agent_type: AgentType, rules: Policy) -> Policy:
        asked, decided_on, said = self.asked, self.decided_on, self._said

        class Remembering(RULES[agent_type]):  # type: ignore[misc]
            """Rules that lay out their facts for the source, which is asked right after them."""

            def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
                outputs: list[AgentOutput] = super().decide_many(requests)
                source.facts = [output for output in outputs if not output.abstained]
                return outputs

        class Source:
            version, waits = "test@1", False
            facts: Sequence[AgentOutput] = ()

            def answer(
                self, questions: Sequence[Question], *, deadline_s: float | None = None
            ) -> list[str | ProviderError]:
                return [self._answer(*pair) for pair in zip(self.facts, questions, strict=True)]

            def _answer(self, facts: AgentOutput, question: Question) -> str | ProviderError:
                key, state = (str(agent_type), facts.symbol, str(facts.as_of)), question.messages[-1]["content"]
                before = asked.setdefault(key, [])
                answer = said(facts, len(before))
                before.append(state)
                if not isinstance(answer, tuple):
                    return answer
                decided_on[key, answer[1]] = state
                return json.dumps({"recommendation": answer[0], "confidence": answer[1], "evidence": ""})

            def close(self) -> None: ...

        source = Source()
        return LocalModelPolicy(agent_type, source, Remembering(), self._states)


def echo(facts: AgentOutput, before: int) -> tuple[str, float]:
    """Answer exactly as the rules."""
    return facts.recommendation, facts.confidence


def agents_of(states: dict[Key, str | None]) -> set[str]:
    return {agent_type for agent_type, _, _ in states}


def test_a_run_by_rules_records_what_a_local_policy_is_asked_for_the_same_decision(
    market: Market, by_rules: dict[Key, str | None]
) -> None:
    seats = Seats(echo)
    by_model = recorded(market.analyses(coordinator("local", local_policies=seats.policy_for)))
    assert agents_of(by_rules) == set(LOCAL_AGENTS)
    assert None not in by_rules.values()
    assert by_model == by_rules
    assert {key: [state] for key, state in by_rules.items()} == seats.asked


def test_a_state_holds_nothing_that_came_later(market: Market, by_rules: dict[Key, str | None]) -> None:
    assert recorded(market.analyses(coordinator("rules"), knowing_all=True)) == by_rules


@pytest.mark.parametrize("again", [0.8, 0.05], ids=["surer", "even less sure"])
def test_an_opinion_given_again_is_stored_with_the_state_that_it_was_given_on(market: Market, again: float) -> None:
    def said(facts: AgentOutput, before: int) -> tuple[str, float]:
        if facts.agent_type in ("news", "technical"):
            return facts.recommendation, again if before else 0.1
        return facts.recommendation, 0.6

    seats = Seats(said)
    analyses = market.analyses(coordinator("local", local_policies=seats.policy_for))
    assert max(map(len, seats.asked.values())) == 2
    states = recorded(analyses)
    confidence = {(row.agent_type, row.symbol, str(row.as_of)): row.confidence for row in trajectories(analyses)}
    assert states == {key: seats.decided_on[key, confidence[key]] for key in states}


def test_rules_that_answer_in_the_models_place_leave_the_same_state(
    market: Market, by_rules: dict[Key, str | None]
) -> None:
    seats = Seats(lambda facts, before: ProviderError("no answer", kind="timeout"))
    analyses = market.analyses(coordinator("local", local_policies=seats.policy_for))
    assert recorded(analyses) == by_rules
    assert {row.policy for row in trajectories(analyses)} == {"rules"}


def test_an_abstention_records_no_state(market: Market) -> None:
    seats = Seats(lambda facts, before: "no decision" if facts.agent_type == "news" else echo(facts, before))
    analyses = market.analyses(coordinator("local", local_policies=seats.policy_for))
    rows = trajectories(analyses)
    assert {row.agent_type for row in rows if row.abstained} >= {"news", "fundamental"}
    assert all(("state" in row.agent_inputs) != row.abstained for row in rows)
    assert any(key[0] == "news" for key in seats.asked)


def test_the_prompt_is_stored_with_what_a_model_decided_and_with_nothing_else(market: Market) -> None:
    def said(facts: AgentOutput, before: int) -> tuple[str, float] | ProviderError:
        return ProviderError("no answer") if facts.symbol == "MSFT" else echo(facts, before)

    rows = trajectories(market.analyses(coordinator("local", local_policies=Seats(said).policy_for)))
    assert {row.policy for row in rows} == {"rules", "local:test@1"}
    for row in rows:
        thought = prompt_hash(row.agent_type) if row.policy == "local:test@1" else None
        assert row.agent_inputs.get("prompt") == thought


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_a_single_seat_may_be_local_and_records_as_the_others(
    market: Market, by_rules: dict[Key, str | None], agent_type: str
) -> None:
    seats = Seats(echo)
    alone = {"agent_settings": {agent_type: {"policy": "local"}}}
    states = recorded(market.analyses(coordinator("rules", local_policies=seats.policy_for, settings=alone)))
    assert states == by_rules
    assert agents_of(dict.fromkeys(seats.asked)) == {agent_type}


def test_headlines_are_recorded_as_the_model_is_shown_them(market: Market) -> None:
    quoting = {"local": {"headlines": 2}, "random_state": 7}
    seats = Seats(echo, **quoting)
    states = recorded(market.analyses(coordinator("local", local_policies=seats.policy_for, settings=quoting)))
    assert {key: [state] for key, state in states.items()} == seats.asked
    lines = Counter(str(state).count("\n") for key, state in states.items() if key[0] == "news")
    assert lines[3] + lines[4] == lines.total() > 0
    assert lines[4] > 0


class Remembered:
    """A memory in which every agent has lived through one thing."""

    stop: Any = None
    lived = PastExperience("t1", 0.9, "AAPL", "neutral", "buy", 0.6, True, 0.7, 0.02)

    def serves(self, policy: Policy) -> bool:
        return True

    def recall(self, *about: Any) -> tuple[PastExperience, ...]:
        return (self.lived,)


def test_experiences_are_recorded_as_the_model_is_shown_them(market: Market) -> None:
    seats = Seats(echo)
    states = recorded(market.analyses(coordinator("local", local_policies=seats.policy_for, memory=Remembered())))
    assert {key: [state] for key, state in states.items()} == seats.asked
    assert {state_values(str(state))["past"] for state in states.values()} == {"1"}
    assert recorded(market.analyses(coordinator("rules", memory=Remembered()))) == states
