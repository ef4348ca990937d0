"""What the validator learns of conflicts: a restart knows from the database exactly what the run knew in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from monitoring import recovery
from monitoring.production_orchestrator import OrchestratorConfig, ProductionOrchestrator
from orchestration.conflict_history import PastConflict

HISTORY = os.environ.get("REPLAY_DATA_DIR")
SYMBOLS = ("AAPL", "AMZN", "CSCO", "GOOG", "MSFT", "PFE")


def comparable(case: PastConflict) -> tuple[Any, ...]:
    return case.as_of, case.matured_at, case.conflict_type, case.regime, tuple(sorted(case.right.items()))


@pytest.mark.skipif(
    not HISTORY, reason="needs a replay folder with news (REPLAY_DATA_DIR): prices alone bring no conflict"
)
def test_a_restart_knows_the_matured_conflicts_that_the_run_knew(home: Path) -> None:
    config = OrchestratorConfig(
        feed="replay", replay_dir=HISTORY, streaming_symbols=SYMBOLS, replay_start="2014-03-03", replay_end="2014-05-30",
        data_dir=home, enable_learning_loop=False, enable_monitoring=False, enable_streaming=True,
    )  # fmt: skip
    orchestrator = ProductionOrchestrator(config)
    orchestrator.start()
    try:
        assert orchestrator.finished.wait(200)
        assert orchestrator.run is not None
        conflicts = orchestrator.get_component("coordinator").conflicts
        known = [case for cases in conflicts._cases.values() for case in cases]
        library = orchestrator.get_component("experience_library")
        round_trip = 2 * config.execution.one_way_cost
        stored = recovery.recover_conflicts(library, orchestrator.run.run_id, round_trip)
    finally:
        orchestrator.stop()
    assert len(known) >= 10
    assert sorted(map(comparable, known)) == sorted(map(comparable, stored))
