"""The section ``judges``: how fast a panel of three hosted judges and the local one is, and what the project adds to a call.

Servers are fakes in a process of their own, asked through the vendors' SDKs; outputs are the rules agents' on history.
Prints met and missed aims alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clean_outputs import clean_outputs
from benchmarks.fake_models import MEDIAN_S, SIGMA, UNIFORM_S, VENDORS, delay_s
from benchmarks.measure import percentile, resampled
from judge.base import JudgeRequest
from judge.consensus_result import ConsensusResult, EvaluationItem
from judge.llm_judge import LLMJudge
from judge.local_judge import LocalJudge
from judge.multi_judge_consensus import MultiJudgeConsensus
from judge.prompting import JudgePrompt, judge_prompt
from judge.rubrics import load_rubric
from utils.llm.anthropic import without_type_lists
from utils.llm.factory import ChatModels, make_adapter
from utils.schema import parse_output
from utils.settings import OrchestratorConfig

SEED = 42
EVALUATIONS = 100
CALLERS = 100
CALLS = 60
"""Of one vendor, by a judge and by the bare SDK in turn."""

DEADLINES_S = (20.0, 5.0)
TIME_SCALE = 0.1
"""Realistic latencies and their deadlines run ten times as fast; what the project adds to a call does not."""

_KEY = b"benchmark"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the panel, print the figures and return them."""
    items = _items(EVALUATIONS)
    print("panel of three hosted judges (fake servers in another process) and the local one")
    with tempfile.TemporaryDirectory(prefix="bench-judges-") as folder, fake_servers() as urls:
        keys = {f"{name}_api_key": "test-key" for name in VENDORS}
        addresses = {f"{name}_base_url": url for name, url in urls.items()}
        config = OrchestratorConfig(data_dir=Path(folder), budget={"usd_per_day": 1e6}, **keys, **addresses)
        models = ChatModels(config, replay=False)
        try:
            figures = _latency(models, items) | _overhead(models, urls, items)
            figures |= _concurrency(models, items) | _realistic(models, items)
        finally:
            models.close()
    figures["local_grades_per_s"] = _local_speed(items)
    print(f"  local judge, errors looked for anew {figures['local_grades_per_s']:8.0f} /s CPU time of one core\n")
    return figures


def _latency(models: ChatModels, items: list[EvaluationItem]) -> dict[str, Any]:
    """One evaluation after the other at latencies of .2 to 1.5 s."""
    walls, ratios, heard = [], [], 0
    with _panel(models, "uniform") as panel:
        panel.evaluate_many(items[:2])
        for item in items:
            started = time.perf_counter()
            result = panel.evaluate_many([item])[0]
            walls.append(time.perf_counter() - started)
            ratios.append(walls[-1] / max(_delays(item, "uniform")))
            heard += len(result.individual_scores) == len(VENDORS) + 1
    print(
        f"  latencies uniform {UNIFORM_S[0]:g} to {UNIFORM_S[1]:g} s, n {len(items)}, all four judges heard in {heard}"
    )
    figures: dict[str, Any] = {"n": len(items), "all_heard": heard}
    rows: tuple[tuple[str, str, list[float], Callable[[Sequence[float]], float], str], ...] = (
        ("wall_p50_s", "consensus wall, p50", walls, lambda v: percentile(v, 50), ""),
        ("wall_p95_s", "consensus wall, p95", walls, lambda v: percentile(v, 95), "aim < 2 s"),
        ("wall_over_slowest", "wall / slowest server's delay, mean", ratios, lambda v: float(np.mean(v)), "aim <= 1.1"),
        ("wall_over_slowest_p95", "wall / slowest server's delay, p95", ratios, lambda v: percentile(v, 95), ""),
    )
    for name, title, values, statistic, aim in rows:
        figures[name] = found = resampled(values, statistic, SEED)
        print(f"  {title:38} {found[0]:7.3f} [{found[1]:.3f}, {found[2]:.3f}]   {aim}")
    return figures


