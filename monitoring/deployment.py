"""Deployment: a version that the learning loop promotes becomes the policy of its agent, or the one that serves goes on.

Called by the learning loop's thread. It never trains and never decides what is better.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestration.coordinator import Coordinator
from training.model_registry import ModelVersion
from utils.errors import ProviderError
from utils.logs import logger
from utils.settings import OrchestratorConfig


class Deployment:
    """Puts versions into service.

    Parameters
    ----------
    config : OrchestratorConfig
    coordinator : Coordinator
    on_state : callable
        Told when a version cannot be loaded.
    """

    def __init__(self, config: OrchestratorConfig, coordinator: Coordinator, on_state: Callable[[str], None]) -> None:
        self._config = config
        self._coordinator = coordinator
        self._on_state = on_state

    def deploy(self, version: ModelVersion) -> None:
        """Serve an agent by a version from its next decision on; one that cannot be loaded leaves the present one serving."""
        agent_type = version.agent_type
        if self._config.agents not in ("auto", "local"):
            logger.info(
                "%s stays with %s, as configured; %s is registered only",
                agent_type,
                self._config.agents,
                version.version,
            )
            return
        from agents.factory import local_policy

        try:
            policy = local_policy(agent_type, version.version, version.base_dir, version.path, version.sha256)
        except ProviderError as error:
            logger.error("%s; %s goes on with %s", error, agent_type, self._coordinator.policies[agent_type])
            self._on_state(f"degraded: {version.version} cannot be loaded")
            return
        self._coordinator.set_policy(agent_type, policy)
        logger.info("%s is served by local:%s from now on", agent_type, version.version)
