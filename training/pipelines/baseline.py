"""What a candidate has to beat where no version serves: the configured policy, on every held-out decision that it took.

Called by the training pipelines. Decisions of a version that has been withdrawn since are no yardstick: they count as what the
configured policy said in its shadow, and not at all where it said nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from agents.policies.local.decisions import ParsedDecision
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library import shadow_pairs
from data_pipeline.library.trajectories import Trajectory
from training.model_registry import ModelRegistry
from training.pipelines.gate_evidence import Call, stored_call


def configured_calls(
    library: ExperienceLibraryPostgres, agent_type: str, rows: Sequence[Trajectory]
) -> dict[str, Call]:
    """Return by trajectory id the opinion of the configured policy; a row that it had none on is left out."""
    versions = [f"local:{v.version}" for v in ModelRegistry(library).versions() if v.agent_type == agent_type]
    withdrawn = [row.trajectory_id for row in rows if row.policy in versions]
    calls = {row.trajectory_id: stored_call(row) for row in rows if row.policy not in versions}
    if withdrawn:
        with library.connection() as connection, connection.cursor() as cursor:
            beside = shadow_pairs.said_beside(cursor, withdrawn, versions)
        for identity, side in beside.items():
            if not side.abstained:
                stated = ParsedDecision(side.recommendation, side.confidence, {})
                calls[identity] = Call(side.recommendation, side.confidence, stated=stated)
    return calls


def why_incomparable(
    library: ExperienceLibraryPostgres, agent_type: str, rows: Sequence[Trajectory], sessions: int, decisions: int
) -> str | None:
    """Return in words why too few held-out decisions are left to compare a candidate with; None where they suffice.

    Parameters
    ----------
    sessions, decisions : int
        That the gate asks for at least.
    """
    calls = configured_calls(library, agent_type, rows)
    usable = [row for row in rows if row.trajectory_id in calls]
    days = {row.as_of.date() for row in usable if row.as_of is not None}
    if len(usable) == len(rows) or (len(days) >= sessions and len(usable) >= decisions):
        return None
    return (
        f"of the held-out decisions a withdrawn version took all but {len(usable)} on {len(days)} sessions; the gate compares "
        f"with the configured policy on at least {decisions} on {sessions}, so it has to serve for longer"
    )
