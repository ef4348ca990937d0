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

from agents.policies.state_text import (
    cited_evidence,
    encode_decision,
    prompt_hash,
    prompt_messages,
    prompt_text,
    state_values,
    technical_state_text,
)
from utils.artifacts import ArtifactCorrupt, publish, seal, verify
from utils.hashing import content_hash
from utils.logs import logger

if TYPE_CHECKING:
    import torch

BUILTIN_TINY = "builtin:tiny"
RECIPE_VERSION = 1
"""Raised whenever the pre-training loop changes in a way that its parameters and examples do not show."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Names, words and numbers are one piece each, so that a value is the same token in the state and in the citation.
_PIECES = r" ?[A-Za-z_]+[0-9]*:| ?[A-Za-z_]+|[-+]?[0-9]+(?:\.[0-9]+)?|[^A-Za-z0-9\s+\-]+|\s+|[+\-]"
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
    steps: int = 400
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup_steps: int = 20
    follow_share: float = 0.4
    seed: int = 42

    def digest(self) -> str:
        """Return the identity of the recipe; examples are part of it, so a change of any template is a new model."""
        examples = [pretraining_example(random.Random(seed), self.follow_share) for seed in range(64)]
        return content_hash([RECIPE_VERSION, asdict(self), CHAT_TEMPLATE, _PIECES, prompt_hash(), examples])


def build_base_model(cache_dir: Path, recipe: Recipe = Recipe(), progress: StepProgress | None = None) -> Path:
    """Return the folder of the small model, built if the cache does not hold it whole.

    With one thread, two builds of a recipe on one machine give the same bytes. One builder at a time: others wait.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    final = cache_dir / f"tiny-{recipe.digest()[:12]}"
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
        seal(aside, {"recipe": asdict(recipe), "prompt_hash": prompt_hash()})
        publish(aside, final)
    return final


def net_evidence(state_text: str) -> float:
    """Return what the indicators of a state text add up to, about -1 (all bearish) to 1 (all bullish).

    A plain trend-following reading; it orders the pre-training decisions and is no claim about markets.
    """
    stated = state_values(state_text)

    def scaled(name: str, centre: float, width: float) -> float:
        return max(-1.0, min(1.0, (float(stated[name]) - centre) / width)) if name in stated else 0.0

    trend = {"up": 1.0, "down": -1.0}.get(stated.get("trend", ""), 0.0)
    votes = (scaled("rsi", 50, 20), scaled("macd", 0, 3), scaled("sma20", 0, 2), scaled("sma50", 0, 4), trend)
    return sum(votes) / len(votes)


def pretraining_example(rng: random.Random, follow_share: float) -> tuple[str, str]:
    """Draw a synthetic state text and a decision on it."""
    state_text = technical_state_text(_synthetic_state(rng))
    net = net_evidence(state_text)
    if rng.random() < follow_share:
        side = rng.gauss(net, 0.15)
        recommendation = "hold" if abs(side) < 0.2 else ("buy" if side > 0 else "sell")
        if abs(side) > 0.7:
            recommendation = f"strong_{recommendation}"
    else:
        recommendation = rng.choices(("strong_buy", "buy", "hold", "sell", "strong_sell"), (1, 2, 2, 2, 1))[0]
    confidence = min(max(rng.gauss(0.65, 0.15), 0.3), 1.0)
    return state_text, encode_decision(recommendation, confidence, cited_evidence(state_text))


def _synthetic_state(rng: random.Random) -> dict[str, Any]:
    """Indicators around one hidden drift, correlated as on a chart; a few are missing, as early in a history."""
    drift = rng.gauss(0, 1)
    price, atr = 100.0, rng.lognormvariate(0.6, 0.5)

    def blend(weight: float) -> float:
        return weight * drift + (1 - weight) * rng.gauss(0, 1.2)

    indicators: dict[str, float] = {
        "rsi_14": 50 + 14 * blend(0.8),
        "macd": 0.2 * atr * blend(0.4),
        "macd_signal": 0.0,
        "sma_20": price - 1.6 * atr * blend(0.8),
        "sma_50": price - 3.0 * atr * blend(0.7),
        "stoch_k": 50 + 30 * blend(0.7),
        "mfi_14": 50 + 15 * blend(0.6),
        "adx_14": rng.gammavariate(6, 4),
        "atr_14": atr,
    }
    width = atr * rng.uniform(2, 5)
    position = 0.5 + 0.25 * blend(0.8)
    indicators["bb_lower"] = price - position * width
    indicators["bb_upper"] = indicators["bb_lower"] + width
    for name in ("sma_50", "mfi_14", "adx_14"):
        if rng.random() < 0.02:
            del indicators[name]
    slope = drift + rng.gauss(0, 0.4)
    trend = "uptrend" if slope > 0.5 else ("downtrend" if slope < -0.5 else "sideways")
    return {"indicators": indicators, "current_price": price, "trend": trend}


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


def _train_tokenizer(recipe: Recipe, examples: list[tuple[str, str]]) -> Any:
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
    texts = ["system\nuser\nassistant\n"] * 100 + [prompt_text()] * 100
    texts += [f"{state_text} {answer}" for state_text, answer in examples]
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=_END, pad_token=_PAD, padding_side="left", model_max_length=512
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _pretrain(
    model: Any, tokenizer: Any, examples: list[tuple[str, str]], recipe: Recipe, progress: StepProgress | None
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


def _pretraining_batch(tokenizer: Any, batch: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Token ids of shape (batch, longest), padded on the left so that all answers end together.

    Only the answers carry a label, and logits are computed for the longest answer's positions alone.
    """
    import torch

    prompts = tokenizer.apply_chat_template(
        [prompt_messages(state_text) for state_text, _ in batch], tokenize=False, add_generation_prompt=True
    )
    asked = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answered = tokenizer([answer + _END for _, answer in batch], add_special_tokens=False)["input_ids"]
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
