"""Many answers at once, each within its JSON schema: what the schema decides is never asked of the model.

One pass of the model serves all rows. A row brings to it the token it chose and all tokens that the grammar forces behind
it, so an answer takes as many passes as it has real choices. Called by the serving thread and by the training child.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.policies.local.engine import Question
from agents.policies.local.grammar import Walk
from agents.policies.local.model import LocalModel, free_device_memory, is_out_of_memory
from utils.errors import ProviderError
from utils.logs import logger

if TYPE_CHECKING:
    import torch

MAX_NEW_TOKENS = 96
"""A decision takes 19 tokens of the small tokenizer and about 40 of a large one."""

MAX_BATCH = 256
"""Rows generated together: beyond this the time a decision no longer falls, only memory rises."""

Answer = str | ProviderError


@dataclass(slots=True)
class _Row:
    """An answer in progress; `pending` tokens are written but not yet fed, `fed` have been."""

    number: int
    question: Question
    version: str | None
    walk: Walk
    pending: list[int]
    fed: int = 0
    draws: torch.Generator | None = None
    failure: ProviderError | None = None


def generate(
    model: LocalModel,
    questions: Sequence[Question],
    versions: Sequence[str | None] | None = None,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Answer every question.

    Parameters
    ----------
    model : LocalModel
    questions : sequence of Question
    versions : sequence of str or None, optional
        The adapter of each question; None is the base model, as for all by default.
    max_new_tokens : int
        Of one answer.
    on_batch : callable, optional
        Called after each batch with (done, total).

    Returns
    -------
    list of str or ProviderError
        In order; an error of kind truncated or request concerns its question alone.

    Raises
    ------
    ProviderError
        If the model is closed, fails, or has not the memory for a single row.
    """
    chosen = list(versions) if versions is not None else [None] * len(questions)
    answers: list[Answer] = []
    size = MAX_BATCH
    while len(answers) < len(questions):
        batch = slice(len(answers), len(answers) + size)
        try:
            answers += _answer_batch(model, questions[batch], chosen[batch], max_new_tokens)
        except (RuntimeError, ValueError, IndexError, TypeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise ProviderError(f"the local model failed while generating: {error}") from error
            if size == 1:
                raise ProviderError(f"the local model has not the memory for one answer: {error}") from error
            size = max(1, min(size, len(questions) - len(answers)) // 2)
        else:
            if on_batch is not None:
                on_batch(len(answers), len(questions))
            continue
        free_device_memory()
        logger.warning("memory ran out; answers are generated in batches of %d", size)
    return answers


def _answer_batch(
    model: LocalModel, questions: Sequence[Question], versions: Sequence[str | None], max_new_tokens: int
) -> list[Answer]:
    import torch

    answers: list[Answer | None] = [None] * len(questions)
    rows = []
    prompts = model.prompt_tokens([question.messages for question in questions])
    for number, (question, version, prompt) in enumerate(zip(questions, versions, prompts, strict=True)):
        try:
            row = _begin(model, number, question, version, prompt, max_new_tokens)
        except ProviderError as error:
            answers[number] = error
        else:
            rows.append(row)
    with torch.inference_mode():
        _run(model, rows, answers, max_new_tokens)
    return [answer for answer in answers if answer is not None]


def _begin(
    model: LocalModel, number: int, question: Question, version: str | None, prompt: list[int], max_new_tokens: int
) -> _Row:
    import torch

    if len(prompt) + max_new_tokens > model.context_tokens:
        raise ProviderError(
            f"the prompt has {len(prompt)} tokens and the answer may have {max_new_tokens}; the model's context holds "
            f"{model.context_tokens}",
            kind="request",
        )
    walk = model.grammars.walk(question.schema)
    row = _Row(number, question, version, walk, prompt + walk.forced())
    if question.temperature > 0:
        row.draws = torch.Generator().manual_seed(question.random_state)
    return row


def _run(model: LocalModel, rows: list[_Row], answers: list[Answer | None], max_new_tokens: int) -> None:
    """Alternate between passes and choices until every row has its answer; rows that have one leave the batch."""
    import torch

    cache: Any = None
    mask = torch.zeros((len(rows), 0), dtype=torch.long, device=model.device)
    while True:
        kept = []
        for index, row in enumerate(rows):
            answer = _ended(model, row, max_new_tokens)
            if answer is None:
                kept.append(index)
            else:
                answers[row.number] = answer
        if not kept:
            return
        if len(kept) < len(rows):
            rows = [rows[index] for index in kept]
            staying = torch.tensor(kept, device=model.device)
            mask = mask[staying]
            if cache is not None:
                cache.batch_select_indices(staying)
        width = _width(model, rows, first=cache is None)
        inputs, present, positions = _columns(rows, width).to(model.device)
        mask = torch.cat([mask, present], dim=1)
        logits, cache = model.forward(inputs, mask, positions, cache, [row.version for row in rows])
        deciding = [index for index, row in enumerate(rows) if not row.pending]
        if len(deciding) < len(rows):
            logits = logits[deciding]
        if deciding:
            _decide(model, [rows[index] for index in deciding], logits)


def _ended(model: LocalModel, row: _Row, max_new_tokens: int) -> Answer | None:
    written = len(row.walk.tokens)
    if row.failure is not None:
        return row.failure
    if row.walk.finished and written <= max_new_tokens:
        return model.grammars.text(row.walk)
    if row.walk.finished or written >= max_new_tokens:
        return ProviderError(f"the answer is not complete after {max_new_tokens} tokens", kind="truncated")
    return None


def _width(model: LocalModel, rows: Sequence[_Row], *, first: bool) -> int:
    """Return how many columns a pass has. Prompts are padded on the left in any model; later holes suit not every one."""
    waiting = [len(row.pending) for row in rows]
    if first or model.columns == "ragged":
        return max(waiting)
    return min(waiting) if model.columns == "even" else 1


def _columns(rows: Sequence[_Row], width: int) -> torch.Tensor:
    """Take up to `width` pending tokens of each row: tokens, presence and positions, shape (3, rows, width).

    Holes are on the left, so that the last column is the last token of every row.
    """
    import torch

    tokens, present, positions = [], [], []
    for row in rows:
        taken = row.pending[:width]
        holes = [0] * (width - len(taken))
        tokens.append(holes + taken)
        present.append(holes + [1] * len(taken))
        positions.append(holes + list(range(row.fed, row.fed + len(taken))))
        row.pending = row.pending[width:]
        row.fed += len(taken)
    return torch.tensor([tokens, present, positions])


def _decide(model: LocalModel, rows: Sequence[_Row], logits: torch.Tensor) -> None:
    """Let each row choose its next token among those that its schema allows."""
    import torch

    masks = torch.from_numpy(model.grammars.masks([row.walk for row in rows])).to(logits.device)
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = ((masks.unsqueeze(-1) >> bits) & 1).flatten(1)[:, : logits.shape[1]].bool()
    scores = logits.float().masked_fill(~allowed, float("-inf"))
    best, likeliest = scores.max(dim=-1)
    chosen, finite = likeliest.tolist(), torch.isfinite(best).tolist()
    for index, row in enumerate(rows):
        if not finite[index]:  # behind the mask any token would make a decision that looks sound
            row.failure = ProviderError("the local model computed no finite numbers; its weights or dtype are unfit")
            continue
        if row.draws is not None:
            chosen[index] = _drawn(scores[index], row.question.temperature, row.draws)
        try:
            row.pending = row.walk.choose(chosen[index])
        except ProviderError as error:
            row.failure = error


def _drawn(scores: torch.Tensor, temperature: float, draws: torch.Generator) -> int:
    """Draw a token by inverting the distribution function, one uniform number a token.

    In double precision on the CPU: what else is in the batch, or which device computes, must not move a draw.
    """
    import torch

    cumulated = torch.softmax(scores.cpu().double() / temperature, dim=-1).cumsum(dim=-1)
    point = torch.rand((), generator=draws, dtype=torch.float64) * cumulated[-1]
    return int(torch.searchsorted(cumulated, point, right=True).clamp(max=len(cumulated) - 1))
