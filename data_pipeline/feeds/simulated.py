"""A generated market as a feed: the replay of a history that lies in memory and on no disk.

Called through the factory for ``--feed simulated``. Its figures show that a mechanism works and are never performance; what
it knows of its own future, `expected_return` and `change_points`, is for tests and studies, no part of the product reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, Literal

from data_pipeline.feeds.replay import ReplayFeed
from data_pipeline.simulation.generator import ChangePoint, SimulatedMarket, generate
from data_pipeline.simulation.history import SimulatedHistory
from data_pipeline.simulation.scenario import Scenario
from utils.clock import Clock, WallClock
from utils.errors import ConfigError
from utils.setting_sections import SimulationSettings
from utils.telemetry import NO_TELEMETRY, Telemetry


class SimulatedFeed(ReplayFeed):
    """A simulated market as a `MarketFeed`, with the instants and the failure contract of the replay.

    Parameters
    ----------
    scenario : Scenario
    start, end, calendar, speed, telemetry, clock
        As of `ReplayFeed`.

    Raises
    ------
    ConfigError
        If the scenario or the period cannot work, or reaches beyond the present.
    """

    mode: Literal["live", "replay", "simulated"] = "simulated"

    def __init__(
        self,
        scenario: Scenario,
        start: date | None = None,
        end: date | None = None,
        calendar: str = "XNYS",
        speed: str | float = "max",
        telemetry: Telemetry = NO_TELEMETRY,
        clock: Clock | None = None,
    ) -> None:
        self.market: SimulatedMarket = generate(scenario, calendar)
        last = self.market.sessions[-1]
        if self.market.calendar.close_time(last) > (clock or WallClock()).now():
            raise ConfigError(
                f"scenario.sessions: {scenario.sessions} from {scenario.start} reach to {last}, which lies in the future; "
                "start earlier or generate fewer"
            )
        super().__init__(SimulatedHistory(self.market), None, start, end, calendar, speed, telemetry, clock)

    def identity(self) -> dict[str, Any]:
        """Return the replay's identity with the scenario's content among the hashes."""
        found = super().identity()
        hashes = {**found["data_hashes"], "scenario": self.market.scenario.content_hash}
        return {**found, "data_hashes": dict(sorted(hashes.items()))}

    def expected_return(self, symbol: str, session: date) -> float:
        """Return the expected return of the horizon after a session; see `SimulatedMarket`."""
        return self.market.expected_return(symbol, session)

    def change_points(self) -> tuple[ChangePoint, ...]:
        """Return every switch of the regime, in order."""
        return self.market.change_points()


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
