"""Which juniors look at a symbol: all that are enabled, every time.

The coordinator asks it at every decision. A supervisor that learns whom to ask stands behind the same two methods.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from utils.errors import ConfigError, nearest
from utils.market_regime_detector import RegimeDetection
from utils.schema import JUNIOR_AGENTS


class FixedRouter:
    """Routes to the same agents whatever the regime, in the order of `JUNIOR_AGENTS`.

    Parameters
    ----------
    agents : iterable of str
        Names of the enabled juniors.

    Raises
    ------
    ConfigError
        If a name is none of a junior, or there is no name.
    """

    def __init__(self, agents: Iterable[str] = JUNIOR_AGENTS) -> None:
        names = set(agents)
        for name in sorted(names - set(JUNIOR_AGENTS)):
            raise ConfigError(f"agents: {name!r} is no junior agent{nearest(name, JUNIOR_AGENTS)}")
        if not names:
            raise ConfigError("agents: enable at least one of news, technical, fundamental")
        self._agents: tuple[str, ...] = tuple(name for name in JUNIOR_AGENTS if name in names)
        self._routed = 0

    def route(self, regime: RegimeDetection) -> tuple[str, ...]:
        """Return the agents to run."""
        self._routed += 1
        return self._agents

    def status(self) -> dict[str, Any]:
        """Return what people are shown: strategy, agents, number of decisions routed."""
        return {"strategy": "fixed", "agents": list(self._agents), "routed": self._routed}
