"""Judges and chat models that do as they are told, for tests of the panel; they speak the project's own seams."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from judge.base import JudgeRequest, JudgeScore
from utils.errors import JudgeError
from utils.llm.base import ChatAnswer, ChatMessage


def graded(judge_id: str, request: JudgeRequest, score: float, confidence: float = 0.9, **spent: Any) -> JudgeScore:
    criteria = dict.fromkeys(request.rubric.weights, score)
    return JudgeScore(judge_id, score, confidence, "fixed", criteria, **spent)


class FixedJudge:
    """Gives one score, or fails."""

    def __init__(self, judge_id: str, score: float = 80.0, confidence: float = 0.9, fault: str | None = None) -> None:
        self.judge_id = judge_id
        self.score, self.confidence, self.fault = score, confidence, fault
        self.requests: list[JudgeRequest] = []

    def grade(self, request: JudgeRequest) -> JudgeScore:
        self.requests.append(request)
        if self.fault:
            raise JudgeError(self.fault)
        return graded(self.judge_id, request, self.score, self.confidence)


class HangingJudge(FixedJudge):
    """Waits until it is let go."""

    def __init__(self, judge_id: str) -> None:
        super().__init__(judge_id)
        self.release = threading.Event()

    def grade(self, request: JudgeRequest) -> JudgeScore:
        self.release.wait(20)
        return super().grade(request)


class HandJudge:
    """A waiting judge whose futures the test settles by hand; `begun` holds request, deadline, account and future."""

    def __init__(self, judge_id: str) -> None:
        self.judge_id = judge_id
        self.begun: list[tuple[JudgeRequest, float, str, Future[JudgeScore]]] = []
        self.called = threading.Condition()

    def begin(self, request: JudgeRequest, deadline_s: float, account: str) -> Future[JudgeScore]:
        future: Future[JudgeScore] = Future()
        with self.called:
            self.begun.append((request, deadline_s, account, future))
            self.called.notify_all()
        return future

    def wait_for(self, count: int, timeout_s: float = 10) -> None:
        with self.called:
            assert self.called.wait_for(lambda: len(self.begun) >= count, timeout_s)


class ScriptedModel:
    """A chat model that answers at once with what a function makes of the question, or raises it."""

    name = "scripted:model"

    def __init__(self, reply: Callable[[str, str, Mapping[str, Any]], Any], cost_usd: float = 0.25) -> None:
        self._reply, self._cost_usd = reply, cost_usd
        self.asked: list[tuple[Sequence[ChatMessage], Mapping[str, Any], dict[str, Any]]] = []

    def submit(self, messages: Sequence[ChatMessage], schema: Mapping[str, Any], **options: Any) -> Future[ChatAnswer]:
        self.asked.append((messages, schema, options))
        future: Future[ChatAnswer] = Future()
        content = self._reply(messages[0].content, messages[1].content, schema)
        if isinstance(content, Exception):
            future.set_exception(content)
        elif content is not None:
            future.set_result(ChatAnswer(content, "model-1", 900, 100, self._cost_usd))
        return future

    def complete(self, messages: Sequence[ChatMessage], schema: Mapping[str, Any], **options: Any) -> ChatAnswer:
        return self.submit(messages, schema, **options).result()


def verdict_id(system: str) -> str:
    """Return the verdict id that a system message tells."""
    found = re.search(r"Verdict id: (\S+)", system)
    assert found is not None
    return found.group(1)


def verdict(system: str, schema: Mapping[str, Any], score: float = 80, **changes: Any) -> dict[str, Any]:
    """Return a valid answer to a judge's question, with changes."""
    criteria = schema["properties"]["criteria"]["properties"]
    return {
        "verdict_id": verdict_id(system),
        "reasoning": "Sound and grounded.",
        "criteria": dict.fromkeys(criteria, score),
        "confidence": 0.7,
        "strengths": ["Cites figures"],
        "weaknesses": [],
        "suggestions": ["Name a risk"],
        **changes,
    }
