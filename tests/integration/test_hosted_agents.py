"""Agents that think with hosted models, over real sockets with every vendor's own SDK and wire format."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fakes.dialect import Question
from fakes.http_server import Reply
from fakes.vendors import Behaviour, FakeAnthropic, FakeGemini, FakeOpenAI, FakeVendor, answering
from hosted_questions import INJECTION, KEY, RULES, opinion, request

from agents.factory import hosted_policy
from agents.junior.news_agent import NewsAgent
from agents.policies.base import Policy
from agents.policies.prompting import system_prompt
from utils.llm.factory import ChatModels
from utils.schema import AgentOutput, StrategistOutput
from utils.settings import OrchestratorConfig

pytestmark = pytest.mark.timeout(60)

AGENTS = ("news", "technical", "fundamental", "strategist")
VENDORS: dict[str, tuple[type[FakeVendor], str]] = {
    "anthropic": (FakeAnthropic, "claude-haiku-5-5"),
    "openai": (FakeOpenAI, "gpt-5.4-mini"),
    "gemini": (FakeGemini, "gemini-3.8-flash"),
}
DEADLINE_S = 5.0

Ask = Callable[..., tuple[Policy, FakeVendor]]


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[Ask]:
    """Return a maker of a policy and the fake vendor behind it; all end with the test."""
    with ExitStack() as stack:

        def make(
            vendor: str, agent_type: Any, behaviour: Behaviour | Reply, *, latency_s: float = 0.0, **options: Any
        ) -> tuple[Policy, FakeVendor]:
            fake, model = VENDORS[vendor]
            pytest.importorskip({"gemini": "google.genai"}.get(vendor, vendor), reason="needs the extra `hosted`")
            server = stack.enter_context(fake(behaviour, latency_s=latency_s))
            config = OrchestratorConfig.model_validate(
                {f"{vendor}_api_key": "sk-test-0123456789", f"{vendor}_base_url": server.url, "data_dir": tmp_path}
            )
            models = ChatModels(config, replay=False)
            stack.callback(models.close)
            rules = RULES[agent_type]()
            settings = {"deadline_s": DEADLINE_S, "boundary_key": KEY, **options}
            return hosted_policy(agent_type, models.model(vendor, model), rules, **settings), server

        yield make


def thinking(agent_type: str, **changes: Any) -> Behaviour:
    """Return the behaviour of a model that answers an agent's questions soundly, but for the changes."""
    return answering(lambda question: opinion(agent_type, question.user, **changes))


def decide(policy: Policy, *symbols: str) -> list[AgentOutput]:
    asked = [request(policy.agent_type, symbol, seed) for seed, symbol in enumerate(symbols or ("AAPL",))]
    return policy.decide_many(asked)


