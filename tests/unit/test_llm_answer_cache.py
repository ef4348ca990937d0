"""Kept answers: what makes two questions the same, and files that are not whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from utils.llm.answer_cache import AnswerCache
from utils.llm.base import ChatAnswer, ChatMessage

ANSWER = ChatAnswer({"a": [1.5, "é"]}, "m-1", 10, 5, 0.25, 1.5)
QUESTION: dict[str, Any] = {
    "name": "v:m", "messages": [ChatMessage("user", "q")], "schema": {"b": 1, "a": 2}, "temperature": None,
    "max_output_tokens": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"name": "v:n"}, {"messages": [ChatMessage("system", "q")]}, {"messages": [ChatMessage("user", "q ")]},
        {"schema": {"a": 2}}, {"temperature": 0.0}, {"max_output_tokens": 65}, {"seed": 0}, {"seed": 1},
    ],
)  # fmt: skip
def test_a_question_that_differs_in_anything_is_another(change: dict[str, Any]) -> None:
    assert AnswerCache.key(**{**QUESTION, **change}) != AnswerCache.key(**QUESTION)


def test_the_order_of_the_schemas_keys_does_not_matter() -> None:
    assert AnswerCache.key(**{**QUESTION, "schema": {"a": 2, "b": 1}}) == AnswerCache.key(**QUESTION)


def test_an_answer_comes_back_as_it_was_at_no_cost(tmp_path: Path) -> None:
    key = AnswerCache.key(**QUESTION)
    AnswerCache(tmp_path / "new").put(key, ANSWER)
    assert AnswerCache(tmp_path / "new").get(key) == ChatAnswer(ANSWER.content, "m-1", 10, 5, 0.0, 1.5, True)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "", lambda text: text[:-5], lambda text: "[]", lambda text: text.replace('"model"', '"mode"'),
        lambda text: text.replace("1.5}", "NaN}"), lambda text: json.dumps({**json.loads(text), "content": [1]}),
        lambda text: json.dumps({**json.loads(text), "key": "0" * 64}), lambda text: "[" * 100_000,
    ],
)  # fmt: skip
def test_a_file_that_is_not_whole_is_a_miss_and_is_replaced(tmp_path: Path, spoil: Any) -> None:
    cache, key = AnswerCache(tmp_path), AnswerCache.key(**QUESTION)
    cache.put(key, ANSWER)
    (path,) = tmp_path.rglob("*.json")
    path.write_text(spoil(path.read_text()))
    assert cache.get(key) is None
    cache.put(key, ANSWER)
    assert cache.get(key) is not None


def test_a_folder_that_cannot_be_written_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = AnswerCache(tmp_path / "file")
    cache.put("ab" * 32, ANSWER)
    cache.put("cd" * 32, ANSWER)
    assert len([record for record in caplog.records if "cannot keep answers" in record.getMessage()]) == 1
    assert cache.get("ab" * 32) is None
