"""Names the market's regime from three scale-free inputs, says how sure that name is, and which agents it calls for.

The coordinator, the supervisor and every policy ask it. It is stateless: equal inputs give equal answers, and it never
looks at prices, time or earlier labels.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from utils.errors import ConfigError, nearest
from utils.schema import JUNIOR_AGENTS, RegimeInputs

VOLATILITY_LEVELS = ("low", "medium", "high", "extreme")
TREND_LEVELS = ("strong_bear", "bear", "sideways", "bull", "strong_bull")
NEWS_LEVELS = ("low", "medium", "high")

_TURBULENT = frozenset({"high", "extreme"})
_STRONG = frozenset({"strong_bear", "strong_bull"})
_RISING = frozenset({"bull", "strong_bull"})


@dataclass(frozen=True, slots=True)
class RegimeRule:
    """One row of the table: `label` holds where the levels (volatility, trend, news) meet `condition`."""

    label: str
    condition: Callable[[str, str, str], bool]


REGIME_TABLE: tuple[RegimeRule, ...] = (
    RegimeRule("crash", lambda v, t, n: v == "extreme" and (n == "high" or t == "strong_bear")),
    RegimeRule("news_driven_volatility", lambda v, t, n: v in _TURBULENT and n == "high"),
    RegimeRule("recovery", lambda v, t, n: v in _TURBULENT and t in _RISING),
    RegimeRule("range_bound_high_vol", lambda v, t, n: v in _TURBULENT and t == "sideways"),
    RegimeRule("high_volatility", lambda v, t, n: v in _TURBULENT),
    RegimeRule("strong_trend_low_vol", lambda v, t, n: v == "low" and t in _STRONG),
    RegimeRule("strong_trend_high_vol", lambda v, t, n: v == "medium" and t in _STRONG),
    RegimeRule("bull_market", lambda v, t, n: t == "bull"),
    RegimeRule("bear_market", lambda v, t, n: t == "bear"),
    RegimeRule("range_bound_low_vol", lambda v, t, n: v == "low" and t == "sideways"),
    RegimeRule("neutral", lambda v, t, n: v == "medium" and t == "sideways"),
)
"""The labels in order of precedence; the first row whose condition holds names the regime."""

REGIME_LABELS: tuple[str, ...] = tuple(rule.label for rule in REGIME_TABLE)

_RANGES = {"volatility": (0.0, 1.0), "trend_strength": (-1.0, 1.0), "news_impact": (0.0, 1.0)}

_Open = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class RegimeConfig(BaseModel):
    """Where one level ends and the next begins.

    `trend` holds the edges of the rising side (bull, strong_bull), the falling side mirrors them. `confidence_scale` is
    the distance to the nearest other label from which on the confidence is full.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    volatility: tuple[_Open, _Open, _Open] = (0.25, 0.5, 0.75)
    trend: tuple[_Open, _Open] = (0.2, 0.6)
    news: tuple[_Open, _Open] = (0.3, 0.7)
    confidence_scale: _Open = 0.15

    @model_validator(mode="after")
    def _ascending(self) -> RegimeConfig:
        for name in ("volatility", "trend", "news"):
            edges = getattr(self, name)
            if list(edges) != sorted(set(edges)):
                raise ValueError(f"{name}: the edges {edges} must ascend")
        return self


@dataclass(frozen=True, slots=True)
class RegimeDetection:
    """A regime: the three levels, the label they give, and how far the inputs are from another label.

    Attributes
    ----------
    confidence : float
        0.5 on the border to another label, 1 where no input is within `confidence_scale` of changing it.
    recommended_agents : tuple of str
        The juniors whose evidence matters most in this regime.
    """

    volatility_regime: str
    trend_regime: str
    news_impact_regime: str
    overall_regime: str
    confidence: float
    recommended_agents: tuple[str, ...]
    reasoning: str


@dataclass(frozen=True, slots=True)
class _Cell:
    """What holds for one combination of levels; `exits` are the edges (low, high) an input beyond which the label changes."""

    label: str
    agents: tuple[str, ...]
    exits: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    reasoning: str