@pytest.mark.parametrize("agent_type", AGENTS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_every_agent_decides_with_every_vendor(hosted: Ask, vendor: str, agent_type: str) -> None:
    policy, server = hosted(vendor, agent_type, thinking(agent_type))
    output = decide(policy)[0]
    assert output.abstain_reason is None
    assert (output.recommendation, output.confidence, output.policy) == ("buy", 0.62, policy.name)
    assert policy.name == f"{vendor}:{VENDORS[vendor][1]}"
    assert output.cost_usd > 0
    assert 0 < output.latency_s < DEADLINE_S
    assert type(output).model_validate(output.model_dump()) == output
    question = server.asked[0]
    assert question.system == system_prompt(agent_type)
    assert question.schema is not None
    assert question.schema["required"] == list(question.schema["properties"])
    sizes = {"user": question.user, "system": question.system, "schema": json.dumps(question.schema)}
    print(f"{vendor} {agent_type}: " + ", ".join(f"{name} {len(text.encode())} bytes" for name, text in sizes.items()))
    assert len(question.user.encode()) + len(question.system.encode()) <= 8192


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_headline_that_gives_orders_reaches_the_server_as_delimited_data_only(hosted: Ask, vendor: str) -> None:
    policy, server = hosted(vendor, "news", thinking("news", recommendation="hold", confidence=0.5))
    assert decide(policy)[0].recommendation == "hold"
    body = server.completions[0].body.decode()
    assert body.count(INJECTION) == 1
    user = server.asked[0].user
    block = re.search(r"=== data ([0-9a-f]{24}) begins ===\n(.*)\n=== data \1 ends ===$", user, re.DOTALL)
    assert block is not None
    assert INJECTION in block.group(2)
    assert server.asked[0].schema is not None


@pytest.mark.parametrize("vendor", VENDORS)
def test_every_documented_refusal_is_an_abstention(hosted: Ask, vendor: str) -> None:
    refusals = VENDORS[vendor][0].dialect.refusals()
    policy, server = hosted(vendor, "technical", Reply())
    for name, reply in refusals.items():
        server.behaviour = reply
        output = decide(policy)[0]
        assert output.abstained, name
        assert (output.policy, (output.abstain_reason or "").partition(":")[0]) == (policy.name, "refusal"), name


@pytest.mark.parametrize("vendor", VENDORS)
def test_prose_and_half_an_answer_are_abstentions(hosted: Ask, vendor: str) -> None:
    dialect = VENDORS[vendor][0].dialect
    policy, server = hosted(vendor, "technical", Reply())
    for reply, kind in ((dialect.answer("I would buy."), "malformed"), (dialect.truncated(), "truncated")):
        server.behaviour = reply
        output = decide(policy)[0]
        assert (output.abstained, (output.abstain_reason or "").partition(":")[0]) == (True, kind)


def test_evidence_that_nobody_showed_makes_an_answer_malformed(hosted: Ask) -> None:
    policy, _ = hosted("anthropic", "technical", thinking("technical", evidence_ids=["ind:invented"]))
    output = decide(policy)[0]
    assert output.abstain_reason == "malformed: /evidence_ids/0: no evidence of that name was shown"
    assert output.cost_usd > 0


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(("fault", "kind"), [("bad_key", "auth"), ("rate", "rate"), ("spent", "quota")])
def test_where_the_vendor_will_not_serve_rules_answer(
    hosted: Ask, vendor: str, fault: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    wait_s = 3600.0 if fault == "rate" else None
    policy, server = hosted(vendor, "technical", VENDORS[vendor][0].dialect.fault(fault, retry_after_s=wait_s))
    started = time.monotonic()
    outputs = decide(policy, "AAPL", "MSFT")
    assert time.monotonic() - started < DEADLINE_S
    assert [output.policy for output in outputs] == ["rules", "rules"]
    assert not any(output.abstained for output in outputs)
    warnings = [record.getMessage() for record in caplog.records if "rules answer" in record.getMessage()]
    assert len(warnings) == 1
    assert f"technical: rules answer 2 of 2 requests in place of {policy.name} (2 {kind})" in warnings[0]
    assert server.completions


def test_a_server_that_never_answers_costs_the_deadline_and_no_more(hosted: Ask) -> None:
    policy, _ = hosted("openai", "strategist", Reply(silent=True), deadline_s=0.5)
    started = time.monotonic()
    output = decide(policy)[0]
    assert time.monotonic() - started < 1.5
    assert isinstance(output, StrategistOutput)
    assert output.policy == "rules"


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_symbols_of_a_batch_are_asked_at_the_same_time(hosted: Ask, vendor: str) -> None:
    policy, server = hosted(vendor, "technical", thinking("technical"), latency_s=0.4)
    decide(policy)  # connections and SDK are warm from here on

    def wall_s(*symbols: str) -> float:
        started = time.monotonic()
        outputs = decide(policy, *symbols)
        assert [output.policy for output in outputs] == [policy.name] * len(symbols)
        return time.monotonic() - started

    one = min(wall_s("AAPL") for _ in range(2))
    four = min(wall_s("AAPL", "MSFT", "IBM", "FB") for _ in range(2))
    assert four < 1.5 * one
    assert len(server.asked) == 11


def test_equal_requests_are_equal_bytes_on_the_wire(hosted: Ask) -> None:
    bodies = []
    for _ in range(2):
        policy, server = hosted("anthropic", "strategist", thinking("strategist"))
        decide(policy)
        bodies.append(server.completions[0].body)
    assert bodies[0] == bodies[1]


def test_a_seat_with_a_hosted_policy_analyses_articles_of_ones_own(hosted: Ask) -> None:
    policy, server = hosted("gemini", "news", thinking("news"))
    agent = NewsAgent(policy, fallback=RULES["news"]())
    article = {"text": "Apple raises its dividend", "published_at": "2014-06-02T18:00:00Z", "source": "wire"}
    output = agent.analyze("AAPL", [article])
    assert (output.recommendation, output.policy) == ("buy", "gemini:gemini-3.8-flash")
    assert [item.value for item in output.evidence] == ["Apple raises its dividend"]
    assert "Apple raises its dividend" in server.asked[0].user


def test_a_model_that_is_asked_is_told_what_it_is_asked_for(hosted: Ask) -> None:
    seen: list[Question] = []

    def behave(question: Question) -> Reply:
        seen.append(question)
        return question.dialect.answer(opinion("strategist", question.user))

    policy, _ = hosted("openai", "strategist", behave)
    decide(policy)
    assert all(f"- {name}: " in seen[0].user for name in ("news", "technical", "fundamental"))
    assert "portfolio: equity 100000 USD, cash 60000 USD" in seen[0].user
