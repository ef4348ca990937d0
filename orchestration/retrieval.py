"""Experience in decisions: what an agent lived through in markets like this one, as of the decision.

Asked by the coordinator before each agent is; only experiences whose outcome had matured are found. It never changes a
decision by itself: policies that read experiences do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from agents.policies.base import PastExperience, Policy
from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from utils.errors import LibraryUnavailable
from utils.logs import logger
from utils.market_regime_detector import RegimeDetection
from utils.patience import patiently
from utils.schema import MarketSnapshot
from utils.setting_sections import RetrievalSettings
from utils.telemetry import NO_TELEMETRY, Telemetry


class ExperienceMemory:
    """Finds the experiences of an agent that are most like the present state.

    Parameters
    ----------
    library : ExperienceLibraryPostgres
    settings : RetrievalSettings
    waits : bool
        Whether a database that is away is waited for, as a replay must; live the decision goes on without experiences.

    Attributes
    ----------
    stop : threading.Event
        Once set, the next failure is not waited out. Whoever decides puts its own in.
    """

    def __init__(
        self,
        library: ExperienceLibraryPostgres,
        settings: RetrievalSettings,
        *,
        waits: bool,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._library = library
        self._settings = settings
        self._waits = waits
        self._telemetry = telemetry
        self._away = False
        self.stop = threading.Event()

    def serves(self, policy: Policy) -> bool:
        """Whether a policy is given experiences: as configured, by default if it reads them."""
        when = self._settings.when
        return policy.reads_experiences if when == "auto" else when == "always"

    def recall(self, agent_type: str, snapshot: MarketSnapshot, regime: RegimeDetection) -> tuple[PastExperience, ...]:
        """Return the agent's experiences in states like this one, most alike first.

        Raises
        ------
        LibraryUnavailable
            In a replay, if the database is away and `stop` is set.
        """
        found: list[PastExperience] = []

        def search() -> None:
            found[:] = self._search(agent_type, state_before_decision(snapshot, regime), snapshot.as_of)

        started = time.perf_counter()
        if self._waits:
            patiently("the search for experiences", search, self.stop, self._library.revive)
        else:
            try:
                self._refuse_to_drain()
                search()
                self._away = False
            except LibraryUnavailable as error:
                if not self._away:
                    logger.warning("decisions go on without experiences: %s", error)
                self._away = True
        self._telemetry.observe("retrieval_seconds", time.perf_counter() - started)
        self._telemetry.count("experiences_retrieved_total", len(found), agent_type=agent_type)
        return tuple(found)

    def _refuse_to_drain(self) -> None:
        """Raise LibraryUnavailable while writes wait: to search would be to apply them first, however many there are."""
        spool = self._library.spool
        if spool is not None and spool.operations:
            raise LibraryUnavailable(f"{spool.operations} writes still wait for the database")

    def _search(self, agent_type: str, state: Mapping[str, Any], as_of: datetime) -> list[PastExperience]:
        query = self._library.embed(state)
        found = self._library.find_similar_trajectories(query, agent_type, self._settings.limit, as_of=as_of)
        return [
            PastExperience(
                t.trajectory_id, similarity, t.symbol, t.market_regime or "", t.recommendation or "hold", t.confidence,
                bool(t.success), t.reward or 0.0, t.actual_return or 0.0,
            )
            for t, similarity in found
        ]  # fmt: skip


def state_before_decision(snapshot: MarketSnapshot, regime: RegimeDetection) -> dict[str, Any]:
    """Return the part of a market state that is known before any agent has spoken; stored states begin with it."""
    inputs = snapshot.inputs
    return {
        "regime": regime.overall_regime,
        "inputs": {
            "volatility": inputs.volatility,
            "trend_strength": inputs.trend_strength,
            "news_impact": inputs.news_impact,
            "daily_volatility": inputs.daily_volatility,
        },
    }
