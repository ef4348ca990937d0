"""An agent that thinks with a local model: facts by rules, opinion by the model, levels by code, every fault visible."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hosted_questions import RULES, request
from market_factory import make_request, make_snapshot, window

from agents.base_agent import Agent
from agents.junior.fundamental_agent import FundamentalAgent
from agents.junior.news_agent import NewsAgent
from agents.junior.technical_agent import TechnicalAgent
from agents.policies.base import PastExperience, PolicyRequest, SamplingPolicy
from agents.policies.local.decisions import (
    cited_evidence,
    decision_schema,
    encode_decision,
    prompt_hash,
    prompt_messages,
)
from agents.policies.local.engine import Question
from agents.policies.local.policy import LocalModelPolicy
from agents.policies.local.states import LOCAL_AGENTS, StateWriter, state_values
from agents.policies.rules.levels import LevelSettings, price_levels
from agents.policies.rules.strategist import RulesStrategist
from agents.policies.rules.technical import RulesTechnical
from agents.senior.strategist_agent import StrategistAgent
from data_pipeline.rounding import price_figure
from evaluation.fault_localization import FaultLocalizationEngine
from evaluation.ground_truth import GroundTruth
from utils.errors import ConfigError, ProviderError
from utils.logs import logger
from utils.schema import (
    RECOMMENDATIONS,
    AgentOutput,
    FundamentalOutput,
    NewsOutput,
    PortfolioState,
    StrategistOutput,
    TechnicalOutput,
    direction,
)

SEATS: dict[str, type[Agent]] = {
    "news": NewsAgent,
    "technical": TechnicalAgent,
    "fundamental": FundamentalAgent,
    "strategist": StrategistAgent,
}
Said = Callable[[Question], "str | ProviderError"]
FLAT = PortfolioState(100_000.0, 60_000.0, {"MSFT": 0.4})
HOLDING = PortfolioState(100_000.0, 60_000.0, {"MSFT": 0.3, "AAPL": 0.1})
NO_CASH = PortfolioState(100_000.0, 0.0, {"MSFT": 1.0})


class Answers:
    """An `AnswerSource` that answers by a function of the question and remembers what it was asked."""

    version = "v7"

    def __init__(self, said: Said, *, waits: bool = False) -> None:
        self._said = said
        self.waits = waits
        self.batches: list[list[Question]] = []
        self.deadlines: list[float | None] = []
        self.closed = 0

    def answer(self, questions: Sequence[Question], *, deadline_s: float | None = None) -> list[str | ProviderError]:
        self.batches.append(list(questions))
        self.deadlines.append(deadline_s)
        return [self._said(question) for question in questions]

    def close(self) -> None:
        self.closed += 1

    @property
    def asked(self) -> list[Question]:
        return [question for batch in self.batches for question in batch]

    @property
    def states(self) -> list[str]:
        return [question.messages[-1]["content"] for question in self.asked]


class Away(Answers):
    """Cannot be asked at all."""

    def answer(self, questions: Sequence[Question], *, deadline_s: float | None = None) -> list[str | ProviderError]:
        raise ProviderError("out of memory")


class Counting:
    """Telemetry that keeps what it counts."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        self.counts[name, *labels.values()] += int(amount)

    def gauge(self, name: str, value: float | None, **labels: str) -> None: ...

    def observe(self, name: str, value: float, **labels: str) -> None: ...


def saying(agent_type: str, recommendation: str, confidence: float) -> Said:
    """Answer with this decision, truthfully cited."""
    return lambda question: encode_decision(
        recommendation, confidence, cited_evidence(agent_type, question.messages[-1]["content"])
    )


def thinking(agent_type: Any, said: Said, **options: Any) -> tuple[LocalModelPolicy, Answers]:
    source = options.pop("source", None) or Answers(said)
    return LocalModelPolicy(agent_type, source, RULES[agent_type](), StateWriter(), **options), source


def decided(agent_type: str, said: Said, asked: PolicyRequest | None = None) -> AgentOutput:
    policy, _ = thinking(agent_type, said)
    return policy.decide_many([asked or request(agent_type)])[0]


def facts_of(agent_type: str, asked: PolicyRequest) -> AgentOutput:
    output: AgentOutput = RULES[agent_type]().decide_many([asked])[0]
    return output


