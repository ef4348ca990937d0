"""Every vendor's `ChatModel` with a budget and with answers kept by content: what is not asked, and what is not paid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_model_lab import GOOD, MESSAGES, SCHEMA, VENDORS, Lab, Vendor, ask, ask_in_vain, every_vendor
from fakes.http_server import Reply
from fakes.vendors import in_turn

from utils.llm.base import ChatMessage

pytestmark = pytest.mark.timeout(30)

every_priced_vendor = pytest.mark.parametrize(
    "vendor", [vendor for vendor in VENDORS if vendor.priced], ids=lambda vendor: vendor.name
)
DEAR = {"input_tokens": 40_000_000, "output_tokens": 1_000_000}
"""Usage that costs several USD at any price of the table."""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with Lab(tmp_path, monkeypatch) as lab:
        yield lab


def other(text: str) -> list[ChatMessage]:
    """Return another question."""
    return [ChatMessage("user", text)]


@every_priced_vendor
def test_a_spent_day_refuses_every_call_without_asking_and_survives_a_restart(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, vendor.dialect.answer(GOOD, **DEAR))
    budget = {"usd_per_day": 1, "usd_per_decision": 1000, "tokens_per_decision": 10**9}
    models = lab.models(vendor, server, budget=budget)
    model = models.model(vendor.provider, vendor.model)
    spent = ask(model, account="one").cost_usd
    assert spent > 1
    assert models.status()["spent_today_usd"] == pytest.approx(spent)
    assert models.status()["exhausted"] is True
    failed = ask_in_vain(model, account="two")
    assert failed.kind == "budget"
    assert "budget.usd_per_day" in str(failed.error)
    models.close()
    again = lab.models(vendor, server, budget=budget)
    assert again.status()["spent_today_usd"] == pytest.approx(spent)
    assert ask_in_vain(again.model(vendor.provider, vendor.model)).kind == "budget"
    assert len(server.requests) == 1


@every_priced_vendor
def test_spending_survives_without_an_orderly_end(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, vendor.dialect.answer(GOOD, **DEAR))
    models = lab.models(
        vendor, server, budget={"usd_per_day": 1000, "usd_per_decision": 1000, "tokens_per_decision": 10**9}
    )
    spent = ask(models.model(vendor.provider, vendor.model)).cost_usd
    recovered = lab.models(vendor, server).status()["spent_today_usd"]
    assert spent - 1e-6 <= recovered <= spent + 10 + 1e-6  # never less, and more by a hundredth of the day at most


@every_priced_vendor
def test_a_budget_of_nothing_asks_nobody(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor)
    assert ask_in_vain(lab.model(vendor, server, budget={"usd_per_day": 0})).kind == "budget"
    assert server.requests == []


@every_priced_vendor
def test_a_decision_that_has_spent_its_usd_is_refused_and_another_is_not(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, vendor.dialect.answer(GOOD, **DEAR))
    budget = {"usd_per_day": 10_000, "usd_per_decision": 1, "tokens_per_decision": 10**9}
    model = lab.model(vendor, server, budget=budget)
    ask(model, account="one")
    failed = ask_in_vain(model, account="one")
    assert failed.kind == "budget"
    assert "budget.usd_per_decision" in str(failed.error)
    assert ask(model, account="two").content == GOOD
    assert len(server.requests) == 2


@every_vendor
def test_a_decision_that_has_used_its_tokens_is_refused_and_another_is_not(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, vendor.dialect.answer(GOOD, input_tokens=9_000, output_tokens=900))
    model = lab.model(vendor, server, budget={"tokens_per_decision": 10_000})
    ask(model, account="one")
    failed = ask_in_vain(model, account="one")
    assert failed.kind == "budget"
    assert "budget.tokens_per_decision" in str(failed.error)
    assert ask(model, account="two").content == GOOD
    assert len(server.requests) == 2


@every_vendor
def test_calls_at_the_same_time_cannot_pass_the_cap_together(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, vendor.dialect.answer(GOOD, input_tokens=100, output_tokens=2000), latency_s=0.2)
    model = lab.model(vendor, server, budget={"tokens_per_decision": 5000}, llm={"max_output_tokens": 2048})
    calls = [model.submit(other(str(number)), SCHEMA, deadline_s=5, account="one") for number in range(6)]
    errors = [call.exception(10) for call in calls]
    assert errors.count(None) == 2
    assert {getattr(error, "kind", "") for error in errors if error} == {"budget"}
    assert len(server.requests) == 2


@every_priced_vendor
def test_answers_that_were_none_are_paid_for_all_the_same(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, vendor.dialect.answer("no object", input_tokens=1000, output_tokens=500))
    models = lab.models(vendor, server)
    ask_in_vain(models.model(vendor.provider, vendor.model))
    once = lab.models(vendor, lab.serve(vendor, vendor.dialect.answer(GOOD, input_tokens=1000, output_tokens=500)),
                      data_dir=lab.folder / "other")  # fmt: skip
    price = ask(once.model(vendor.provider, vendor.model)).cost_usd
    assert models.status()["spent_today_usd"] == pytest.approx(len(server.requests) * price, rel=1e-6)


@every_priced_vendor
def test_a_call_that_reached_nobody_costs_nothing(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, vendor.dialect.fault("bad_request"))
    models = lab.models(vendor, server)
    ask_in_vain(models.model(vendor.provider, vendor.model))
    assert models.status()["spent_today_usd"] == 0


@every_vendor
def test_the_second_identical_question_asks_nobody_and_costs_nothing(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor)
    model = lab.model(vendor, server, llm={"cache": "on"})
    first, second = ask(model), ask(model)
    assert len(server.requests) == 1
    assert (second.content, second.model) == (first.content, first.model)
    assert (first.cached, second.cached) == (False, True)
    assert second.cost_usd == 0
    assert second.latency_s == pytest.approx(first.latency_s)


@every_vendor
def test_another_schema_temperature_text_or_length_is_another_question(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor)
    model = lab.model(vendor, server, llm={"cache": "on"})
    ask(model)
    schema = {**SCHEMA, "properties": {**SCHEMA["properties"], "why": {"type": ["string", "null"]}}}
    ask(model, schema=schema)
    ask(model, temperature=0.5)
    ask(model, messages=other("something else"))
    longer = lab.model(vendor, server, llm={"cache": "on", "max_output_tokens": 999})
    ask(longer)
    assert len(server.requests) == 5


@every_vendor
def test_kept_answers_survive_a_restart_and_a_spent_budget(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor)
    ask(lab.model(vendor, server, llm={"cache": "on"}))
    again = lab.model(vendor, server, llm={"cache": "on"}, budget={"usd_per_day": 0})
    assert ask(again).cached
    assert len(server.requests) == 1


@every_vendor
def test_identical_questions_at_the_same_time_are_asked_once(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, latency_s=0.3)
    model = lab.model(vendor, server, llm={"cache": "on"})
    calls = [model.submit(MESSAGES, SCHEMA, deadline_s=5) for _ in range(5)]
    answers = [call.result(6) for call in calls]
    assert [answer.content for answer in answers] == [GOOD] * 5
    assert sum(not answer.cached for answer in answers) == 1
    assert len(server.requests) == 1


@every_vendor
def test_a_shared_question_outlives_the_impatient_one(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, latency_s=0.8)
    model = lab.model(vendor, server, llm={"cache": "on"})
    impatient = model.submit(MESSAGES, SCHEMA, deadline_s=0.3)
    patient = model.submit(MESSAGES, SCHEMA, deadline_s=5)
    assert getattr(impatient.exception(2), "kind", None) == "timeout"
    assert patient.result(6).content == GOOD


@every_vendor
def test_failures_are_not_kept(lab: Lab, vendor: Vendor) -> None:
    replies: list[Reply] = [vendor.dialect.fault("bad_request"), vendor.dialect.answer(GOOD)]
    server = lab.serve(vendor, in_turn(replies))
    model = lab.model(vendor, server, llm={"cache": "on"})
    assert ask_in_vain(model).kind == "request"
    assert ask(model).content == GOOD
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("cache", "replay", "requests"), [("auto", True, 1), ("auto", False, 2), ("off", True, 2), ("on", False, 1)]
)
@every_vendor
def test_answers_are_kept_in_replays_unless_the_setting_says_otherwise(
    lab: Lab, vendor: Vendor, cache: str, replay: bool, requests: int
) -> None:
    server = lab.serve(vendor)
    model = lab.models(vendor, server, replay=replay, llm={"cache": cache}).model(vendor.provider, vendor.model)
    ask(model)
    ask(model)
    assert len(server.requests) == requests


@every_vendor
def test_the_status_holds_json_values_and_counts_calls(lab: Lab, vendor: Vendor) -> None:
    server = lab.serve(vendor, in_turn([vendor.dialect.answer(GOOD), vendor.dialect.fault("bad_request")]))
    models = lab.models(vendor, server)
    model = models.model(vendor.provider, vendor.model)
    ask(model)
    ask_in_vain(model)
    status = json.loads(json.dumps(models.status(), allow_nan=False))
    counted = status["models"][model.name]
    assert (counted["calls"], counted["failed"]) == (2, 1)
    assert counted["tokens"] >= 160
    assert status["usd_per_day"] == 100
