"""The stations of a training child, whatever it optimises: base model, training, sealed adapter, examination, result.

The children call `run_job` with their own training. Never touches a database, and never leaves half an adapter: what is
not sealed with a manifest does not exist.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agents.policies.local.decisions import prompt_hash
from training.base_models import resolve_base_model
from training.child.session import Session, is_main_process
from training.child.training import BaseModel, same_base
from training.examiner import Examiner
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
    examined: dict[str, Path] = {}
    if questions:
        candidates = {"predictions": adapter_dir}
        champion = job.champion_adapter
        if champion is not None and same_base(champion, sha256, "the champion to examine"):
            candidates["champion_predictions"] = champion
        examined = _examined(job, session, base, candidates, questions)
    result = TrainingResult(
        job_id=job.job_id,
        base_model=job.base_model,
        base_dir=folder,
        base_sha256=sha256,
        adapter_dir=adapter_dir,
        adapter_sha256=sealed.digest,
        prompt_sha256=prompt_hash(job.agent_type),
        predictions=examined.get("predictions"),
        champion_predictions=examined.get("champion_predictions"),
        metrics={**metrics, "total_wall_s": time.monotonic() - session.started},
    )
    write_atomically(job.output_dir / "result.json", result.model_dump_json(indent=1))
    shutil.rmtree(job.output_dir / "work", ignore_errors=True)
    return result


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file whose lines have messages; a TrainingFailed names the file that is not one."""
    try:
        rows = [json.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise TrainingFailed(f"{path} cannot be read: {error}") from error
    if not rows or not all(isinstance(row, dict) and "messages" in row for row in rows):
        raise TrainingFailed(f"{path} is empty or has a line without messages")
    return rows


def _examined(
    job: TrainingJob, session: Session, base: BaseModel, adapters: Mapping[str, Path], questions: list[dict[str, Any]]
) -> dict[str, Path]:
    """Let adapters answer every held-out state; return by name the file of the answers.

    Where there is no answer, one that does not end in time say, the text is empty, which is no decision.
    """
    asked = [question["messages"] for question in questions]
    files = {}
    with Examiner(base.folder, "cpu" if job.hyper_parameters.use_cpu else "auto", base.sha256) as examiner:
        for name, adapter in adapters.items():
            answers = examiner.answers(
                job.agent_type, asked, adapter, lambda done, total: session.progress("evaluate", done, total)
            )
            lines = (
                canonical_json({"key": question["key"], "text": answer})
                for question, answer in zip(questions, answers, strict=True)
            )
            files[name] = job.output_dir / f"{name}.jsonl"
            write_atomically(files[name], "".join(f"{line}\n" for line in lines))
    return files
