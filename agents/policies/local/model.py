"""A causal language model in this process: loaded from a folder, asked one forward pass at a time.

`decoding.generate` drives it, for the serving thread and for the training child alike. Nothing is downloaded, no code that
comes with a model is run, and weights are read from safetensors alone. Not safe for several threads: its owner is one.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agents.policies.local.adapters import AdapterShelf
from agents.policies.local.grammar import Grammars
from utils.artifacts import folder_digest
from utils.errors import ProviderError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "4bit"]

_WINDOWED = {"full_attention", "sliding_attention", "chunked_attention"}


class LocalModel:
    """Weights, tokenizer and chat template of one base model, and the adapters that lie on it.

    Parameters
    ----------
    base_dir : Path
        Folder in Hugging Face format with a fast tokenizer and a chat template.
    device : {"auto", "cpu", "cuda"}
        auto takes a GPU where there is one. On the CPU one thread computes.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        auto is float32 on the CPU, so that answers do not hang on the batch; on a GPU the half precision that the model
        was saved in, else bfloat16.
    quantization : {"none", "4bit"}
        4bit (NF4) needs a CUDA device and bitsandbytes.

    Attributes
    ----------
    base_sha256 : str
        Digest of the folder, which an adapter's manifest names as its base.
    context_tokens : int
        Prompt and answer together may be this long.
    columns : {"ragged", "even", "single"}
        How many new tokens the rows of a batch may bring to one pass: each its own number, with masked holes; all the same
        number, since attention windows count columns; or one, since a layer has a recurrent state.
    adapters : AdapterShelf
    grammars : Grammars

    Raises
    ------
    ProviderError
        If the folder does not hold a usable model or the machine cannot run it; the message names the remedy.
    """

    def __init__(
        self,
        base_dir: Path,
        device: Device = "auto",
        dtype: Precision = "auto",
        quantization: Quantization = "none",
    ) -> None:
        self.base_dir = base_dir
        try:
            import torch

            self.device = _device(device)
            if quantization == "4bit":
                _require_4bit(self.device)
            if self.device == "cpu":
                torch.set_num_threads(1)
            self._tokenizer = _tokenizer(base_dir)
            self._model: Any = _weights(base_dir, self.device, dtype, quantization)
            self.base_sha256 = folder_digest(base_dir)[1]
        except _load_faults() as error:
            if not isinstance(error, ImportError) and is_out_of_memory(error):
                raise ProviderError(
                    f"the local model in {base_dir} does not fit into the memory of {device}: {error}; take a smaller "
                    "model, a shorter dtype or 4bit quantization"
                ) from error
            raise ProviderError(f"the local model in {base_dir} cannot be loaded: {error}") from error
        config = self._model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        if not limit:
            raise ProviderError(f"the config.json in {base_dir} states no max_position_embeddings")
        self.context_tokens = int(limit)
        self.columns = _columns(config)
        accepted = inspect.signature(self._model.forward).parameters
        if "position_ids" not in accepted:
            raise ProviderError(f"the model type {config.model_type} takes no position_ids, which batches need")
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        vocabulary = (
            self._model.get_output_embeddings().weight.shape[0] if quantization == "none" else config.vocab_size
        )
        self.grammars = Grammars(
            self._tokenizer, vocabulary, self._eos_tokens(), threads=1 if self.device == "cpu" else None
        )
        self.adapters = AdapterShelf(self._model, self.device, self._model.dtype)

    def prompt_tokens(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[list[int]]:
        """Return the token ids of each conversation up to where the answer begins.

        Raises
        ------
        ProviderError
            If the chat template refuses a conversation.
        """
        from jinja2 import TemplateError

        self._require_open()
        try:
            texts = self._tokenizer.apply_chat_template(
                [list(messages) for messages in conversations],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise ProviderError(f"the chat template refuses a conversation: {error}", kind="request") from error
        tokens: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return tokens

    def forward(
        self,
        inputs: torch.Tensor,
        attention_mask: torch.Tensor,
        positions: torch.Tensor,
        cache: Any,
        versions: Sequence[str | None],
    ) -> tuple[torch.Tensor, Any]:
        """Feed new tokens and return the logits behind the last column, and the cache that now holds them.

        Parameters
        ----------
        inputs, positions : tensor of int64, shape (rows, new)
        attention_mask : tensor of int64, shape (rows, cached + new)
            0 where a column holds no token of the row.
        cache : object, optional
            What the pass before returned.
        versions : sequence of str or None
            The adapter of each row; None is the base model.
        """
        self._require_open()
        self.adapters.choose(versions)
        output = self._model(
            input_ids=inputs,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **self._last_only,
        )
        return output.logits[:, -1], output.past_key_values

    def close(self) -> None:
        """Free the weights; may be called twice."""
        if self._model is not None:
            self._model = None
            self.adapters.close()
            free_device_memory()

    def _require_open(self) -> None:
        if self._model is None:
            raise ProviderError("the local model was closed", kind="closed")

    def _eos_tokens(self) -> list[int]:
        """Return every token that may end an answer, the tokenizer's first: a model can name several."""
        stated = getattr(getattr(self._model, "generation_config", None), "eos_token_id", None)
        others = stated if isinstance(stated, list) else [stated]
        found = dict.fromkeys(token for token in (self._tokenizer.eos_token_id, *others) if token is not None)
        if not found:
            raise ProviderError(f"the tokenizer in {self.base_dir} has no eos_token to end an answer with")
        return list(found)