def without_data(agent_type: str) -> PolicyRequest:
    """A request from which the rules of every agent abstain."""
    bars = window(np.linspace(100, 101, 10))
    return make_request(make_snapshot(bars, stale=True))


# who says what


@pytest.mark.parametrize("agent_type", ["news", "technical", "fundamental"])
@pytest.mark.parametrize("recommendation", RECOMMENDATIONS)
def test_facts_stay_the_rules_and_the_opinion_is_the_models(agent_type: str, recommendation: str) -> None:
    asked = request(agent_type)
    facts, output = facts_of(agent_type, asked), decided(agent_type, saying(agent_type, recommendation, 0.6), asked)
    opinion = {"recommendation", "confidence", "reasoning", "policy", "signal"}
    assert output.model_dump(exclude=opinion) == facts.model_dump(exclude=opinion)
    assert (output.recommendation, output.confidence, output.policy) == (recommendation, 0.6, "local:v7")
    assert output.p_correct is None
    assert type(output).model_validate(output.model_dump()) == output


@pytest.mark.parametrize("recommendation", RECOMMENDATIONS)
def test_a_strategists_evidence_stays_the_rules_and_its_verdict_is_the_models(recommendation: str) -> None:
    asked = replace(request("strategist"), portfolio=HOLDING)
    facts, output = (
        facts_of("strategist", asked),
        decided("strategist", saying("strategist", recommendation, 0.8), asked),
    )
    assert (output.symbol, output.as_of, output.evidence) == (facts.symbol, facts.as_of, facts.evidence)
    assert {name: vote for name, vote in output.signals.items() if name != "consensus"} == {
        name: vote for name, vote in facts.signals.items() if name != "consensus"
    }
    assert (output.recommendation, output.confidence, output.policy) == (recommendation, 0.8, "local:v7")
    assert StrategistOutput.model_validate(output.model_dump()) == output


@pytest.mark.parametrize("recommendation", RECOMMENDATIONS)
def test_a_technical_signal_goes_with_the_models_side(recommendation: str) -> None:
    output = decided("technical", saying("technical", recommendation, 0.6))
    assert isinstance(output, TechnicalOutput)
    assert direction(output.signal) == direction(recommendation)


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_the_model_is_asked_with_prompt_state_and_schema_within_the_deadline(agent_type: str) -> None:
    asked = request(agent_type)
    policy, source = thinking(agent_type, saying(agent_type, "hold", 0.5), deadline_s=3.5)
    policy.decide_many([asked])
    state = StateWriter().write(facts_of(agent_type, asked), asked)
    expected = Question(tuple(prompt_messages(agent_type, state)), decision_schema(agent_type))
    assert source.asked == [expected]
    assert (expected.temperature, expected.random_state) == (0.0, 0)
    assert source.deadlines == [3.5]


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_a_batch_is_asked_at_once_and_answered_in_order(agent_type: str) -> None:
    requests = [request(agent_type, symbol, seed) for seed, symbol in enumerate(("AAPL", "MSFT", "IBM"))]
    policy, source = thinking(agent_type, saying(agent_type, "hold", 0.5))
    outputs = policy.decide_many(requests)
    assert [output.symbol for output in outputs] == ["AAPL", "MSFT", "IBM"]
    assert [len(batch) for batch in source.batches] == [3]
    assert outputs == [policy.decide_many([asked])[0] for asked in requests]


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_where_the_rules_abstain_the_model_is_never_asked_and_the_rules_say_so(agent_type: str) -> None:
    empty = without_data(agent_type)
    policy, source = thinking(agent_type, saying(agent_type, "buy", 0.9))
    alone = policy.decide_many([empty])
    assert alone == [facts_of(agent_type, empty)]
    assert alone[0].abstained and alone[0].abstain_reason
    assert source.batches == []
    among = policy.decide_many([request(agent_type), empty, request(agent_type, seed=1)])
    assert [output.abstained for output in among] == [False, True, False]
    assert [output.policy for output in among] == ["local:v7", "rules", "local:v7"]
    assert [len(batch) for batch in source.batches] == [2]


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_the_reasoning_says_who_decided_what_and_on_which_facts(agent_type: str) -> None:
    output = decided(agent_type, saying(agent_type, "hold", 0.6))
    assert output.reasoning.startswith("The local model v7 recommends hold with confidence 0.6. It ")
    assert "does not match" not in output.reasoning
    assert sum(character.isalpha() for character in output.reasoning) >= 50


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_a_confidence_finer_than_a_tenth_is_said_as_it_stands(agent_type: str) -> None:
    answer = json.dumps({"recommendation": "hold", "confidence": 0.6543, "evidence": ""})
    output = decided(agent_type, lambda question: answer)
    assert output.confidence == 0.6543
    assert "with confidence 0.6543." in output.reasoning


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
@pytest.mark.parametrize("evidence", ["", "rsi:1", "regime:crash"])
def test_a_citation_that_is_not_the_states_is_said(agent_type: str, evidence: str) -> None:
    output = decided(agent_type, lambda question: encode_decision("hold", 0.6, evidence))
    assert not output.abstained
    assert "Its cited evidence does not match the state." in output.reasoning


