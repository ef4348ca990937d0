"""The small causal LM that the project pre-trains from code, so that the whole training path runs without a model hub.

`training.base_models` asks for it where a job names ``builtin:tiny``: built once per recipe, then taken from the cache. Never
downloads anything and never sees market data.
"""

from __future__ import annotations

import fcntl
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.policies.local.decisions import cited_evidence, encode_decision, prompt_messages, prompt_text
from agents.policies.local.states import LANGUAGE, LOCAL_AGENTS, state_line, state_values
from utils.artifacts import ArtifactCorrupt, publish, seal, verify
from utils.hashing import content_hash
from utils.logs import logger
from utils.market_regime_detector import REGIME_LABELS
from utils.schema import RECOMMENDATIONS

if TYPE_CHECKING:
    import torch

RECIPE_VERSION = 2
"""Raised whenever the pre-training loop changes in a way that its parameters and examples do not show."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Names, words and numbers are one piece each, so that a value is the same token in the state and in the citation.
_PIECES = r" ?[A-Za-z_]+[0-9]*:| ?[A-Za-z_]+|[-+]?[0-9]+(?:\.[0-9]+)?|[^A-Za-z0-9\s+\-]+|\s+|[+\-]"
_FOLDER = "tiny-"
_PAD, _START, _END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

StepProgress = Callable[[int, int, float], None]
"""Called after a step with (step, steps, loss); may raise to stop."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the weights of the small model follow from.

    `follow_share` of the pre-training decisions lean to the side of the net evidence, the rest are random: enough for
    the model to use the state, too little for it to hold an opinion worth having.
    """

    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    intermediate_size: int = 256
    vocabulary: int = 512
    steps: int = 550
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup_steps: int = 20
    follow_share: float = 0.4
    seed: int = 42

    def digest(self) -> str:
        """Return the identity of the recipe; examples are part of it, so a change of any template is a new model."""
        examples = [pretraining_example(random.Random(seed), self.follow_share) for seed in range(64)]
        prompts = [prompt_text(agent_type) for agent_type in LOCAL_AGENTS]
        return content_hash([RECIPE_VERSION, asdict(self), CHAT_TEMPLATE, _PIECES, LANGUAGE, prompts, examples])

    def folder_name(self) -> str:
        """Return what the folder of the model is called in a cache."""
        return f"{_FOLDER}{self.digest()[:12]}"

    @staticmethod
    def names(folder_name: str) -> bool:
        """Return whether a folder of this name holds the model of some recipe."""
        return folder_name.startswith(_FOLDER)


def build_base_model(cache_dir: Path, recipe: Recipe = Recipe(), progress: StepProgress | None = None) -> Path:
    """Return the folder of the small model, built if the cache does not hold it whole.

    With one thread, two builds of a recipe on one machine give the same bytes. One builder at a time: others wait.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    final = cache_dir / recipe.folder_name()
    with _only_builder(cache_dir):
        if final.exists():
            try:
                verify(final)
            except ArtifactCorrupt as error:
                logger.warning("the cached base model is rebuilt: %s", error)
            else:
                return final
        aside = final.with_name(f".{final.name}.aside")
        shutil.rmtree(aside, ignore_errors=True)
        _build(aside, recipe, progress)
        seal(aside, {"recipe": asdict(recipe), "language": LANGUAGE})
        publish(aside, final)
    return final


AGENT_SHARES = {"technical": 0.3, "news": 0.25, "fundamental": 0.2, "strategist": 0.25}
"""Of the pre-training examples."""

_CALLS = {"strong_buy": 1.0, "buy": 0.7, "hold": 0.0, "sell": -0.7, "strong_sell": -1.0}


