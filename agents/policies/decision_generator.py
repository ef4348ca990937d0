"""Asks a causal LM with a chat template for decisions, many at once: the one piece of code that runs a local model.

`LocalModelPolicy` serves with it and the training child examines candidates with it, so that both see the same answers.
torch is imported only when a model is loaded; nothing is downloaded and no code that comes with a model is run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from utils.errors import ProviderError

MAX_NEW_TOKENS = 96
"""A decision takes 19 tokens of the small tokenizer and about 40 of a large one; what runs on is cut and unparsable."""

MAX_BATCH = 256
"""Conversations generated together: beyond this the time a decision no longer falls, only memory rises."""

_LOAD_FAULTS = (ImportError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)


class DecisionGenerator:
    """A causal LM with its tokenizer, and optionally an adapter merged into it, that answers batches greedily.

    Parameters
    ----------
    base_dir : Path
        Folder in Hugging Face format with a chat template.
    adapter_dir : Path, optional
        PEFT adapter; None answers as the base model does.
    device : {"cpu", "auto"}
        auto takes a GPU where there is one, in the model's own precision; the CPU computes in float32.

    Raises
    ------
    ProviderError
        If the model cannot be loaded.
    """

    def __init__(
        self, base_dir: Path, adapter_dir: Path | None = None, device: Literal["cpu", "auto"] = "auto"
    ) -> None:
        try:
            self._load(base_dir, adapter_dir, device)
        except _LOAD_FAULTS as error:
            raise ProviderError(f"the local model in {adapter_dir or base_dir} cannot be loaded: {error}") from error
        self._lock = threading.Lock()

    def _load(self, base_dir: Path, adapter_dir: Path | None, device: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        on_gpu = device == "auto" and torch.cuda.is_available()
        if not on_gpu:
            torch.set_num_threads(1)
        tokenizer = AutoTokenizer.from_pretrained(base_dir, local_files_only=True, padding_side="left")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(
            base_dir, local_files_only=True, dtype="auto" if on_gpu else torch.float32, use_safetensors=True
        )
        if adapter_dir is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter_dir), local_files_only=True).merge_and_unload()
        self._device = "cuda" if on_gpu else "cpu"
        self._tokenizer: Any = tokenizer
        self._model: Any = model.to(self._device).eval()

    def answer(
        self, conversations: Sequence[list[dict[str, str]]], *, on_batch: Callable[[int, int], None] | None = None
    ) -> list[str]:
        """Return the answer to each conversation, in order."""
        answers: list[str] = []
        for start in range(0, len(conversations), MAX_BATCH):
            with self._lock:
                if self._model is None:
                    raise ProviderError("the local model was closed")
                try:
                    answers += self._answer_batch(conversations[start : start + MAX_BATCH])
                except (RuntimeError, ValueError, IndexError) as error:
                    raise ProviderError(f"the local model failed while generating: {error}") from error
            if on_batch is not None:
                on_batch(len(answers), len(conversations))
        return answers

    def _answer_batch(self, conversations: Sequence[list[dict[str, str]]]) -> list[str]:
        import torch

        prompts = self._tokenizer.apply_chat_template(
            list(conversations), tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        inputs = self._tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False).to(self._device)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self._tokenizer.pad_token_id,
                eos_token_id=self._tokenizer.eos_token_id,
            )
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        return [str(text) for text in self._tokenizer.batch_decode(new_tokens, skip_special_tokens=True)]

    def close(self) -> None:
        """Free the model; waits for an answer in progress, and may be called twice."""
        with self._lock:
            self._model = None
            self._tokenizer = None