def _overhead(models: ChatModels, urls: dict[str, str], items: list[EvaluationItem]) -> dict[str, Any]:
    """A judge's call beside the same question through the bare SDK, in turn, to servers that answer at once."""
    figures: dict[str, Any] = {}
    print(f"  a judge's call beside the same one by the bare SDK, servers without latency, n {CALLS} each, in turn")
    for vendor in VENDORS:
        judge = LLMJudge.for_panel(vendor, models.model(vendor, f"{vendor}-none"), prompt_key=_KEY)
        with _BareSdk(vendor, urls[vendor]) as bare:
            own, floor = [], []
            for index, item in enumerate((items * 2)[: CALLS + 5]):
                request = _request(item)
                prompt = judge_prompt(request, _KEY)
                timed = _timed(judge.grade, request), _timed(bare.ask, prompt)
                if index >= 5:  # clients and connections are made by the first calls
                    own.append(timed[0])
                    floor.append(timed[1])
        added = np.array(own) - np.array(floor)
        for place, kind in enumerate(("wall", "cpu")):
            found = resampled((1e3 * added[:, place]).tolist(), lambda v: float(np.median(v)), SEED)
            base = 1e3 * float(np.median(np.array(floor)[:, place]))
            figures[f"{vendor}_{kind}_added_ms"], figures[f"{vendor}_{kind}_sdk_ms"] = found, base
            print(
                f"    {vendor:10} {kind:5} added {found[0]:6.2f} ms [{found[1]:.2f}, {found[2]:.2f}]   "
                f"SDK and server {base:6.2f} ms   aim <= 5 ms"
            )
    return figures


def _concurrency(models: ChatModels, items: list[EvaluationItem]) -> dict[str, Any]:
    """A hundred callers at the same time."""
    before = threading.active_count()
    with _panel(models, "uniform", deadline_s=30.0) as panel, ThreadPoolExecutor(CALLERS) as callers:
        started = time.perf_counter()
        asked = [callers.submit(panel.evaluate_many, [item]) for item in (items * 2)[:CALLERS]]
        time.sleep(0.5)
        during = threading.active_count() - CALLERS
        results = [future.result()[0] for future in asked]
        wall = time.perf_counter() - started
    after = threading.active_count()
    heard = sum(len(result.individual_scores) == len(VENDORS) + 1 for result in results)
    print(
        f"  {CALLERS} callers at once: {wall:.1f} s, all judges heard in {heard}, threads besides the callers' "
        f"{before} before, {during} during, {after} after (16 calls a model at a time)"
    )
    return {"callers": CALLERS, "callers_wall_s": wall, "callers_heard": heard, "threads": (before, during, after)}


def _realistic(models: ChatModels, items: list[EvaluationItem]) -> dict[str, Any]:
    """Who is left out by the deadline where servers are as slow as hosted models are."""
    figures: dict[str, Any] = {}
    print(
        f"  latencies log-normal, median {MEDIAN_S / TIME_SCALE:g} s, sigma {SIGMA:g}; run at a tenth of the time, as are the deadlines"
    )
    for deadline_s in DEADLINES_S:
        with _panel(models, "realistic", deadline_s=deadline_s * TIME_SCALE) as panel:
            panel.evaluate_many(items[:1])
            results = panel.evaluate_many(items)
        late = [_late(result) / len(VENDORS) for result in results]
        drawn = [sum(d > deadline_s * TIME_SCALE for d in _delays(i, "realistic")) / len(VENDORS) for i in items]
        pending = sum(result.status == "pending" for result in results) / len(results)
        found = resampled(late, lambda v: float(np.mean(v)), SEED)
        figures[f"late_share_{deadline_s:g}s"], figures[f"pending_share_{deadline_s:g}s"] = found, pending
        print(
            f"    deadline {deadline_s:4g} s: hosted judges left out {100 * found[0]:5.1f} % "
            f"[{100 * found[1]:.1f}, {100 * found[2]:.1f}], servers later than it {100 * float(np.mean(drawn)):5.1f} %, "
            f"evaluations pending {100 * pending:.1f} % (n {len(results)})"
        )
    return figures


def _late(result: ConsensusResult) -> int:
    return sum(excluded["reason"].startswith("timeout:") for excluded in result.excluded)


