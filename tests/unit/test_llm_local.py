"""A model of random weights in a folder, asked like a hosted one: contexts, cut answers, deadlines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from utils.errors import ProviderError
from utils.llm.base import ChatMessage
from utils.llm.factory import OwnedChatModel, chat_model
from utils.llm.local import LocalAdapter

pytest.importorskip("transformers", reason="needs the extra `training`")

SCHEMA = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
CONTEXT = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model that says one token for ever, whatever it is asked: ``{}`` and its end, if its weights are set so."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["[UNK]", "[END]", "{}", "word"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = tmp_path_factory.mktemp("model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[END]").save_pretrained(made)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(words), n_positions=CONTEXT, n_embd=8, n_layer=1, n_head=1, bos_token_id=1, eos_token_id=1
    )
    GPT2LMHeadModel(config).save_pretrained(made)
    return made


@pytest.fixture
def model(folder: Path) -> Iterator[OwnedChatModel]:
    made = chat_model(f"local:{folder}", max_output_tokens=8)
    yield made
    made.close()


def test_a_model_that_never_ends_is_cut_off_and_costs_tokens_but_no_money(model: OwnedChatModel) -> None:
    with pytest.raises(ProviderError, match=r"cut off|not one JSON") as caught:
        model.complete([ChatMessage("user", "hello")], SCHEMA, deadline_s=60)
    assert caught.value.kind in ("truncated", "malformed")
    status = model.status()
    assert status["tokens"] > 16
    assert status["cost_usd"] == 0


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
