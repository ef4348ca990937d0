"""Deployment: a version that the learning loop promotes becomes the policy of its agent, or the one that serves goes on.

Called by the learning loop's thread. It never trains and never decides what is better.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from agents.factory import rules_for
from orchestration.coordinator import Coordinator
from training.local_models import LocalModels
from training.model_registry import ModelVersion
from utils.errors import ProviderError, TrainingFailed
from utils.logs import logger
from utils.schema import AgentType
from utils.settings import OrchestratorConfig
from utils.telemetry import Telemetry


class Deployment:
    """Puts versions into service.

    Parameters
    ----------
    config : OrchestratorConfig
    coordinator : Coordinator
    models : LocalModels
        Closed by its owner.
    on_state : callable
        Told when a version cannot be loaded, and when one is again.
    """

    def __init__(
        self,
        config: OrchestratorConfig,
        coordinator: Coordinator,
        models: LocalModels,
        on_state: Callable[[str], None],
    ) -> None:
        self._config = config
        self._coordinator = coordinator
        self._models = models
        self._on_state = on_state
        self._ill: dict[str, str] = {}  # by agent, the version that could not be loaded

    def deploy(self, version: ModelVersion) -> None:
        """Serve an agent by a version from its next decision on; one that cannot be loaded leaves the present one serving.

        The version is loaded beside the one that serves; a decision in hand is finished by the one that began it, which is
        unloaded once nobody asks it any more.
        """
        agent_type: AgentType = version.agent_type  # type: ignore[assignment]
        kind = self._config.policy_of(agent_type)
        if kind not in ("auto", "local"):
            logger.info("%s stays with %s, as configured; %s is registered only", agent_type, kind, version.version)
            return
        started = time.perf_counter()
        try:
            policy = self._models.version_policy(version, agent_type, rules_for(agent_type))
        except ProviderError as error:
            logger.error("%s; %s goes on with %s", error, agent_type, self._coordinator.policies[agent_type])
            self._ill[agent_type] = version.version
            self._on_state(f"degraded: {version.version} cannot be loaded")
            return
        self._coordinator.set_policy(agent_type, policy)
        if self._ill.pop(agent_type, None) is not None:
            left = next(iter(self._ill.values()), None)
            self._on_state(f"degraded: {left} cannot be loaded" if left else "running")
        took_ms = 1000 * (time.perf_counter() - started)
        logger.info("%s is served by local:%s from now on (loaded in %.0f ms)", agent_type, version.version, took_ms)


def open_local_models(
    config: OrchestratorConfig, telemetry: Telemetry, stop: threading.Event, *, replay: bool
) -> LocalModels:
    """Return what local models are opened by; nothing is loaded or built before a seat asks for one.

    A base model that is being built is given up once `stop` is set.
    """

    def tell(step: int, steps: int, loss: float) -> None:  # the first start waits a minute for it
        if step == 1 or step % max(1, steps // 10) == 0:
            logger.info("building the small base model: step %d of %d, loss %.2f", step, steps, loss)
        if stop.is_set():
            raise TrainingFailed("stopped while the small base model was built; the next start builds it anew")

    return LocalModels(config, live=not replay, on_step=tell, telemetry=telemetry)
