"""A generated market as a feed: the replay of a history that lies in memory and on no disk.

Called through the factory for ``--feed simulated``. Its figures show that a mechanism works and are never performance; what
it knows of its own future, `expected_return` and `change_points`, is for tests and studies, no part of the product reads it.
"""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from data_pipeline.feeds.replay import ReplayFeed
from data_pipeline.simulation.generator import ChangePoint, SimulatedMarket, generate
from data_pipeline.simulation.history import SimulatedHistory
from data_pipeline.simulation.scenario import Scenario
from utils.clock import Clock, WallClock
from utils.errors import ConfigError
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