# faults


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_a_question_without_an_answer_is_answered_by_rules_visibly_and_counted(
    agent_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [request(agent_type, symbol) for symbol in ("AAPL", "MSFT", "IBM")]
    refused = StateWriter().write(facts_of(agent_type, requests[1]), requests[1])
    positions = iter(range(3))

    def said(question: Question) -> str | ProviderError:
        if next(positions) == 1:
            assert question.messages[-1]["content"] == refused
            return ProviderError("the prompt is too long", kind="request")
        return saying(agent_type, "hold", 0.5)(question)

    telemetry = Counting()
    policy, _ = thinking(agent_type, said, telemetry=telemetry)
    with caplog.at_level(logging.WARNING, logger=logger.name):
        outputs = policy.decide_many(requests)
    assert [output.policy for output in outputs] == ["local:v7", "rules", "local:v7"]
    assert outputs[1] == facts_of(agent_type, requests[1])
    assert telemetry.counts == {("agent_errors_total", agent_type, "request"): 1}
    assert "rules answer 1 of 3 requests in place of local:v7: the prompt is too long" in caplog.text


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_a_model_that_cannot_be_asked_makes_the_agent_fall_back_to_rules(agent_type: str) -> None:
    rules = RULES[agent_type]()
    policy, _ = thinking(agent_type, lambda question: "", source=Away(lambda question: ""))
    asked = request(agent_type)
    with pytest.raises(ProviderError, match="out of memory"):
        policy.decide_many([asked])
    assert SEATS[agent_type](policy, fallback=rules).decide_many([asked]) == rules.decide_many([asked])


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
@pytest.mark.parametrize("answer", ["", "buy", '{"recommendation":"buy"}', "[" * 50_000], ids=lambda text: text[:24])
def test_an_answer_that_is_no_decision_is_an_abstention_with_its_reason(agent_type: str, answer: str) -> None:
    telemetry = Counting()
    policy, _ = thinking(agent_type, lambda question: answer, telemetry=telemetry)
    asked = request(agent_type)
    output = policy.decide_many([asked])[0]
    assert (output.abstained, output.recommendation, output.confidence) == (True, "hold", 0.0)
    assert output.abstain_reason == "the local model's answer is not a valid decision"
    assert (output.policy, output.symbol, output.as_of) == ("local:v7", "AAPL", asked.snapshot.as_of)
    assert telemetry.counts == {("agent_errors_total", agent_type, "malformed"): 1}
    assert type(output).model_validate(output.model_dump()) == output


# the strategist carries out by code

PORTFOLIOS = {"unknown": None, "flat": FLAT, "holding": HOLDING, "no cash": NO_CASH}


def strategy(recommendation: str, confidence: float, asked: PolicyRequest) -> StrategistOutput:
    output = decided("strategist", saying("strategist", recommendation, confidence), asked)
    assert isinstance(output, StrategistOutput)
    return output


def debate(portfolio: PortfolioState | None, seed: int = 0) -> PolicyRequest:
    return replace(request("strategist", seed=seed), portfolio=portfolio)


def atr_of(asked: PolicyRequest) -> float:
    technical = asked.agent_outputs["technical"]
    assert isinstance(technical, TechnicalOutput)
    return technical.indicators["atr_14"]


@pytest.mark.parametrize("portfolio", PORTFOLIOS.values(), ids=PORTFOLIOS)
@pytest.mark.parametrize("confidence", [0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("recommendation", RECOMMENDATIONS)
def test_whatever_a_model_decides_the_levels_are_beyond_reproach(
    recommendation: str, confidence: float, portfolio: PortfolioState | None
) -> None:
    for seed in range(3):
        asked = debate(portfolio, seed)
        output = strategy(recommendation, confidence, asked)
        truth = GroundTruth(asked.snapshot, asked.agent_outputs, portfolio=portfolio, market_open=False)
        found = FaultLocalizationEngine().detect_faults("strategist", output, truth).errors
        assert [(str(error.category), error.location, error.description) for error in found] == []
        assert StrategistOutput.model_validate(output.model_dump()) == output


@pytest.mark.parametrize("recommendation", ["buy", "strong_buy", "sell", "strong_sell"])
def test_stop_and_target_are_those_that_the_rules_set_for_the_side(recommendation: str) -> None:
    asked = debate(HOLDING)
    assert asked.snapshot.price is not None
    output = strategy(recommendation, 0.7, asked)
    price = price_figure(asked.snapshot.price)
    levels = price_levels(
        direction(recommendation), price, atr_of(asked), asked.snapshot.inputs.daily_volatility, LevelSettings()
    )
    assert levels is not None
    assert (output.entry_target, output.stop_loss, output.take_profit) == (price, levels.stop, levels.take)
    assert output.risk_reward_ratio == levels.ratio
    assert output.expected_return * direction(recommendation) > 0


def test_the_size_of_a_purchase_grows_with_confidence_and_ends_at_what_there_is() -> None:
    sizes = [strategy("buy", confidence, debate(FLAT)).position_size for confidence in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
    assert sizes == sorted(sizes)
    assert 0 < sizes[0] < sizes[-1] <= 0.10
    scarce = PortfolioState(100_000.0, 1_234.0, {"MSFT": 0.98})
    assert strategy("buy", 1.0, debate(scarce)).position_size == 0.0123


def test_a_sale_is_one_of_the_whole_holding() -> None:
    output = strategy("sell", 0.7, debate(HOLDING))
    assert (output.recommendation, output.position_size) == ("sell", 0.0)


LIVED = (PastExperience("t1", 0.9, "AAPL", "neutral", "buy", 0.6, True, 0.7, 0.02),)


@pytest.mark.parametrize("experiences", [(), LIVED], ids=["new", "experienced"])
@pytest.mark.parametrize(
    ("recommendation", "confidence", "portfolio", "reason"),
    [
        ("buy", 0.4, FLAT, "confidence is too low for a side"),
        ("strong_sell", 0.4, HOLDING, "confidence is too low for a side"),
        ("sell", 0.7, FLAT, "nothing is held that could be sold, and short sales are off"),
        ("strong_buy", 0.9, NO_CASH, "there is no cash for a purchase"),
    ],
)
def test_a_side_that_cannot_be_taken_is_a_hold_that_says_why(
    recommendation: str,
    confidence: float,
    portfolio: PortfolioState,
    reason: str,
    experiences: tuple[PastExperience, ...],
) -> None:
    asked = replace(debate(portfolio), experiences=experiences)
    output = strategy(recommendation, confidence, asked)
    assert (output.recommendation, output.confidence, output.position_size) == ("hold", confidence, 0.0)
    assert (output.entry_target, output.stop_loss, output.take_profit) == (None, None, None)
    assert reason in output.key_factors
    said = recommendation.replace("_", " ")
    assert output.reasoning.startswith(
        f"The local model v7 recommends {said} with confidence {confidence}. It became hold: {reason}."
    )


@pytest.mark.parametrize("recommendation", RECOMMENDATIONS)
def test_a_verdict_that_stands_became_nothing_else(recommendation: str) -> None:
    output = strategy(recommendation, 0.8, replace(debate(HOLDING), experiences=LIVED))
    assert output.recommendation == recommendation
    assert "became" not in output.reasoning
    assert "1 of 1 earlier decisions in markets like this came true" in output.key_factors


def test_a_market_that_hardly_moves_gets_no_levels_and_says_so() -> None:
    asked = debate(HOLDING)
    still = replace(asked.snapshot, inputs=replace(asked.snapshot.inputs, daily_volatility=1e-6))
    output = strategy("buy", 0.9, replace(asked, snapshot=still))
    assert output.recommendation == "hold"
    assert "It became hold: the price moves too little for a stop and a target." in output.reasoning


def test_a_conflict_of_analysts_is_resolved_by_name() -> None:
    asked = debate(HOLDING)
    opposed = {
        name: asked.agent_outputs[name].model_copy(update={"recommendation": call, "confidence": 0.7})
        for name, call in (("news", "sell"), ("technical", "buy"))
    }
    output = strategy("buy", 0.7, replace(asked, agent_outputs=opposed))
    assert "conflict of technical (buy) with news (sell) resolved by the model: buy" in output.key_factors


# sampling, closing, seats


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_a_sample_asks_with_its_temperature_and_state(agent_type: str) -> None:
    policy, source = thinking(agent_type, saying(agent_type, "hold", 0.5))
    asked = request(agent_type)
    assert isinstance(policy, SamplingPolicy)
    usual = policy.decide_many([asked])[0]
    assert policy.sample(asked, 0.9, 17) == usual
    assert policy.sample(asked, 0.0, 17) == usual
    assert [(question.temperature, question.random_state) for question in source.asked] == [(0, 0), (0.9, 17), (0, 17)]
    assert len(set(source.states)) == 1


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    policy, source = thinking("technical", saying("technical", "hold", 0.5))
    with pytest.raises(ValueError, match="temperature"):
        policy.sample(request("technical"), temperature, 0)
    assert source.batches == []


def test_an_agent_asks_again_with_a_temperature() -> None:
    policy, source = thinking("fundamental", saying("fundamental", "hold", 0.5))
    agent, asked = FundamentalAgent(policy), request("fundamental")
    varied = agent.variation(asked, asked.snapshot)
    assert varied is not None
    assert agent.decide_variation(varied).policy == "local:v7"
    assert source.asked[0].temperature == varied.temperature > 0


def test_closing_the_policy_closes_its_version() -> None:
    policy, source = thinking("technical", saying("technical", "hold", 0.5))
    policy.close()
    assert source.closed == 1


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_a_policy_is_named_after_the_version_and_knows_its_prompt(agent_type: str) -> None:
    policy, _ = thinking(agent_type, saying(agent_type, "hold", 0.5))
    assert (policy.agent_type, policy.name, policy.prompt_hash) == (agent_type, "local:v7", prompt_hash(agent_type))
    assert (policy.waits, policy.reads_experiences) == (False, False)


def test_a_policy_waits_if_its_version_is_served_elsewhere() -> None:
    policy, _ = thinking("news", saying("news", "hold", 0.5), source=Answers(saying("news", "hold", 0.5), waits=True))
    assert NewsAgent(policy).waits


@pytest.mark.parametrize("agent_type", LOCAL_AGENTS)
def test_a_version_that_reads_experiences_is_shown_them(agent_type: str) -> None:
    policy, source = thinking(agent_type, saying(agent_type, "hold", 0.5), reads_experiences=True)
    assert policy.reads_experiences
    policy.decide_many([replace(request(agent_type), experiences=LIVED)])
    stated = state_values(source.states[0])
    assert (stated["past"], stated["pbuy"]) == ("1", "0.5")


def test_no_local_model_validates() -> None:
    with pytest.raises(ConfigError, match="validator agent, only for technical, news, fundamental, strategist"):
        LocalModelPolicy("validator", Answers(lambda question: ""), RulesTechnical(), StateWriter())


def test_rules_of_another_agent_are_refused() -> None:
    with pytest.raises(ConfigError, match="rules of the technical agent cannot compute the facts of news"):
        LocalModelPolicy("news", Answers(lambda question: ""), RulesTechnical(), StateWriter())


def test_a_strategist_needs_rules_that_can_carry_its_decision_out() -> None:
    class Other(RulesTechnical):
        agent_type = "strategist"

    with pytest.raises(ConfigError, match="give a RulesStrategist"):
        LocalModelPolicy("strategist", Answers(lambda question: ""), Other(), StateWriter())
    LocalModelPolicy("strategist", Answers(lambda question: ""), RulesStrategist(), StateWriter())


def test_outputs_are_of_the_agents_own_kind() -> None:
    kinds = [type(decided(agent_type, saying(agent_type, "hold", 0.5))) for agent_type in LOCAL_AGENTS]
    assert kinds == [TechnicalOutput, NewsOutput, FundamentalOutput, StrategistOutput]
