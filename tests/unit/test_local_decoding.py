"""Constrained generation of local models: within the schema, whatever the weights, the batch and the kind of attention."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llguidance", reason="needs the extra `training`")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local_model_lab import micro_base, questions, reference_answer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from agents.policies.local.decisions import parse_decision
from agents.policies.local.decoding import Answer, generate
from agents.policies.local.engine import Question
from agents.policies.local.model import LocalModel
from utils.errors import ProviderError

OPEN = {
    "type": "object",
    "properties": {"said": {"type": "string"}},
    "required": ["said"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base: Path) -> Iterator[LocalModel]:
    loaded = LocalModel(base, "cpu")
    yield loaded
    loaded.close()


def texts(answers: list[Answer]) -> list[str]:
    assert not [answer for answer in answers if isinstance(answer, ProviderError)]
    return [str(answer) for answer in answers]


def conforms(question: Question, text: str) -> bool:
    """Check by hand what the schemas of decisions say; nothing here knows of grammars."""
    said = json.loads(text)
    properties = question.schema["properties"]
    return (
        list(said) == ["recommendation", "confidence", "evidence"]
        and said["recommendation"] in properties["recommendation"]["enum"]
        and said["confidence"] in properties["confidence"]["enum"]
        and re.fullmatch(properties["evidence"]["pattern"], said["evidence"]) is not None
        and text == json.dumps(said, separators=(",", ":"))
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_random_weights_still_write_decisions_of_their_schema(model: LocalModel, temperature: float) -> None:
    asked = [replace(q, random_state=i) for i, q in enumerate(questions(64, temperature=temperature))]
    answers = texts(generate(model, asked))
    assert all(conforms(question, text) for question, text in zip(asked, answers, strict=True))
    assert all(parse_decision(text) is not None for text in answers)
    assert len(set(answers)) > 4


def test_an_answer_does_not_depend_on_what_is_generated_beside_it(model: LocalModel) -> None:
    asked = questions(64)
    together = texts(generate(model, asked))
    assert together == [texts(generate(model, [question]))[0] for question in asked]
    assert len({len(tokens) for tokens in model.prompt_tokens([q.messages for q in asked])}) > 5


def test_answers_equal_those_written_one_token_at_a_time_without_a_cache(model: LocalModel, base: Path) -> None:
    asked = questions(24, seed=3)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    assert texts(generate(model, asked)) == [reference_answer(plain, model, question) for question in asked]


class Recording(LocalModel):
    """Keeps every pass until the first row leaves the batch."""

    def start(self) -> None:
        self.passes: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def forward(self, inputs: Any, attention_mask: Any, positions: Any, cache: Any, versions: Any) -> Any:
        logits, cache = super().forward(inputs, attention_mask, positions, cache, versions)
        if not self.passes or len(inputs) == len(self.passes[0][0]):
            self.passes.append((inputs, attention_mask, logits))
        return logits, cache


def test_holes_leave_no_trace_in_the_logits(base: Path) -> None:
    model = Recording(base, "cpu")
    model.start()
    generate(model, questions(16, seed=5))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    columns = torch.cat([inputs for inputs, _, _ in model.passes], dim=1)
    compared = 0
    for number in range(1, len(model.passes)):
        _, mask, logits = model.passes[number]
        for row in range(len(mask)):
            sequence = columns[row, : mask.shape[1]][mask[row].bool()]
            with torch.inference_mode():
                expected = plain(input_ids=sequence[None]).logits[0, -1]
            torch.testing.assert_close(logits[row], expected, atol=2e-5, rtol=1e-4)
            compared += 1
    later = model.passes[-1][1][:, model.passes[0][1].shape[1] :]
    assert compared >= 32
    assert (later == 0).any()
    model.close()


def test_forced_tokens_are_those_the_tokenizer_writes_and_cost_no_pass(base: Path) -> None:
    model = Recording(base, "cpu")
    model.start()
    asked = questions(8, seed=9)
    written = texts(generate(model, asked[:1]))[0]
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert len(model.passes) < len(tokenizer(written, add_special_tokens=False)["input_ids"])
    for question in asked:
        walk = model.grammars.walk(question.schema)
        assert walk.forced() == tokenizer('{"recommendation":"', add_special_tokens=False)["input_ids"]
    model.close()


def test_draws_are_reproducible_and_do_not_depend_on_the_batch(model: LocalModel) -> None:
    (question,) = questions(1, temperature=1.5)
    asked = [replace(question, random_state=seed) for seed in range(32)]
    together = texts(generate(model, asked))
    assert together == texts(generate(model, asked))
    assert together == [texts(generate(model, [one]))[0] for one in asked]
    assert len(set(together)) > 8


def test_draws_follow_the_models_probabilities(model: LocalModel) -> None:
    choice = {**OPEN, "properties": {"x": {"enum": ["up", "down"]}}, "required": ["x"]}
    (asked,) = questions(1)
    n = 400
    drawn = texts(generate(model, [replace(asked, schema=choice, temperature=3.0, random_state=s) for s in range(n)]))
    walk = model.grammars.walk(choice)
    tokens = model.prompt_tokens([asked.messages])[0] + walk.forced()
    ids, ones = torch.tensor([tokens]), torch.ones((1, len(tokens)), dtype=torch.long)
    with torch.inference_mode():
        logits, _ = model.forward(ids, ones, torch.arange(len(tokens))[None], None, [None])
    mask = torch.from_numpy(model.grammars.masks([walk]))
    allowed = [t for t in range(logits.shape[1]) if mask[0, t // 32] >> (t % 32) & 1]
    chances = torch.softmax(logits[0, allowed].double() / 3.0, dim=-1)
    spelled = [model.grammars.walk(choice) for _ in allowed]
    up = 0.0
    for walked, token, chance in zip(spelled, allowed, chances.tolist(), strict=True):
        walked.forced()
        walked.choose(token)
        up += chance * model.grammars.text(walked).startswith('{"x":"u')
    share = sum(text == '{"x":"up"}' for text in drawn) / n
    assert abs(share - up) < 4 * (up * (1 - up) / n) ** 0.5  # false alarm in 1 of 16,000 runs, and the seeds are fixed


@pytest.mark.parametrize("columns", ["even", "single"])
def test_narrower_passes_give_the_same_answers(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    asked = questions(24, seed=11)
    ragged = texts(generate(model, asked))
    monkeypatch.setattr(model, "columns", columns)
    assert texts(generate(model, asked)) == ragged


def test_a_model_with_attention_windows_gets_no_holes_and_answers_alike_in_any_batch(
    base: Path, tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(base)
    config.use_sliding_window, config.sliding_window = True, 24
    config.layer_types = ["sliding_attention", "full_attention"]
    torch.manual_seed(4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    windowed = LocalModel(tmp_path, "cpu")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert windowed.columns == "even"
    asked = questions(16, seed=2)
    answers = texts(generate(windowed, asked))
    assert answers == [texts(generate(windowed, [question]))[0] for question in asked]
    assert answers == [reference_answer(plain, windowed, question) for question in asked]
    windowed.close()


def test_an_answer_that_does_not_end_is_truncated_and_its_neighbours_are_not(model: LocalModel) -> None:
    short = questions(2)
    endless = replace(short[0], schema={**OPEN, "properties": {"said": {"type": "string", "minLength": 500}}})
    answers = generate(model, [short[0], endless, short[1]])
    assert isinstance(answers[1], ProviderError)
    assert answers[1].kind == "truncated"
    assert "96 tokens" in str(answers[1])
    assert [answers[0], answers[2]] == generate(model, short)


def test_a_prompt_too_long_is_refused_with_its_figures_and_its_neighbours_are_answered(model: LocalModel) -> None:
    (fits,) = questions(1)
    long = replace(fits, messages=(*fits.messages, {"role": "user", "content": "rsi:60 " * 400}))
    tokens = len(model.prompt_tokens([long.messages])[0])
    answers = generate(model, [long, fits])
    assert isinstance(answers[0], ProviderError)
    assert answers[0].kind == "request"
    assert str(tokens) in str(answers[0])
    assert str(model.context_tokens) in str(answers[0])
    assert answers[1] == generate(model, [fits])[0]


def test_a_schema_that_cannot_be_compiled_is_refused_for_its_question_alone(model: LocalModel) -> None:
    (fits,) = questions(1)
    answers = generate(model, [replace(fits, schema={"type": "nonsense"}), fits])
    assert isinstance(answers[0], ProviderError)
    assert answers[0].kind == "request"
    assert answers[1] == generate(model, [fits])[0]


class Cramped(LocalModel):
    """Has memory for so many rows; the GPU that would run out is not in every machine."""

    rows = 5

    def forward(self, inputs: Any, *others: Any) -> Any:
        if len(inputs) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(inputs, *others)


def test_batches_are_halved_until_they_fit_into_memory(base: Path, model: LocalModel) -> None:
    cramped = Cramped(base, "cpu")
    asked = questions(23)
    done: list[int] = []
    answers = generate(cramped, asked, on_batch=lambda count, total: done.append(count))
    assert answers == generate(model, asked)
    assert done == [5, 10, 15, 20, 23]
    cramped.rows = 0
    with pytest.raises(ProviderError, match="not the memory for one answer"):
        generate(cramped, asked)
    cramped.close()


def test_weights_that_are_no_numbers_are_an_error_of_their_row_and_no_answer(base: Path, tmp_path: Path) -> None:
    broken = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    broken.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    model = LocalModel(tmp_path, "cpu")
    (answer,) = generate(model, questions(1))
    assert isinstance(answer, ProviderError)
    assert "no finite numbers" in str(answer)
    model.close()


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.text('abcdeä"\\ ', min_size=1, max_size=6), min_size=1, max_size=4, unique=True),
    seed=st.integers(0, 2**31),
)
def test_any_flat_schema_is_kept_to(model: LocalModel, names: list[str], seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {name: {"enum": [1, "ja", None, 2.5, True]} for name in names},
        "required": names,
        "additionalProperties": False,
    }
    (asked,) = questions(1)
    asked = replace(asked, schema=schema, temperature=2.0, random_state=seed)
    (text,) = texts(generate(model, [asked], max_new_tokens=250))
    said = json.loads(text)
    assert list(said) == names
    assert all(value in (1, "ja", None, 2.5, True) for value in said.values())