def _items(count: int) -> list[EvaluationItem]:
    """Return opinions of all agents on history, in turn."""
    found: list[EvaluationItem] = []
    for sample in clean_outputs(os.environ.get("REPLAY_DATA_DIR"), SEED, 0.1):
        output, _ = parse_output(sample.output, sample.agent_type)
        if output is None or output.abstained:
            continue
        found.append(EvaluationItem(sample.agent_type, output, sample.agent_type, {"truth": sample.truth}))
        if len(found) == count:
            break
    return found


def _request(item: EvaluationItem) -> JudgeRequest:
    return JudgeRequest(item.agent_type, item.output, load_rubric(item.rubric_path), item.context)  # type: ignore[arg-type]


def _delays(item: EvaluationItem, model: str) -> list[float]:
    user = judge_prompt(_request(item), _KEY).messages[1].content
    return [delay_s(vendor, f"{vendor}-{model}", user) for vendor in VENDORS]


def _timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """Return wall and CPU seconds of a call, all threads of the process counted."""
    wall, cpu = time.perf_counter(), time.process_time()
    call(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu


def _local_speed(items: list[EvaluationItem]) -> float:
    judge, requests = LocalJudge(), [_request(item) for item in items]
    started = time.process_time()
    for request in requests * 5:
        judge.grade(request)
    return 5 * len(requests) / (time.process_time() - started)


@contextmanager
def _panel(models: ChatModels, kind: str, deadline_s: float = 20.0) -> Iterator[MultiJudgeConsensus]:
    configs = [{"id": name, "provider": name, "model": f"{name}-{kind}"} for name in VENDORS]
    panel = MultiJudgeConsensus(
        [*configs, {"id": "local", "model": "local"}], deadline_s=deadline_s, chat_models=models, prompt_key=_KEY
    )
    try:
        yield panel
    finally:
        panel.close()


@contextmanager
def fake_servers() -> Iterator[dict[str, str]]:
    """Run the fake vendors in a process of their own; yields the address of each."""
    command = [sys.executable, "-m", "benchmarks.fake_models"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        yield json.loads(child.stdout.readline())
        child.stdin.close()


class _BareSdk:
    """The same question by a vendor's async SDK on a loop of its own: no adapter, gate, budget or judge."""

    def __init__(self, vendor: str, url: str) -> None:
        self._model = f"{vendor}-none"
        self._call: Callable[[JudgePrompt], Any] = getattr(self, f"_{vendor}")
        # the adapter's client has the connection settings of the measured calls
        self._adapter: Any = make_adapter(vendor, self._model, "test-key", url)  # type: ignore[arg-type]
        self._client = self._adapter._client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> _BareSdk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._adapter.aclose(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def ask(self, prompt: JudgePrompt) -> Any:
        """Return the object of the answer."""
        return json.loads(asyncio.run_coroutine_threadsafe(self._call(prompt), self._loop).result())

    async def _anthropic(self, prompt: JudgePrompt) -> str:
        from anthropic import transform_schema

        system, user = prompt.messages
        reply = await self._client.messages.create(
            model=self._model,
            max_tokens=2048,
            system=system.content,
            messages=[{"role": "user", "content": user.content}],
            output_config={
                "format": {"type": "json_schema", "schema": transform_schema(without_type_lists(prompt.schema))}
            },
        )
        return str(reply.content[0].text)

    async def _openai(self, prompt: JudgePrompt) -> str:
        reply = await self._client.chat.completions.create(
            model=self._model,
            max_completion_tokens=2048,
            temperature=0.0,
            messages=[{"role": message.role, "content": message.content} for message in prompt.messages],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": prompt.schema},
            },
        )
        return str(reply.choices[0].message.content)

    async def _gemini(self, prompt: JudgePrompt) -> str:
        system, user = prompt.messages
        config = {
            "system_instruction": system.content,
            "max_output_tokens": 2048,
            "temperature": 0.0,
            "response_mime_type": "application/json",
            "response_json_schema": prompt.schema,
        }
        reply = await self._client.aio.models.generate_content(model=self._model, contents=user.content, config=config)
        return str(reply.text)
