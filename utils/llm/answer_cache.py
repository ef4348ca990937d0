"""Answers kept by what was asked, so that a replay asks a hosted model each question once.

`utils.llm.hosted` asks it on the loop thread. It never keeps anything but complete, parsed answers, and a file that cannot
be read is as good as none.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.errors import ProviderError
from utils.hashing import content_hash
from utils.llm.base import ChatAnswer, ChatMessage
from utils.logs import logger

_OF_THE_ASKER = ("timeout", "budget", "closed")
"""Faults of whoever asked first: whoever asks the same with more time or money asks anew."""


class AnswerCache:
    """A folder of JSON files, one an answer.

    Parameters
    ----------
    folder : Path
        Made when the first answer is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, asyncio.Future[ChatAnswer | ProviderError]] = {}
        self._cannot_write = False

    @staticmethod
    def key(
        name: str,
        messages: Sequence[ChatMessage],
        schema: Mapping[str, Any],
        temperature: float | None,
        max_output_tokens: int,
        seed: int | None = None,
    ) -> str:
        """Return the SHA-256 of a question and whom it goes to.

        Raises
        ------
        TypeError, ValueError
            If something in it has no JSON form.
        """
        turns = [[message.role, message.content] for message in messages]
        question = [name, turns, dict(schema), temperature, max_output_tokens]
        return content_hash(question if seed is None else [*question, seed])

    async def answer(self, key: str, ask: Callable[[], Awaitable[ChatAnswer]]) -> ChatAnswer:
        """Return what is kept, wait for a call that asks the same, or ask and keep the answer.

        Raises
        ------
        ProviderError
            What `ask` raised, in this call or in the one that was waited for.
        """
        while True:
            kept = self.get(key)
            if kept is not None:
                return kept
            running = self._running.get(key)
            if running is None:
                return await self._ask(key, ask)
            result = await asyncio.shield(running)
            if isinstance(result, ChatAnswer):
                return replace(result, cost_usd=0.0, cached=True)
            if result.kind not in _OF_THE_ASKER:
                raise ProviderError(str(result), kind=result.kind)

    async def _ask(self, key: str, ask: Callable[[], Awaitable[ChatAnswer]]) -> ChatAnswer:
        running: asyncio.Future[ChatAnswer | ProviderError] = asyncio.get_running_loop().create_future()
        self._running[key] = running
        result: ChatAnswer | ProviderError = ProviderError("the call was given up", kind="timeout")
        try:
            result = await ask()
        except ProviderError as error:
            result = error
            raise
        finally:
            del self._running[key]
            running.set_result(result)
        self.put(key, result)
        return result

    def get(self, key: str) -> ChatAnswer | None:
        """Return the answer that is kept; None if there is none, or its file is not whole."""
        try:
            stored = json.loads(self._path(key).read_bytes())
            content, latency_s = stored["content"], float(stored["latency_s"])
            if stored["key"] != key or not isinstance(content, dict) or not math.isfinite(latency_s):
                return None
            return ChatAnswer(
                content=content,
                model=str(stored["model"]),
                input_tokens=int(stored["input_tokens"]),
                output_tokens=int(stored["output_tokens"]),
                latency_s=latency_s,
                cached=True,
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, key: str, answer: ChatAnswer) -> None:
        """Keep an answer; a disk that refuses is told of once, for the answer itself is there.

        Not forced to disk, which would hold up every other call: what a power cut spoils is a miss.
        """
        content = json.dumps(
            {
                "key": key,
                "content": dict(answer.content),
                "model": answer.model,
                "input_tokens": answer.input_tokens,
                "output_tokens": answer.output_tokens,
                "latency_s": answer.latency_s,
            }
        )
        path = self._path(key)
        aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(content, encoding="utf-8")
            aside.replace(path)
        except OSError as error:
            if not self._cannot_write:
                logger.warning("cannot keep answers in %s (%s); they are asked for again", self._folder, error.strerror)
            self._cannot_write = True

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"
