"""Serves many versions of one base model from one thread: callers hand in questions and wait.

The daemon opens a version for each agent's champion and shadows; the thread generates, puts adapters on and takes them off,
in the order in which it is asked. So no lock is held while a model computes, and no version changes under an answer.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from agents.policies.local.adapters import AdapterWeights, read_adapter
from agents.policies.local.decoding import MAX_NEW_TOKENS, Answer, generate
from agents.policies.local.engine import Adapter, AnswerSource, Question
from agents.policies.local.model import LocalModel
from utils.errors import ProviderError
from utils.logs import logger
from utils.telemetry import NO_TELEMETRY, Telemetry

KEPT_PAUSES = 256
"""Swaps whose pause is remembered."""

_BASE = ""
"""Stands for the digest of an adapter where there is none."""


@dataclass(slots=True, eq=False)
class _Job:
    """Something that a caller waits for; `done` is set when it is done or has its error."""

    error: ProviderError | None = field(default=None, init=False)
    done: threading.Event = field(default_factory=threading.Event, init=False)

    def fail(self, error: ProviderError) -> None:
        self.error = error
        self.done.set()


@dataclass(slots=True, eq=False)
class _Group(_Job):
    """Questions of one caller to one version (None is the base model)."""

    questions: Sequence[Question]
    version: str | None
    caller: threading.Thread
    arrived: float
    answers: list[Answer] = field(default_factory=list, init=False)
    abandoned: bool = field(default=False, init=False)


@dataclass(slots=True, eq=False)
class _Opening(_Job):
    """A version that becomes ready; without weights it is the base model."""

    version: str
    sha256: str
    weights: AdapterWeights | None


@dataclass(frozen=True, slots=True)
class _Release:
    """One holder fewer of a version."""

    version: str


class _End: ...


class LocalInferenceServer:
    """An `AnswerEngine` that computes in this process.

    Parameters
    ----------
    model : LocalModel
        The server owns it from now on.
    merge_window_s : float, optional
        How long a question may wait for company. None generates each group alone and in order of submission, so that
        answers never depend on the timing of threads: for replays. A time generates what several callers and versions
        ask within it together: for live trading. It is cut short when the batch is full, or when every thread that
        ever asked is waiting already.
    max_batch : int
        Questions that are merged at most; a larger group of one caller is generated for itself.
    max_new_tokens : int
        Of one answer.
    telemetry : Telemetry
        Is told ``llm_calls_total`` of the provider ``local``: what came of each question.
    """

    def __init__(
        self,
        model: LocalModel,
        *,
        merge_window_s: float | None = None,
        max_batch: int = 64,
        max_new_tokens: int = MAX_NEW_TOKENS,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        if (merge_window_s is not None and merge_window_s < 0) or max_batch < 1:
            raise ValueError(f"merge_window_s {merge_window_s} must be at least 0, max_batch {max_batch} at least 1")
        self._model = model
        self._merge_window_s = merge_window_s
        self._max_batch = max_batch
        self._max_new_tokens = max_new_tokens
        self._telemetry = telemetry
        self._jobs: SimpleQueue[_Job | _Release | _End] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._callers: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._weights_of: dict[str, str] = {}
        self._holders: dict[str, int] = {}
        self._pauses_s: deque[float] = deque(maxlen=KEPT_PAUSES)
        self._thread = threading.Thread(target=self._serve, name="local-inference", daemon=True)
        self._thread.start()

    @property
    def pauses_s(self) -> list[float]:
        """How long generation stood still for each of the last openings and releases, oldest first."""
        return list(self._pauses_s)

    def open(self, version: str, adapter: Adapter | None = None) -> AnswerSource:
        """Make a version ready beside those that serve; the calling thread checks and reads it while others generate."""
        weights = None
        if adapter is not None:
            shelf = self._model.adapters
            weights = read_adapter(adapter, self._model.base_sha256, shelf.device, shelf.dtype, version)
        opening = _Opening(version, adapter.sha256 if adapter is not None else _BASE, weights)
        self._submit(opening)
        opening.done.wait()
        if opening.error is not None:
            raise opening.error
        return _Source(self, version, None if adapter is None else version)

    def close(self) -> None:
        """Finish what was asked before, end the thread and free the model; may be called twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(_End())
        self._thread.join()

    def ask(self, questions: Sequence[Question], version: str | None, deadline_s: float | None) -> list[Answer]:
        """Hand in the questions of the calling thread and wait for the answers; for the sources of this server."""
        group = _Group(questions, version, threading.current_thread(), time.monotonic())
        self._submit(group)
        if not group.done.wait(deadline_s):
            group.abandoned = True
            raise ProviderError(f"the local model gave no answer within {deadline_s:g} s", kind="timeout")
        if group.error is not None:
            raise group.error
        return group.answers

    def release(self, version: str) -> None:
        """Count one holder of a version less. Called by finalizers, in whatever thread and state: it takes no lock."""
        self._jobs.put(_Release(version))

    def _submit(self, job: _Job) -> None:
        with self._lock:
            if self._closed:
                raise ProviderError("the local inference server was closed", kind="closed")
            if isinstance(job, _Group):
                self._callers.add(job.caller)
            self._jobs.put(job)

    def _serve(self) -> None:
        left_over: _Job | _Release | _End | None = None
        while True:
            job = left_over or self._jobs.get()
            left_over = None
            if isinstance(job, _Group):
                groups, left_over = self._gathered(job)
                self._answer([group for group in groups if not group.abandoned])
            elif isinstance(job, _Opening):
                self._open(job)
            elif isinstance(job, _Release):
                self._release(job.version)
            else:
                break
        self._model.close()

    def _gathered(self, first: _Group) -> tuple[list[_Group], _Job | _Release | _End | None]:
        """Return the groups to generate together, and what was met behind them. The window opened as the first came."""
        groups = [first]
        if self._merge_window_s is None:
            return groups, None
        size = len(first.questions)
        while size < self._max_batch:
            wait_s = first.arrived + self._merge_window_s - time.monotonic() if self._others_may_ask(groups) else 0.0
            try:
                job = self._jobs.get(timeout=max(0.0, wait_s))
            except Empty:
                break
            if not isinstance(job, _Group) or size + len(job.questions) > self._max_batch:
                return groups, job
            groups.append(job)
            size += len(job.questions)
        return groups, None

    def _others_may_ask(self, groups: Sequence[_Group]) -> bool:
        """Return whether a thread that has asked before is not waiting for an answer now."""
        waiting = {group.caller for group in groups if not group.abandoned}
        with self._lock:
            return any(caller.is_alive() and caller not in waiting for caller in self._callers)

    def _answer(self, groups: Sequence[_Group]) -> None:
        if not groups:
            return
        questions = [question for group in groups for question in group.questions]
        versions = [group.version for group in groups for _ in group.questions]
        try:
            answers = generate(self._model, questions, versions, max_new_tokens=self._max_new_tokens)
        except Exception as error:  # whatever a model raises: the thread serves the others, and the caller is told
            if len(groups) > 1:
                for group in groups:
                    self._answer([group])
                return
            if not isinstance(error, ProviderError):
                logger.exception("the local model failed unexpectedly")
                error = ProviderError(f"the local model failed: {type(error).__name__}: {error}")
            self._count(error.kind, len(questions))
            groups[0].fail(error)
            return
        for answer in answers:
            self._count(answer.kind if isinstance(answer, ProviderError) else "ok", 1)
        for group in groups:
            group.answers, answers = answers[: len(group.questions)], answers[len(group.questions) :]
            group.done.set()

    def _count(self, outcome: str, questions: int) -> None:
        self._telemetry.count("llm_calls_total", float(questions), provider="local", outcome=outcome)

    def _open(self, opening: _Opening) -> None:
        version, started = opening.version, time.perf_counter()
        if self._weights_of.get(version, opening.sha256) != opening.sha256:
            opening.fail(ProviderError(f"version {version} is not loaded: the name stands for other weights"))
            return
        if version not in self._holders and opening.weights is not None:
            try:
                self._model.adapters.add(version, opening.weights)
            except ProviderError as error:
                opening.fail(error)
                return
            self._pauses_s.append(time.perf_counter() - started)
        self._weights_of[version] = opening.sha256
        self._holders[version] = self._holders.get(version, 0) + 1
        opening.done.set()

    def _release(self, version: str) -> None:
        self._holders[version] -= 1
        if self._holders[version]:
            return
        del self._holders[version]
        if self._weights_of[version] != _BASE:
            started = time.perf_counter()
            self._model.adapters.remove(version)
            self._pauses_s.append(time.perf_counter() - started)


class _Source:
    """One holder of a version; the last one to go, closed or forgotten, takes the adapter off the model."""

    waits = False

    def __init__(self, server: LocalInferenceServer, version: str, adapter: str | None) -> None:
        self.version = version
        self._server = server
        self._adapter = adapter
        self._lock = threading.Lock()
        self._asking = 0
        self._closed = False
        self._released = weakref.finalize(self, server.release, version)
        self._released.atexit = False

    def answer(self, questions: Sequence[Question], *, deadline_s: float | None = None) -> list[Answer]:
        """Answer every question; see `AnswerSource.answer`."""
        with self._lock:
            if self._closed:
                raise ProviderError(f"version {self.version} was closed", kind="closed")
            self._asking += 1
        try:
            return self._server.ask(questions, self._adapter, deadline_s) if questions else []
        finally:
            with self._lock:
                self._asking -= 1
                last = self._closed and self._asking == 0
            if last:
                self._released()

    def close(self) -> None:
        """Release the version once the questions in hand are answered; may be called twice."""
        with self._lock:
            self._closed = True
            last = self._asking == 0
        if last:
            self._released()
