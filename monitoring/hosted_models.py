"""The hosted models of a run: who asks which, and whether their vendors answer at the start.

Called by the orchestrator alone. A model that cannot be used never stops the daemon: rules and the local judge go on, and
status, log and metrics say so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from agents.factory import hosted_policy
from agents.policies.base import Policy
from utils.errors import ConfigError
from utils.llm.factory import HOSTED, ChatModels
from utils.logs import logger
from utils.schema import AGENT_TYPES
from utils.settings import ENVIRONMENT, OrchestratorConfig
from utils.telemetry import Telemetry


def open_chat_models(config: OrchestratorConfig, *, replay: bool, telemetry: Telemetry) -> ChatModels | None:
    """Return what hosted models are called by, None where the configuration has no use for any."""
    named = config.judges.replace(",", " ").split()
    wanted = config.agents in HOSTED or any(name in HOSTED for name in named)
    keys = any(getattr(config, f"{provider}_api_key") is not None for provider in HOSTED)
    return ChatModels(config, replay=replay, telemetry=telemetry) if wanted or keys else None


def prompt_key(config: OrchestratorConfig, *, replay: bool) -> bytes | None:
    """Return what the boundaries around untrusted text derive from: fixed in a replay, whose prompts must repeat, else None."""
    if not replay:
        return None
    return hashlib.sha256(f"boundaries of untrusted text|{config.random_state}".encode()).digest()


def agents_provider(config: OrchestratorConfig) -> str | None:
    """Return the provider that thinks for the agents: the configured one, with ``auto`` the first with a key, else None.

    Raises
    ------
    ConfigError
        If a provider is configured and has no key.
    """
    if config.agents in HOSTED:
        if getattr(config, f"{config.agents}_api_key") is None:
            variable = ENVIRONMENT[f"{config.agents}_api_key"]
            raise ConfigError(f"agents: {config.agents!r} needs a key; set {variable} or choose auto or rules")
        return config.agents
    if config.agents != "auto":
        return None
    return next((p for p in HOSTED if getattr(config, f"{p}_api_key") is not None), None)


def hosted_agents(
    config: OrchestratorConfig, chat_models: ChatModels | None, rules: Mapping[str, Policy], key: bytes | None
) -> dict[str, Policy]:
    """Return the policy of each agent that a hosted model thinks for, empty where none does."""
    provider = agents_provider(config)
    if provider is None or chat_models is None:
        return {}
    model = chat_models.model(provider)
    return {
        name: hosted_policy(name, model, rules[name], deadline_s=config.agent(name).timeout_s, boundary_key=key)
        for name in AGENT_TYPES
        if name in rules
    }


def probe(chat_models: ChatModels | None) -> None:
    """Ask the vendors whether they know the models and take the keys, and warn of each that does not."""
    if chat_models is None:
        return
    for name, said in chat_models.probe().items():
        if said == "ready":
            logger.info("%s is ready", name)
        else:
            logger.warning("%s is not used for now: %s", name, said)