class MarketRegimeDetector:
    """Turns regime inputs into a `RegimeDetection`.

    Parameters
    ----------
    config : RegimeConfig or mapping, optional
        Other edges between the levels.

    Raises
    ------
    ConfigError
        If the configuration has an unknown key, or edges that do not ascend.
    """

    def __init__(self, config: RegimeConfig | Mapping[str, Any] | None = None) -> None:
        self.config = _config(config)
        self._volatility_edges = self.config.volatility
        inner, outer = self.config.trend
        self._falling, self._rising = (-outer, -inner), (inner, outer)
        self._news_edges = self.config.news
        self._cells = self._tabulate()

    def detect_regime(self, data: RegimeInputs | Mapping[str, Any]) -> RegimeDetection:
        """Return the regime of one set of inputs.

        Parameters
        ----------
        data : RegimeInputs or mapping
            A mapping has `volatility` (0..1), `trend_strength` (-1..1) and `news_impact` (0..1).

        Raises
        ------
        ValueError
            If an input is missing, not a finite number or out of its range; the message names it.
        """
        if isinstance(data, RegimeInputs):
            values = (data.volatility, data.trend_strength, data.news_impact)
            flags = data.flags
        else:
            values, flags = _values_of(data)
        volatility, trend, news = values
        if not (0.0 <= volatility <= 1.0 and -1.0 <= trend <= 1.0 and 0.0 <= news <= 1.0):
            _explain(values)
        v, t, n = self._levels(volatility, trend, news)
        cell = self._cells[v][t][n]
        distance = math.inf
        for value, (low, high) in zip(values, cell.exits, strict=True):
            distance = min(distance, value - low, high - value)
        confidence = 0.5 + 0.5 * min(1.0, distance / self.config.confidence_scale)
        unknown = f" Unknown and held at its default: {', '.join(flags)}." if flags else ""
        return RegimeDetection(
            VOLATILITY_LEVELS[v],
            TREND_LEVELS[t],
            NEWS_LEVELS[n],
            cell.label,
            round(confidence, 6),
            cell.agents,
            f"{cell.reasoning} Volatility rank {volatility:.2f}, trend strength {trend:.2f}, news impact {news:.2f}.{unknown}",
        )

    def _levels(self, volatility: float, trend: float, news: float) -> tuple[int, int, int]:
        """Return the positions of the levels. Edges belong to the upper level, for the trend to the one nearer zero."""
        trend_level = bisect_right(self._falling, trend) + bisect_left(self._rising, trend)
        return bisect_right(self._volatility_edges, volatility), trend_level, bisect_right(self._news_edges, news)

    def _tabulate(self) -> list[list[list[_Cell]]]:
        """Return the cells by position of volatility, trend and news."""
        sizes = (len(VOLATILITY_LEVELS), len(TREND_LEVELS), len(NEWS_LEVELS))
        labels = {
            position: _label(*_names(position)) for position in itertools.product(*(range(size) for size in sizes))
        }
        edges = (self._volatility_edges, (*self._falling, *self._rising), self._news_edges)

        def exits(position: tuple[int, ...], axis: int) -> tuple[float, float]:
            found = []
            for step in (-1, 1):
                level, edge = position[axis], math.inf * step
                while 0 <= level + step < sizes[axis]:
                    level += step
                    if labels[(*position[:axis], level, *position[axis + 1 :])] != labels[position]:
                        edge = edges[axis][level if step < 0 else level - 1]
                        break
                found.append(edge)
            return found[0], found[1]

        def cell(position: tuple[int, ...]) -> _Cell:
            v, t, n = _names(position)
            label = labels[position]
            reasoning = f"{label}: {v} volatility, {t.replace('_', ' ')} trend, {n} news impact."
            return _Cell(
                label,
                _recommended(v, t, n),
                (exits(position, 0), exits(position, 1), exits(position, 2)),
                reasoning,
            )

        return [[[cell((v, t, n)) for n in range(sizes[2])] for t in range(sizes[1])] for v in range(sizes[0])]


def detect_regime(data: RegimeInputs | Mapping[str, Any]) -> dict[str, str]:
    """Return the three levels and the label under the names of `RegimeDetection`, with the default configuration.

    Raises
    ------
    ValueError
        As `MarketRegimeDetector.detect_regime`.
    """
    found = _DEFAULT.detect_regime(data)
    return {
        "volatility_regime": found.volatility_regime,
        "trend_regime": found.trend_regime,
        "news_impact_regime": found.news_impact_regime,
        "overall_regime": found.overall_regime,
    }


def _names(position: tuple[int, ...]) -> tuple[str, str, str]:
    v, t, n = position
    return VOLATILITY_LEVELS[v], TREND_LEVELS[t], NEWS_LEVELS[n]


def _label(volatility: str, trend: str, news: str) -> str:
    return next(rule.label for rule in REGIME_TABLE if rule.condition(volatility, trend, news))


def _recommended(volatility: str, trend: str, news: str) -> tuple[str, ...]:
    if news == "high" or volatility in _TURBULENT:
        return ("news", "fundamental")
    if (trend in _STRONG and volatility == "low") or trend == "sideways":
        return ("technical", "fundamental")
    return tuple(JUNIOR_AGENTS)


def _config(config: RegimeConfig | Mapping[str, Any] | None) -> RegimeConfig:
    if config is None or isinstance(config, RegimeConfig):
        return config or RegimeConfig()
    try:
        return RegimeConfig.model_validate(dict(config))
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            raise ConfigError(f"regime: unknown key {key!r}{nearest(key, RegimeConfig.model_fields)}") from None
        raise ConfigError(f"regime {key}: {item['msg'].removeprefix('Value error, ')}".replace(" :", ":")) from None


def _values_of(data: Mapping[str, Any]) -> tuple[tuple[float, float, float], tuple[str, ...]]:
    """Return the three inputs of a mapping, and the names of those it flags as unknown."""
    values = []
    for name in _RANGES:
        value = data.get(name)
        if value is None or isinstance(value, bool) or not hasattr(value, "__float__"):
            raise ValueError(f"{name}: a number is needed, got {value!r}")
        values.append(float(value))
    return (values[0], values[1], values[2]), tuple(str(flag) for flag in data.get("flags") or ())


def _explain(values: tuple[float, float, float]) -> None:
    """Raise for the first input that is out of its range."""
    for value, (name, (low, high)) in zip(values, _RANGES.items(), strict=True):
        if not low <= value <= high:
            raise ValueError(f"{name}: must be a number from {low:g} to {high:g}, got {value!r}")


_DEFAULT = MarketRegimeDetector()
