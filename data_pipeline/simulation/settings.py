"""Which scenario a configuration asks for. Called by the feed factory and by the command that exports one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_pipeline.simulation.scenario import Scenario
from utils.setting_sections import SimulationSettings


def configured_scenario(
    settings: SimulationSettings, symbols: Sequence[str] | None = None, seed: int | None = None
) -> Scenario:
    """Return the scenario that the settings ask for.

    Parameters
    ----------
    settings : SimulationSettings
        Its file, if any, is the base; what is set beside it wins.
    symbols : sequence of str, optional
        Win over those of the settings.
    seed : int, optional
        Where neither the file nor the settings state one.
    """
    scenario = Scenario() if settings.scenario is None else Scenario.from_yaml(settings.scenario)
    changes: dict[str, Any] = {}
    if settings.seed is not None:
        changes["seed"] = settings.seed
    elif seed is not None and "seed" not in scenario.model_fields_set:
        changes["seed"] = seed
    if settings.sessions is not None:
        changes["sessions"] = settings.sessions
    if symbols or settings.symbols:
        changes["symbols"] = tuple(symbols or settings.symbols or ())
    if settings.edge_bps is not None:
        changes["edges"] = scenario.with_edge(settings.edge_bps).edges
    return scenario.replaced(**changes) if changes else scenario