def net_evidence(agent_type: str, state_text: str) -> float:
    """Return what a state adds up to, about -1 (all bearish) to 1 (all bullish).

    A plain reading that follows trend, tone, value or the majority; it orders the pre-training decisions and is no claim about
    markets.
    """
    stated = state_values(state_text)

    def scaled(name: str, centre: float, width: float) -> float:
        return max(-1.0, min(1.0, (float(stated[name]) - centre) / width)) if name in stated else 0.0

    votes: tuple[float, ...]
    if agent_type == "technical":
        trend = {"up": 1.0, "down": -1.0}.get(stated.get("trend", ""), 0.0)
        votes = (scaled("rsi", 50, 20), scaled("macd", 0, 3), scaled("sma20", 0, 2), scaled("sma50", 0, 4), trend)
    elif agent_type == "news":
        votes = (scaled("score", 0, 1), scaled("score", 0, 1), scaled("agree", 0, 0.6))
    elif agent_type == "fundamental":
        view = {"cheap": 1.0, "dear": -1.0}.get(stated.get("view", ""), 0.0)
        votes = (scaled("value", 0, 0.6), view, scaled("growth", 0, 0.8), scaled("profit", 0, 0.8))
    else:
        called = tuple(_CALLS[stated[name]] for name in ("news", "tech", "fund") if name in stated)
        votes = (scaled("vote", 0, 0.5), *called)
    return sum(votes) / len(votes)


def pretraining_example(rng: random.Random, follow_share: float) -> tuple[str, str, str]:
    """Draw an agent, a synthetic state of it and a decision on that: agent type, state, answer."""
    agent_type = rng.choices(tuple(AGENT_SHARES), tuple(AGENT_SHARES.values()))[0]
    values = {**_SYNTHETIC[agent_type](rng, rng.gauss(0, 1)), "regime": rng.choice(REGIME_LABELS)}
    if rng.random() < 0.15:
        values |= {"past": rng.randint(1, 10), "pbuy": rng.gauss(0, 1), "psell": rng.gauss(0, 1)}
    state_text = state_line(agent_type, values)
    net = net_evidence(agent_type, state_text)
    if rng.random() < follow_share:
        side = rng.gauss(net, 0.15)
        recommendation = "hold" if abs(side) < 0.2 else ("buy" if side > 0 else "sell")
        if abs(side) > 0.7:
            recommendation = f"strong_{recommendation}"
    else:
        recommendation = rng.choices(RECOMMENDATIONS, (1, 2, 2, 2, 1))[0]
    confidence = min(max(rng.gauss(0.65, 0.15), 0.3), 1.0)
    return agent_type, state_text, encode_decision(recommendation, confidence, cited_evidence(agent_type, state_text))


def _around(rng: random.Random, drift: float, weight: float) -> float:
    """Return a standard figure that leans to the hidden drift, as the figures of one chart or company do."""
    return weight * drift + (1 - weight) * rng.gauss(0, 1.2)


def _technical(rng: random.Random, drift: float) -> dict[str, Any]:
    slope = drift + rng.gauss(0, 0.4)
    values: dict[str, Any] = {
        "rsi": 50 + 14 * _around(rng, drift, 0.8),
        "macd": 2 * _around(rng, drift, 0.4),
        "sma20": 1.6 * _around(rng, drift, 0.8),
        "sma50": 3 * _around(rng, drift, 0.7),
        "stoch": 50 + 30 * _around(rng, drift, 0.7),
        "mfi": 50 + 15 * _around(rng, drift, 0.6),
        "adx": rng.gammavariate(6, 4),
        "bb": 0.5 + 0.25 * _around(rng, drift, 0.8),
        "vol": rng.lognormvariate(0.6, 0.5),
        "trend": "up" if slope > 0.5 else ("down" if slope < -0.5 else "flat"),
    }
    for name in ("sma50", "mfi", "adx"):  # as early in a history
        if rng.random() < 0.02:
            del values[name]
    return values


def _news(rng: random.Random, drift: float) -> dict[str, Any]:
    return {
        "score": 0.7 * _around(rng, drift, 0.9),
        "agree": 0.4 * _around(rng, drift, 0.8),
        "articles": rng.gammavariate(1.2, 6),
        "age": rng.expovariate(1 / 30),
        "vol": rng.lognormvariate(0.4, 0.4),
    }


def _fundamental(rng: random.Random, drift: float) -> dict[str, Any]:
    value = 0.6 * _around(rng, drift, 0.8)
    values: dict[str, Any] = {
        "value": value,
        "growth": 0.6 * _around(rng, drift, 0.5),
        "profit": 0.6 * _around(rng, drift, 0.5),
        "debt": 0.6 * rng.gauss(0, 1),
        "health": 0.5 + 0.2 * _around(rng, drift, 0.5),
        "quality": 0.5 + 0.2 * _around(rng, drift, 0.5),
        "age": rng.uniform(0, 120),
        "view": "cheap" if value > 0.4 else ("dear" if value < -0.4 else "fair"),
    }
    for name in ("value", "growth", "profit", "debt"):
        if rng.random() < 0.08:
            del values[name]
    return values


