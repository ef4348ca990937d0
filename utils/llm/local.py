"""A causal language model in a folder on this machine, asked like a hosted one: cost 0, one answer at a time.

Built by `utils.llm.factory`. torch and the model are loaded by the first call, on the adapter's own thread; nothing is
downloaded and no code that comes with a model is run.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.llm.adapter import RawAnswer, VendorError, with_schema
from utils.llm.base import ChatMessage
from utils.llm.worker_pool import WorkerPool

_LOAD_FAULTS = (ImportError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)
_UNLIMITED_CONTEXT = 10**9
"""Where neither model nor tokenizer names a limit."""


class LocalAdapter:
    """A model in Hugging Face format.

    Parameters
    ----------
    folder : str
        Holds weights as safetensors, configuration and tokenizer.
    """

    provider = "local"

    def __init__(self, folder: str) -> None:
        self.model = folder
        self._folder = Path(folder)
        self._pool = WorkerPool(1, "local-llm")
        self._loaded: tuple[Any, Any] | None = None

    async def ask(
        self,
        messages: Sequence[ChatMessage],
        schema: Mapping[str, Any],
        *,
        max_output_tokens: int,
        temperature: float | None,
        timeout_s: float,
        seed: int | None = None,
    ) -> RawAnswer:
        """Ask once, the schema in the prompt; see `Adapter`."""
        stop = threading.Event()
        deadline = time.monotonic() + timeout_s
        turns = [{"role": turn.role, "content": turn.content} for turn in with_schema(messages, schema)]
        job = self._pool.submit(lambda: self._answer(turns, max_output_tokens, temperature or 0.0, deadline, stop))
        try:
            return await asyncio.wrap_future(job)
        finally:
            stop.set()  # of a cancelled call the next token is the last

    async def probe(self) -> None:
        """Look whether the folder holds a model, without loading it; see `Adapter`."""
        if not (self._folder / "config.json").is_file():
            text = f"local {self.model}: there is no config.json; give a folder with a Hugging Face model"
            raise VendorError(text, kind="request", unknown_model=True)

    async def aclose(self) -> None:
        """Free the model and let the thread end."""
        self._pool.close()
        self._loaded = None

    def _answer(
        self,
        turns: list[dict[str, str]],
        max_output_tokens: int,
        temperature: float,
        deadline: float,
        stop: threading.Event,
    ) -> RawAnswer:
        import torch

        tokenizer, model = self._loaded or self._load()
        try:
            if tokenizer.chat_template:
                text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
                inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
            else:
                text = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns) + "\n\nassistant:"
                inputs = tokenizer(text, return_tensors="pt")
            prompt = int(inputs["input_ids"].shape[1])
            room = self._context(tokenizer, model) - prompt
            if room < 1:
                text = (
                    f"local {self.model}: the prompt has {prompt} tokens and the context only {prompt + room}; "
                    "shorten it or use a model with a longer one"
                )
                raise VendorError(text, kind="request")
            limit = min(max_output_tokens, room)
            sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            if temperature > 0:
                sampling = {"do_sample": True, "temperature": temperature}
            with torch.inference_mode():
                output = model.generate(
                    input_ids=inputs["input_ids"].to(model.device),
                    attention_mask=inputs["attention_mask"].to(model.device),
                    max_new_tokens=limit,
                    pad_token_id=tokenizer.pad_token_id
                    if tokenizer.pad_token_id is not None
                    else tokenizer.eos_token_id,
                    stopping_criteria=[_until(deadline, stop)],
                    **sampling,
                )[0, prompt:]
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
            raise VendorError(f"local {self.model}: generation failed ({error})", kind="fault") from error
        ended = bool(len(output)) and int(output[-1]) in _end_tokens(tokenizer, model)
        answer = RawAnswer(tokenizer.decode(output, skip_special_tokens=True), self.model, prompt, len(output))
        if not ended and (stop.is_set() or time.monotonic() >= deadline):
            raise VendorError(
                f"local {self.model}: no answer in time; allow more seconds", kind="timeout", answer=answer
            )
        if not ended and len(output) >= limit:
            text = f"local {self.model}: the answer was cut off after {limit} tokens; raise llm.max_output_tokens"
            raise VendorError(text, kind="truncated", answer=answer)
        return answer

    def _load(self) -> tuple[Any, Any]:
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer

            on_gpu = torch.cuda.is_available()
            tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                self._folder, local_files_only=True, use_safetensors=True, dtype="auto" if on_gpu else torch.float32
            )
            self._loaded = (tokenizer, model.to("cuda" if on_gpu else "cpu").eval())
        except _LOAD_FAULTS as error:
            text = f"local {self.model}: cannot be loaded ({error}); give a folder with a Hugging Face model"
            raise VendorError(text, kind="fault") from error
        return self._loaded

    def _context(self, tokenizer: Any, model: Any) -> int:
        limits = [getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length]
        return min((int(limit) for limit in limits if limit), default=_UNLIMITED_CONTEXT)


def _until(deadline: float, stop: threading.Event) -> Any:
    """Return a stopping criterion: no further token after the deadline, or once `stop` is set."""

    def is_over(input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        over = stop.is_set() or time.monotonic() >= deadline
        return torch.full((input_ids.shape[0],), over, dtype=torch.bool, device=input_ids.device)

    return is_over


def _end_tokens(tokenizer: Any, model: Any) -> set[int]:
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = set(named) if isinstance(named, list) else {named}
    return {int(token) for token in (*ends, tokenizer.eos_token_id) if token is not None}
