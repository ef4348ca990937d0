"""Which scenario a configuration asks for. Called by the feed factory and by the command that exports one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_pipeline.simulation.scenario import Scenario, read_fields
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

    Raises
    ------
    ConfigError
        If they make no valid scenario.
    """
    fields: dict[str, Any] = {} if seed is None else {"seed": seed}
    if settings.scenario is not None:
        fields |= read_fields(settings.scenario)
    set_beside = {"seed": settings.seed, "sessions": settings.sessions, "symbols": symbols or settings.symbols}
    fields |= {name: value for name, value in set_beside.items() if value is not None}
    scenario = Scenario(**fields)
    return scenario if settings.edge_bps is None else scenario.with_edge(settings.edge_bps)