def free_device_memory() -> None:
    """Give cached blocks of a GPU back, as after running out of memory."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: CUDA has a type for it, the CPU's allocator only its message."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)


def _load_faults() -> tuple[type[Exception], ...]:
    """Return what transformers raises on folders that do not hold what they should."""
    faults = (ImportError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, MemoryError)
    try:
        from safetensors import SafetensorError
    except ImportError:
        return faults
    return (*faults, SafetensorError)


def _device(wanted: Device) -> str:
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ProviderError("device cuda was asked for, but there is no CUDA device; set device to auto or cpu")
    return "cuda" if there and wanted != "cpu" else "cpu"


def _require_4bit(device: str) -> None:
    if device != "cuda":
        raise ProviderError("quantization 4bit needs a CUDA device; set quantization to none")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ProviderError("quantization 4bit needs the package bitsandbytes; install it or set quantization to none")


def _tokenizer(base_dir: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_dir, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise ProviderError(f"the tokenizer in {base_dir} is a slow one; save the model with its tokenizer.json")
    if not tokenizer.chat_template:
        raise ProviderError(f"the local model in {base_dir} has no chat template; take an instruction-tuned model")
    return tokenizer


def _weights(base_dir: Path, device: str, dtype: Precision, quantization: Quantization) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # it would write over the daemon's own
    config = AutoConfig.from_pretrained(base_dir, local_files_only=True, trust_remote_code=False)
    if dtype != "auto":
        precision = getattr(torch, dtype)
    elif device == "cpu":
        precision = torch.float32
    else:
        own = getattr(config, "dtype", None)
        precision = own if own in (torch.float16, torch.bfloat16) else torch.bfloat16
    options: dict[str, Any] = {}
    if quantization == "4bit":
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=precision
        )
        options["device_map"] = {"": 0}
    model = AutoModelForCausalLM.from_pretrained(
        base_dir, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=precision, **options
    )
    model.requires_grad_(False)
    return model.eval() if options else model.to(device).eval()


def _columns(config: Any) -> Literal["ragged", "even", "single"]:
    layers = set(getattr(config, "layer_types", None) or ())
    if not layers <= _WINDOWED:
        return "single"
    if layers:
        return "ragged" if layers == {"full_attention"} else "even"
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return "even" if windowed else "ragged"
