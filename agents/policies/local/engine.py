"""The seam between a local policy and whatever runs the model: in this process, or an OpenAI-compatible server.

`LocalModelPolicy` asks an `AnswerSource`; an `AnswerEngine` makes one for each version that is to serve. Nothing here knows
what a state or a decision means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from utils.errors import ProviderError


@dataclass(frozen=True, slots=True)
class Question:
    """One conversation that wants one JSON object.

    Attributes
    ----------
    messages : tuple of mapping
        {"role": system|user|assistant, "content": text}, oldest first.
    schema : mapping
        JSON schema of the answer; its properties are written in their order, without white space.
    temperature : float
        0 takes the likeliest token each time; above it tokens are drawn.
    random_state : int
        Of the draw; equal questions give equal answers.
    """

    messages: tuple[Mapping[str, str], ...]
    schema: Mapping[str, Any]
    temperature: float = 0.0
    random_state: int = 0


@dataclass(frozen=True, slots=True)
class Adapter:
    """A trained adapter on disk: its folder with manifest, and the digest that the registry recorded."""

    folder: Path
    sha256: str


class AnswerSource(Protocol):
    """One version of a local model, ready to answer.

    Failure contract: one entry a question, in order: the text, or the `ProviderError` for which there is none (a prompt
    longer than the context is of kind request). What concerns all questions alike is raised. An answer comes from this
    version alone, whatever is swapped meanwhile.

    Attributes
    ----------
    version : str
        Immutable name.
    waits : bool
        Whether answers come from a server; see `Policy.waits`.
    """

    version: str
    waits: bool

    def answer(self, questions: Sequence[Question], *, deadline_s: float | None = None) -> list[str | ProviderError]:
        """Answer every question.

        Raises
        ------
        ProviderError
            If the model cannot be asked at all: closed, out of memory, the server away.
        """
        ...

    def close(self) -> None:
        """Release the version once nobody asks it any more; may be called twice. Answers in hand are finished."""
        ...


class AnswerEngine(Protocol):
    """Opens versions of one base model beside each other.

    Failure contract: `open` either gives a source that answers, or raises and leaves every other version as it was.
    """

    def open(self, version: str, adapter: Adapter | None = None) -> AnswerSource:
        """Make a version ready beside those that serve.

        Parameters
        ----------
        version : str
            Never used for other weights, not even later.
        adapter : Adapter, optional
            None is the base model itself.

        Raises
        ------
        ProviderError
            If the adapter is damaged, belongs to another base model, or cannot be loaded.
        """
        ...

    def close(self) -> None:
        """End every version and free the model; may be called twice."""
        ...
