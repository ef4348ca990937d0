"""A model of made-up weights in a folder, asked like a hosted one: contexts, cut answers, deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils.errors import ProviderError
from utils.llm.adapter import VendorError
from utils.llm.base import ChatMessage
from utils.llm.factory import OwnedChatModel, chat_model
from utils.llm.local import LocalAdapter

pytest.importorskip("transformers", reason="needs the extra `training`")

SCHEMA = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
CONTEXT = 256


NEXT = {"[UNK]": "{}", "{}": "[END]", "word": "word", "[END]": "[END]"}
"""What the model says after a token: its prompt ends with one it does not know."""


def write_model(folder: Path, follows: dict[str, str]) -> Path:
    """Write a model whose next token depends on the last one alone, as `follows` says."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(follows)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[END]").save_pretrained(folder)
    end = words["[END]"]
    config = GPT2Config(
        vocab_size=len(words), n_positions=CONTEXT, n_embd=8, n_layer=1, n_head=1, bos_token_id=end, eos_token_id=end,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in (*model.transformer.h.parameters(), model.transformer.wpe.weight, model.lm_head.weight):
            parameter.zero_()  # nothing but the last token's own vector reaches the end
        model.transformer.wte.weight.copy_(torch.eye(len(words), 8))
        for word, following in follows.items():
            model.lm_head.weight[words[following], words[word]] = 10.0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), NEXT)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("endless"), {**NEXT, "{}": "word"})


@pytest.fixture
def model(folder: Path) -> Iterator[OwnedChatModel]:
    made = chat_model(f"local:{folder}", max_output_tokens=8)
    yield made
    made.close()


def test_an_answer_of_a_local_model_costs_tokens_but_no_money(model: OwnedChatModel, folder: Path) -> None:
    answer = model.complete([ChatMessage("user", "hello")], SCHEMA, deadline_s=60)
    assert (dict(answer.content), answer.model, answer.output_tokens, answer.cost_usd) == ({}, str(folder), 2, 0)
    assert answer.input_tokens > 10


def test_a_model_that_does_not_come_to_an_end_is_truncated(endless: Path) -> None:
    made = chat_model(f"local:{endless}", max_output_tokens=8)
    with pytest.raises(ProviderError, match="cut off after 8 tokens") as caught:
        made.complete([ChatMessage("user", "hello")], SCHEMA, deadline_s=60)
    assert caught.value.kind == "truncated"
    made.close()


def test_generation_stops_with_the_next_token_once_the_deadline_is_over(endless: Path) -> None:
    adapter = LocalAdapter(str(endless))

    async def ask() -> None:
        try:
            await adapter.ask(
                [ChatMessage("user", "hello")], SCHEMA, max_output_tokens=100, temperature=None, timeout_s=0.0
            )
        finally:
            await adapter.aclose()

    with pytest.raises(VendorError) as caught:
        asyncio.run(ask())
    assert caught.value.kind == "timeout"
    assert caught.value.answer is not None
    assert caught.value.answer.output_tokens == 1


def test_a_prompt_beyond_the_context_is_refused_and_never_cut(model: OwnedChatModel) -> None:
    with pytest.raises(ProviderError, match="the prompt has") as caught:
        model.complete([ChatMessage("user", "word " * CONTEXT)], SCHEMA, deadline_s=60)
    assert caught.value.kind == "request"


def test_a_folder_without_a_model_is_told_by_the_probe_and_by_a_call(tmp_path: Path) -> None:
    made = OwnedChatModel(LocalAdapter(str(tmp_path)), 8)
    with pytest.raises(ProviderError, match="cannot be loaded"):
        made.complete([ChatMessage("user", "hello")], SCHEMA, deadline_s=60)
    assert made.probe().result(10).startswith("request: ")
    made.close()