def _strategist(rng: random.Random, drift: float) -> dict[str, Any]:
    values: dict[str, Any] = {"vol": rng.lognormvariate(0.4, 0.4)}
    votes = []
    for call, conviction, present in (
        ("news", "nconf", 0.6), ("tech", "tconf", 0.97), ("fund", "fconf", 0.5), ("valid", "vconf", 0.2)
    ):  # fmt: skip
        if rng.random() < present:
            view = _around(rng, drift, 0.7)
            side = "hold" if abs(view) < 0.4 else ("buy" if view > 0 else "sell")
            values[call] = f"strong_{side}" if abs(view) > 1.4 else side
            values[conviction] = min(max(rng.gauss(0.6, 0.12), 0.3), 1.0)
            votes.append(_CALLS[values[call]] * values[conviction])
    values["vote"] = sum(votes) / max(1, len(votes))
    values["held"] = rng.choice((0, 0, 0, rng.uniform(0, 20)))
    values["cash"] = rng.uniform(0, 100)
    return values


_SYNTHETIC: dict[str, Callable[[random.Random, float], dict[str, Any]]] = {
    "technical": _technical,
    "news": _news,
    "fundamental": _fundamental,
    "strategist": _strategist,
}


@contextmanager
def _only_builder(cache_dir: Path) -> Iterator[None]:
    with (cache_dir / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(folder: Path, recipe: Recipe, progress: StepProgress | None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    rng = random.Random(recipe.seed)
    examples = [pretraining_example(rng, recipe.follow_share) for _ in range(recipe.steps * recipe.batch_size)]
    tokenizer = _train_tokenizer(recipe, examples[:2000])
    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.hidden_size // recipe.heads,
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = AutoModelForCausalLM.from_config(config)
    _pretrain(model, tokenizer, examples, recipe, progress)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train_tokenizer(recipe: Recipe, examples: list[tuple[str, str, str]]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[_PAD, _START, _END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = ["system\nuser\nassistant\n"] * 100
    texts += [prompt_text(agent_type) for agent_type in LOCAL_AGENTS] * 100
    texts += [f"{state_text} {answer}" for _, state_text, answer in examples]
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=_END, pad_token=_PAD, padding_side="left", model_max_length=512
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _pretrain(
    model: Any, tokenizer: Any, examples: list[tuple[str, str, str]], recipe: Recipe, progress: StepProgress | None
) -> None:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)

    def rate(step: int) -> float:
        if step < recipe.warmup_steps:
            return (step + 1) / recipe.warmup_steps
        return max(0.05, (recipe.steps - step) / max(1, recipe.steps - recipe.warmup_steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for step in range(recipe.steps):
        batch = examples[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        loss = model(**_pretraining_batch(tokenizer, batch)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, recipe.steps, float(loss.detach()))
    model.eval()


def _pretraining_batch(tokenizer: Any, batch: list[tuple[str, str, str]]) -> dict[str, torch.Tensor]:
    """Token ids of shape (batch, longest), padded on the left so that all answers end together.

    Only the answers carry a label, and logits are computed for the longest answer's positions alone.
    """
    import torch

    prompts = tokenizer.apply_chat_template(
        [prompt_messages(agent_type, state_text) for agent_type, state_text, _ in batch],
        tokenize=False,
        add_generation_prompt=True,
    )
    asked = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answered = tokenizer([answer + _END for *_, answer in batch], add_special_tokens=False)["input_ids"]
    longest = max(len(q) + len(a) for q, a in zip(asked, answered, strict=True))
    kept = max(map(len, answered)) + 1
    ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
    labels = torch.full((len(batch), kept), -100)
    mask = torch.zeros((len(batch), longest), dtype=torch.long)
    for row, (question, answer) in enumerate(zip(asked, answered, strict=True)):
        whole = torch.tensor(question + answer)
        ids[row, -len(whole) :] = whole
        mask[row, -len(whole) :] = 1
        labels[row, -len(answer) :] = torch.tensor(answer)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "logits_to_keep": kept}  # type: ignore[dict-item]
