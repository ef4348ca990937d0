"""Makes the market of a scenario: dated bars, news and filings, what acting on them is worth, and where regimes switch.

The simulated feed, the export and tests call `generate`. What it returns knows the truth about its future, which is for
yardsticks only: feeds hand on what `history` writes and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, timedelta

from data_pipeline.calendar import ExchangeCalendar
from data_pipeline.simulation.calibration import QUARTER
from data_pipeline.simulation.oracle import refuse_predictable
from data_pipeline.simulation.paths import PRIOR_FILINGS, Paths, simulate
from data_pipeline.simulation.scenario import Agent, Scenario
from utils.errors import ConfigError, nearest

_DAYS_A_SESSION = 1.5
_SPARE = timedelta(days=60)
_BEFORE = (PRIOR_FILINGS + 1) * QUARTER


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """The first session of a new regime."""

    session: date
    old: str
    new: str


@dataclass(frozen=True)
class SimulatedMarket:
    """A generated market.

    Attributes
    ----------
    scenario : Scenario
    calendar : ExchangeCalendar
    sessions : tuple of date
    paths : Paths
        The arrays, of which row i is `sessions[i]` and column j is `scenario.symbols[j]`.
    """

    scenario: Scenario
    calendar: ExchangeCalendar
    sessions: tuple[date, ...]
    paths: Paths
    _rows: dict[date, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._rows.update((session, row) for row, session in enumerate(self.sessions))

    def expected_return(self, symbol: str, session: date) -> float:
        """Return the expected return from the open after `session` to the close `horizon_sessions` later.

        Of the symbol itself, as a fraction, given what is visible at the close of `session` and the regimes to come.
        """
        return float(self.paths.expected[self._row(session), self._column(symbol)])

    def expected_relative_return(self, symbol: str, session: date) -> float:
        """Return the same against the equally weighted mean of all symbols: what an opinion is rewarded by."""
        row = self.paths.expected[self._row(session)]
        return float(row[self._column(symbol)] - row.mean())

    def signal(self, agent: Agent, symbol: str, session: date) -> float:
        """Return an agent's signal -1..1 at the close of `session`."""
        return float(self.paths.signals[agent][self._row(session), self._column(symbol)])

    def regime(self, session: date) -> str:
        """Return the name of the regime of a session."""
        return self.scenario.regimes[self.paths.regimes[self._row(session)]].name

    def change_points(self) -> tuple[ChangePoint, ...]:
        """Return every switch of the regime, in order."""
        names = [self.scenario.regimes[index].name for index in self.paths.regimes]
        return tuple(
            ChangePoint(self.sessions[row], names[row - 1], names[row])
            for row in range(1, len(names))
            if names[row] != names[row - 1]
        )

    def filing_session(self, number: int) -> date:
        """Return the session of a row, or one before the first where the number is negative."""
        return self.sessions[number] if number >= 0 else self.calendar.previous(self.sessions[0], -number)

    def _row(self, session: date) -> int:
        if session not in self._rows:
            raise ConfigError(f"session: {session} is none of {self.sessions[0]} to {self.sessions[-1]}")
        return self._rows[session]

    def _column(self, symbol: str) -> int:
        symbols = self.scenario.symbols
        if symbol not in symbols:
            raise ConfigError(f"symbol: the scenario has no {symbol!r}{nearest(symbol, symbols)}")
        return symbols.index(symbol)


def generate(scenario: Scenario, calendar: str = "XNYS") -> SimulatedMarket:
    """Return the market of a scenario on an exchange's sessions.

    Raises
    ------
    ConfigError
        If the market would be too predictable (see `Scenario.allow_predictable`), or the calendar does not reach so far.
    """
    refuse_predictable(scenario)
    first = scenario.start - timedelta(days=int(_BEFORE * _DAYS_A_SESSION))
    end = scenario.start + timedelta(days=int(scenario.sessions * _DAYS_A_SESSION)) + _SPARE
    # whole years: to ask the calendar takes a process of its own, and the same question is asked once
    end = end.replace(month=12, day=31)
    exchange = ExchangeCalendar(calendar, start=first.replace(month=1, day=1), end=end)
    sessions = tuple(exchange.sessions(scenario.start, end)[: scenario.sessions])
    if len(sessions) < scenario.sessions:
        raise ConfigError(
            f"scenario.sessions: {calendar} has only {len(sessions)} sessions from {scenario.start} to {end}; ask for fewer"
        )
    return SimulatedMarket(scenario, exchange, sessions, simulate(scenario))
