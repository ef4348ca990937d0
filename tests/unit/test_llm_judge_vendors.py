"""Judges on the vendors' real SDKs, over sockets: wire forms of the question, faults by their kind, a panel of three."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.dialect import Question
from fakes.vendors import FakeAnthropic, FakeGemini, FakeOpenAI, FakeVendor, answering
from judge_doubles import verdict
from output_factory import HEADLINES, OUTPUTS, news_output

from judge.consensus_result import EvaluationItem
from judge.llm_judge import LLMJudge
from judge.multi_judge_consensus import MultiJudgeConsensus
from utils.errors import JudgeError
from utils.llm.factory import ChatModels
from utils.settings import OrchestratorConfig

VENDORS: dict[str, type[FakeVendor]] = {"anthropic": FakeAnthropic, "openai": FakeOpenAI, "gemini": FakeGemini}
MODELS = {"anthropic": "claude-haiku-5-5", "openai": "gpt-5.4-mini", "gemini": "gemini-3.8-flash"}
PANEL = [{"id": provider, "model": model} for provider, model in MODELS.items()] + [{"id": "local", "model": "local"}]
WAIT_S = 10.0


def graded(score: float = 80.0, **changes: Any) -> Any:
    """Return a behaviour that answers with a valid verdict."""

    def answer(question: Question) -> dict[str, Any]:
        keys = re.findall(r'"([a-z_]+)"', json.dumps(_criteria(question)))
        schema = {"properties": {"criteria": {"properties": dict.fromkeys(keys)}}}
        return verdict(question.system, schema, score, **changes)

    return answering(answer)


def _criteria(question: Question) -> list[str]:
    assert question.schema is not None
    found: list[str] = list(question.schema["properties"]["criteria"]["properties"])
    return found


@pytest.fixture
def vendors() -> Iterator[dict[str, FakeVendor]]:
    made = {provider: kind(graded()) for provider, kind in VENDORS.items()}
    yield made
    for vendor in made.values():
        vendor.close()


@pytest.fixture
def panels(vendors: dict[str, FakeVendor], tmp_path: Path) -> Iterator[Any]:
    """Return a maker of panels of three hosted judges and the local one."""
    opened: list[Any] = []

    def make(missing: tuple[str, ...] = (), **options: Any) -> MultiJudgeConsensus:
        fields = {f"{name}_base_url": vendor.url for name, vendor in vendors.items()}
        keys = {f"{name}_api_key": "test-key" for name in vendors if name not in missing}
        config = OrchestratorConfig(data_dir=tmp_path, **fields, **keys)
        models = ChatModels(config, replay=False)
        panel = MultiJudgeConsensus(PANEL, chat_models=models, **{"deadline_s": WAIT_S, **options})
        opened.extend((panel, models))
        return panel

    yield make
    for each in opened:
        each.close()


@pytest.mark.parametrize("provider", VENDORS)
@pytest.mark.parametrize("agent", OUTPUTS)
def test_a_judge_grades_by_each_vendor(provider: str, agent: str, vendors: dict[str, FakeVendor]) -> None:
    vendor = vendors[provider]
    section = {"provider": provider, "model": MODELS[provider], "base_url": vendor.url, "api_key": "test-key"}
    judge = LLMJudge(config={"judge": section})
    try:
        found = judge.evaluate(OUTPUTS[agent](), agent)
    finally:
        judge.close()
    assert found["score"] == pytest.approx(80)
    assert found["metadata"]["input_tokens"] > 0
    assert len(vendor.completions) == 1


@pytest.mark.parametrize("provider", VENDORS)
def test_untrusted_text_reaches_a_vendor_in_the_users_turn_alone(provider: str, vendors: dict[str, FakeVendor]) -> None:
    section = {"provider": provider, "model": MODELS[provider], "base_url": vendors[provider].url, "api_key": "k"}
    judge = LLMJudge(config={"judge": section})
    try:
        judge.evaluate(news_output(), "news")
    finally:
        judge.close()
    question = vendors[provider].asked[0]
    assert not any(headline in question.system for headline in HEADLINES)
    assert all(headline in question.user for headline in HEADLINES)
    boundary = re.search(r"^data-[0-9a-f]{24}$", question.user, re.MULTILINE)
    assert boundary is not None
    inside = question.user.split(boundary.group() + "\n")[1]
    assert all(headline in inside for headline in HEADLINES)


def test_a_panel_hears_all_vendors_at_the_same_time(panels: Any, vendors: dict[str, FakeVendor]) -> None:
    panel = panels()
    panel.evaluate("news", news_output(), "news")  # connections and clients are made by the first call
    for vendor in vendors.values():
        vendor.latency_s = 0.5
    started = time.monotonic()
    result = panel.evaluate("news", news_output(), "news")
    assert time.monotonic() - started < 1.0
    assert [s.judge_id for s in result.individual_scores] == ["anthropic", "gemini", "local", "openai"]
    assert result.cost_usd > 0
    assert result.tokens > 0


def test_each_failing_vendor_is_named_by_its_kind_and_the_rest_goes_on(
    panels: Any, vendors: dict[str, FakeVendor]
) -> None:
    vendors["anthropic"].behaviour = vendors["anthropic"].dialect.fault("bad_key")
    vendors["openai"].behaviour = graded(confidence=3)
    vendors["gemini"].behaviour = graded(verdict_id="verdict-of-somebody-else")
    result = panels(deadline_s=3.0).evaluate("news", news_output(), "news")
    kinds = {e["judge_id"]: e["reason"].partition(":")[0] for e in result.excluded}
    assert kinds == {"anthropic": "auth", "openai": "malformed", "gemini": "injected"}
    assert (result.status, result.final_score) == ("pending", None)


def test_a_vendor_that_is_late_is_left_out_at_the_deadline_and_its_connection_ended(
    panels: Any, vendors: dict[str, FakeVendor]
) -> None:
    vendors["openai"].latency_s = 60.0
    started = time.monotonic()
    result = panels(deadline_s=1.5).evaluate("news", news_output(), "news")
    assert time.monotonic() - started < 3.0
    assert [e["judge_id"] for e in result.excluded] == ["openai"]
    assert result.excluded[0]["reason"].startswith("timeout:")
    assert result.status == "ok"


def test_without_any_key_the_local_judge_grades_alone(panels: Any) -> None:
    result = panels(missing=tuple(VENDORS)).evaluate("news", news_output(), "news")
    assert result.status == "ok"
    assert {e["reason"].partition(":")[0] for e in result.excluded} == {"auth"}
    assert [s.judge_id for s in result.individual_scores] == ["local"]


def test_many_items_are_graded_concurrently_and_in_order(panels: Any, vendors: dict[str, FakeVendor]) -> None:
    panel = panels(disagreement_threshold=100.0)
    panel.evaluate("news", news_output(), "news")
    for vendor in vendors.values():
        vendor.latency_s = 0.3
    items = [EvaluationItem("news", news_output(confidence=0.5 + i / 100), "news") for i in range(16)]
    started = time.monotonic()
    results = panel.evaluate_many(items)
    assert time.monotonic() - started < 8 * 0.3
    assert {len(r.individual_scores) for r in results} == {4}


def test_the_documented_panel_takes_its_keys_from_the_environment(
    vendors: dict[str, FakeVendor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test-key")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", vendors["anthropic"].url)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    configs = [
        {"id": "claude", "model": "claude-3-5-sonnet-20241022", "weight": 1.0},
        {"id": "gpt4", "model": "gpt-4", "weight": 0.8},
    ]
    consensus = MultiJudgeConsensus(configs, consensus_method="weighted_average")
    try:
        result = consensus.evaluate(agent_type="news", agent_output=news_output(), rubric_path="news_rubric")
    finally:
        consensus.close()
    assert (result.status, result.final_score) == ("ok", pytest.approx(80))
    assert result.excluded[0]["judge_id"] == "gpt4"
    assert result.excluded[0]["reason"].startswith("auth: openai: there is no key; set OPENAI_API_KEY")


def test_a_missing_key_of_a_single_judge_begins_with_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(JudgeError, match=r"^auth: "):
        LLMJudge(None, "gpt-4", None)
