"""Lets versions of one base model answer the same states greedily, with the code that would serve them.

The training children examine candidate and champion with it, studies compare versions. The base model is loaded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from agents.policies.local.adapters import read_adapter
from agents.policies.local.decisions import decision_schema
from agents.policies.local.decoding import generate
from agents.policies.local.engine import Adapter, Question
from agents.policies.local.model import LocalModel
from utils.artifacts import verify


class Examiner:
    """A base model that adapters are put on in turn.

    Parameters
    ----------
    base_dir : Path
    device : str
        cpu, cuda or auto.
    base_sha256 : str, optional
        Digest of its content where it is known; read otherwise.
    """

    def __init__(
        self, base_dir: Path, device: Literal["auto", "cpu", "cuda"] = "auto", base_sha256: str | None = None
    ) -> None:
        self._model = LocalModel(base_dir, device, base_sha256=base_sha256)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model.close()

    def answers(
        self,
        agent_type: str,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        adapter: Path | None,
        on_batch: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[str]:
        """Return an answer a conversation, empty where none ended in time.

        Parameters
        ----------
        adapter : Path, optional
            A sealed folder; None asks the base model itself.
        on_batch : callable
            Told of progress: done, total.

        Raises
        ------
        ArtifactCorrupt
            If the adapter's bytes are not those of its seal.
        """
        version, shelf = None, self._model.adapters
        if adapter is not None:
            version = str(adapter)
            sealed = Adapter(adapter, verify(adapter).digest)
            shelf.add(version, read_adapter(sealed, self._model.base_sha256, shelf.device, shelf.dtype, version))
        schema = decision_schema(agent_type)
        found = generate(
            self._model,
            [Question(tuple(messages), schema) for messages in conversations],
            [version] * len(conversations),
            on_batch=on_batch,
        )
        return [answer if isinstance(answer, str) else "" for answer in found]
