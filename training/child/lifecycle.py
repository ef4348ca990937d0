"""The stations of a training child, whatever it optimises: base model, training, sealed adapter, examination, result.

The children call `run_job` with their own training. Never touches a database, and never leaves half an adapter: what is
not sealed with a manifest does not exist.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.policies.local.adapters import read_adapter
from agents.policies.local.decisions import decision_schema, prompt_hash
from agents.policies.local.decoding import generate
from agents.policies.local.engine import Adapter, Question
from agents.policies.local.model import LocalModel
from training.base_models import resolve_base_model
from training.child.session import Session, is_main_process
from training.child.training import BaseModel, same_base
from training.job import TrainingJob, TrainingResult
from utils.artifacts import ArtifactCorrupt, verify, write_atomically
from utils.errors import TrainingFailed
from utils.hashing import canonical_json

Training = Callable[[BaseModel], dict[str, float]]
"""Trains on the base model until the adapter is sealed; returns the metrics. Skipped where that was done before."""


def run_job(job: TrainingJob, session: Session, train: Training, start: Path | None = None) -> TrainingResult | None:
    """Train, examine and seal; see `TrainingResult` for what is left behind (None in a helper process of accelerate).

    Parameters
    ----------
    start : Path, optional
        The adapter that training begins with; left out with a warning where it lies on another base model.

    Raises
    ------
    TrainingFailed
        If base model, data set or held-out states cannot be used, or training diverges.
    """
    questions = read_rows(job.holdout) if job.holdout else []
    job.output_dir.mkdir(parents=True, exist_ok=True)
    folder, sha256 = resolve_base_model(
        job.base_model,
        job.cache_dir,
        job.base_recipe,
        lambda step, steps, loss: session.progress("pretrain", step, steps, loss),
    )
    session.check()
    if start is not None and not same_base(start, sha256, "the adapter to start from"):
        start = None
    start_sha256 = verify(start).digest if start is not None else None
    base = BaseModel(folder, sha256, start, job.training_identity(sha256, start_sha256))
    adapter_dir = job.output_dir / "adapter"
    try:
        sealed = verify(adapter_dir)
    except ArtifactCorrupt:
        sealed = None
    if sealed is None or sealed.meta.get("identity") != base.identity:
        metrics = train(base)
        gc.collect()  # the trainer's model makes room for the one that is examined
        session.check()
        sealed = verify(adapter_dir)
    else:
        metrics = dict(sealed.meta["metrics"])
    if not is_main_process():
        return None
    predictions = champion_predictions = None
    if questions:
        predictions = _examine(job, session, folder, adapter_dir, questions, "predictions.jsonl")
        champion = job.champion_adapter
        if champion is not None and same_base(champion, sha256, "the champion to examine"):
            champion_predictions = _examine(job, session, folder, champion, questions, "champion_predictions.jsonl")
    result = TrainingResult(
        job_id=job.job_id,
        base_model=job.base_model,
        base_dir=folder,
        base_sha256=sha256,
        adapter_dir=adapter_dir,
        adapter_sha256=sealed.digest,
        prompt_sha256=prompt_hash(job.agent_type),
        predictions=predictions,
        champion_predictions=champion_predictions,
        metrics={**metrics, "total_wall_s": time.monotonic() - session.started},
    )
    write_atomically(job.output_dir / "result.json", result.model_dump_json(indent=1))
    shutil.rmtree(job.output_dir / "work", ignore_errors=True)
    return result


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file whose lines have messages; a TrainingFailed names the file that is not one."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise TrainingFailed(f"{path} cannot be read: {error}") from error
    if not rows or not all(isinstance(row, dict) and "messages" in row for row in rows):
        raise TrainingFailed(f"{path} is empty or has a line without messages")
    return rows


def _examine(
    job: TrainingJob, session: Session, base_dir: Path, adapter_dir: Path, questions: list[dict[str, Any]], name: str
) -> Path:
    """Let an adapter answer every held-out state, greedily, with the code that would serve it.

    Where there is no answer, one that does not end in time say, the text is empty, which is no decision.
    """
    schema = decision_schema(job.agent_type)
    model = LocalModel(base_dir, "cpu" if job.hyper_parameters.use_cpu else "auto")
    try:
        version, shelf = adapter_dir.name, model.adapters
        adapter = Adapter(adapter_dir, verify(adapter_dir).digest)
        shelf.add(version, read_adapter(adapter, model.base_sha256, shelf.device, shelf.dtype, version))
        answers = generate(
            model,
            [Question(tuple(question["messages"]), schema) for question in questions],
            [version] * len(questions),
            on_batch=lambda done, total: session.progress("evaluate", done, total),
        )
    finally:
        model.close()
    lines = (
        canonical_json({"key": question["key"], "text": answer if isinstance(answer, str) else ""})
        for question, answer in zip(questions, answers, strict=True)
    )
    predictions = job.output_dir / name
    write_atomically(predictions, "".join(f"{line}\n" for line in lines))
    return predictions
