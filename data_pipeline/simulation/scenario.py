"""What a simulated market is made from: regimes, noise, and the edge that is planted for each analyst in each regime.

Read from a YAML file or made in code; frozen, validated, and identified by its content. It holds no randomness of its own:
equal scenarios give equal markets.
"""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from utils.errors import ConfigError, nearest
from utils.hashing import content_hash
from utils.setting_sections import explained

if TYPE_CHECKING:
    from data_pipeline.simulation.oracle import Oracle

Agent = Literal["news", "technical", "fundamental"]
AGENTS: tuple[Agent, ...] = ("news", "technical", "fundamental")

MAX_ACCURACY = 0.60
"""Share of right calls beyond which a daily market is not credible, whatever is known of it."""

NEWS_SESSIONS = 3
"""Sessions over which a day's news is absorbed; no horizon may be shorter."""

MEAN_ARTICLES = 2.5
"""Articles on a session with news: one or three to five, equally often."""

_SYMBOL = re.compile(r"^[A-Z0-9][A-Z0-9.\-]{0,19}$")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MAX_GENERATED = len(_LETTERS) ** 2

BasisPoints = Annotated[float, Field(ge=-500, le=500, allow_inf_nan=False)]


def generated_symbols(count: int) -> tuple[str, ...]:
    """Return `count` tickers of no company, up to 676: ``SIMA``, ``SIMB``, and from the 27th on two letters.

    Raises
    ------
    ConfigError
        If there are not so many.
    """
    if not 1 <= count <= _MAX_GENERATED:
        raise ConfigError(f"symbols: {count} tickers cannot be generated; ask for 1 to {_MAX_GENERATED} or name them")
    if count <= len(_LETTERS):
        return tuple(f"SIM{letter}" for letter in _LETTERS[:count])
    return tuple(f"SI{first}{second}" for first in _LETTERS for second in _LETTERS)[:count]


