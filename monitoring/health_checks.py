"""The active check of each component, for the health checker: a query, a heartbeat, the state that a part reports.

Built by the orchestrator once everything has started. A closed market and a finished replay are healthy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from monitoring.health_checker import Check
from monitoring.supervision import SupervisedThread

SILENT_AFTER_S = 120.0
"""Without a sign of life from the decision thread for longer, it is ill."""


def active_checks(
    states: Callable[[], Mapping[str, str]],
    library: ExperienceLibraryPostgres,
    lock_held: Callable[[], bool],
    streaming: SupervisedThread | None,
) -> dict[str, Check]:
    """Return the check of each component, by name.

    Parameters
    ----------
    states : callable
        Gives the present state of each component.
    library : ExperienceLibraryPostgres
    lock_held : callable
        Whether this is still the one orchestrator of its database.
    streaming : SupervisedThread or None
    """

    def ping() -> str | None:
        library.ping()
        return None if lock_held() else "the lock of the one orchestrator is not held"

    def state_of(name: str) -> Check:
        def check() -> str | None:
            state = states().get(name, "")
            return state if state.startswith(("failed", "degraded")) else None

        return check

    def heartbeat() -> str | None:
        if streaming is None or streaming.state in ("finished", "stopped"):
            return None
        age = streaming.heartbeat.age_s
        return state_of("streaming")() or (f"no sign of life for {age:.0f} s" if age > SILENT_AFTER_S else None)

    checks: dict[str, Check] = {name: state_of(name) for name in states()}
    checks["experience_library"] = ping
    if streaming is not None:
        checks["streaming"] = heartbeat
    return checks
