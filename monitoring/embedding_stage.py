"""The stage that embeds stored trajectories where the embedder is too slow for the path of a decision.

Built by the orchestrator. What is left to do is in the database: a trajectory without an embedding, after a restart as
before it. Never embeds what no commit has made durable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from monitoring.stage import Stage

States = Mapping[str, Mapping[str, Any]]
"""Market states by trajectory."""


def embedding_stage(library: ExperienceLibraryPostgres, batch: int, on_state: Callable[[str], None]) -> Stage[States]:
    """Return the stage, not started; at each start it first does what an earlier one left over."""

    def recover() -> None:
        library.backfill_embeddings(batch, stop=stage.thread.heartbeat.stop.is_set)

    stage: Stage[States] = Stage(
        "embedding", lambda states: library.embed_stored(states, batch), recover, library.revive, on_state
    )
    return stage