class Regime(BaseModel):
    """A state of the whole market.

    Attributes
    ----------
    drift_bps : float
        Expected return of every symbol, basis points a session.
    volatility : float
        Standard deviation of a symbol's daily log return (fraction).
    mean_sessions : float
        Mean length of a spell; its end is drawn, geometrically, and the next regime is any other one.
    starts : tuple of int
        Sessions, from 0, at which the regime begins. Where any regime has them, nothing is drawn.
    news_rate : float
        Mean number of articles a session and symbol, 0..2.5.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
    drift_bps: Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)] = 0.0
    volatility: Annotated[float, Field(ge=0.002, le=0.1, allow_inf_nan=False)] = 0.014
    mean_sessions: Annotated[float, Field(ge=2, allow_inf_nan=False)] = 100.0
    starts: tuple[Annotated[int, Field(ge=0)], ...] = ()
    news_rate: Annotated[float, Field(ge=0, le=MEAN_ARTICLES, allow_inf_nan=False)] = 1.0


CALM = Regime(name="calm", drift_bps=2.0, volatility=0.012, mean_sessions=120.0, news_rate=0.75)
TURBULENT = Regime(name="turbulent", drift_bps=-2.0, volatility=0.02, mean_sessions=60.0, news_rate=1.5)

_EDGES_OF_MANY: dict[Agent, dict[str, float]] = {
    "news": {"calm": 5.0, "turbulent": 60.0},
    "technical": {"calm": 30.0, "turbulent": 10.0},
    "fundamental": {"calm": 15.0, "turbulent": 15.0},
}


def default_edges(symbols: int) -> dict[Agent, dict[str, float]]:
    """Return the edges of the default regimes, in basis points: those against a market of eight symbols, fitted to its size.

    The fewer symbols, the more of each stands in the mean that it is measured against; one alone has no edge.
    """
    share = (symbols - 1) / symbols / (7 / 8)
    return {
        agent: {name: round(edge * share, 1) for name, edge in by_regime.items()}
        for agent, by_regime in _EDGES_OF_MANY.items()
    }


class Scenario(BaseModel):
    """A simulated market, entirely.

    Attributes
    ----------
    seed : int
        Of every draw.
    symbols : tuple of str
        Two or more where an edge is planted: edges are relative to the market.
    sessions : int
        Sessions that are generated.
    start : date
        The first session is the first on or after it. The dates mean nothing, but must lie in the past to be replayed.
    regimes : tuple of Regime
        The first begins, unless they have fixed starts.
    market_share : float
        Share of each symbol's variance that all have in common, 0..0.9: the correlation between two symbols.
    edges : dict of agent to dict of regime to float
        Basis points that a decision of `horizon_sessions` earns on average against the equally weighted market, before
        costs, where it acts on the side of the agent's signal (`data_pipeline.simulation.signals`); 0 where not named,
        negative where the signal misleads. Decisions on which the signal is 0 do not count. Where nothing is given, those
        of the default regimes, see `default_edges`; where other regimes are given, give their edges too.
    horizon_sessions : int
        From the open after the decision to the close that many sessions on.
    shuffled : bool
        A coin decides, for every session and symbol, on the side of the planted part: it has the same size and, being
        symmetric, the same distribution, but no signal says anything about it. For studies without an edge.
    allow_predictable : bool
        Accept a market whose direction can be told more often than `MAX_ACCURACY`.

    Raises
    ------
    ConfigError
        Naming the field, the fault and the remedy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    symbols: tuple[str, ...] = generated_symbols(8)
    sessions: Annotated[int, Field(ge=10, le=20_000)] = 500
    start: date = date(2005, 1, 3)
    regimes: Annotated[tuple[Regime, ...], Field(min_length=1)] = (CALM, TURBULENT)
    market_share: Annotated[float, Field(ge=0, le=0.9, allow_inf_nan=False)] = 0.3
    edges: dict[Agent, dict[str, BasisPoints]] = Field(
        default_factory=lambda given: default_edges(len(given["symbols"]))
    )
    horizon_sessions: Annotated[int, Field(ge=NEWS_SESSIONS, le=60)] = 5
    shuffled: bool = False
    allow_predictable: bool = False

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ConfigError(
                "; ".join(f"scenario.{explained(item)}" for item in error.errors(include_url=False))
            ) from None

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Read a scenario from a file; a ConfigError if it cannot be read or holds no valid scenario."""
        return cls(**read_fields(path))

    @field_validator("symbols", mode="before")
    @classmethod
    def _tickers(cls, value: Any) -> Any:
        names = [str(name).upper() for name in ([value] if isinstance(value, str) else value)]
        for name in names:
            if not _SYMBOL.match(name):
                raise ValueError(f"{name!r} is not a ticker symbol: letters, digits, '.' and '-', at most 20")
        if not names:
            raise ValueError("name at least one symbol, for example SIMA")
        return tuple(sorted(dict.fromkeys(names)))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [regime.name for regime in self.regimes]
        if len(set(names)) != len(names):
            raise ValueError(f"regimes: a name stands twice among {', '.join(names)}")
        for agent, by_regime in self.edges.items():
            for name in by_regime:
                if name not in names:
                    raise ValueError(f"edges.{agent}: there is no regime {name!r}{nearest(name, names)}")
        if len(self.symbols) < 2 and any(edge for by_regime in self.edges.values() for edge in by_regime.values()):
            raise ValueError("symbols: an edge is relative to the market, so name two or more, or set the edges to 0")
        starts = sorted(start for regime in self.regimes for start in regime.starts)
        if starts and starts[0] != 0:
            raise ValueError("regimes: where starts are given, one regime must start at session 0")
        if len(set(starts)) != len(starts):
            raise ValueError("regimes: two regimes start at the same session")
        return self

    @property
    def content_hash(self) -> str:
        """The SHA-256 of everything that the scenario states."""
        return content_hash(self.model_dump(mode="json"))

    def edge(self, agent: Agent, regime: str) -> float:
        """Return the planted edge as a fraction a decision."""
        return self.edges.get(agent, {}).get(regime, 0.0) / 1e4

    def replaced(self, **changes: Any) -> Scenario:
        """Return the scenario with some fields changed, validated anew."""
        return Scenario(**{**self.model_dump(), **changes})

    def with_edge(self, edge_bps: float) -> Scenario:
        """Return the scenario with the same edge for every agent in every regime; 0 leaves nothing to be earned."""
        return self.replaced(edges={agent: {r.name: edge_bps for r in self.regimes} for agent in AGENTS})

    def oracle(self, round_trip_cost: float = 0.0016, replicates: int = 24) -> Oracle:
        """Return what the Bayes-optimal policy that sees all signals achieves; see `oracle.consult`."""
        from data_pipeline.simulation.oracle import consult

        return consult(self, round_trip_cost, replicates)


def read_fields(path: Path) -> dict[str, Any]:
    """Return the fields of a scenario that a YAML file states, not validated yet.

    Raises
    ------
    ConfigError
        If it cannot be read or does not hold keys and values.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"simulation.scenario: {path}: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"simulation.scenario: {path}: the file must hold keys and values of a scenario")
    return {str(key): value for key, value in content.items()}
