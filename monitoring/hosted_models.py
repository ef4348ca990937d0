"""The hosted models of a run: opened where a key or the configuration asks for them, and probed at the start.

Called by the orchestrator alone. A model that cannot be used never stops the daemon: rules and the local judge go on, and
status, log and metrics say so.
"""

from __future__ import annotations

from judge.configured_panel import judge_configs
from utils.llm.factory import HOSTED, ChatModels, keyed_providers
from utils.logs import logger
from utils.settings import ENVIRONMENT, OrchestratorConfig
from utils.telemetry import Telemetry


def open_chat_models(config: OrchestratorConfig, *, replay: bool, telemetry: Telemetry) -> ChatModels | None:
    """Return what hosted models are called by, None where the configuration has no use for any; warn of judges without a key."""
    keys = keyed_providers(config)
    named = [judge["id"] for judge in judge_configs(config) if judge["provider"] in HOSTED]
    for name in named:
        if name not in keys:
            variable = ENVIRONMENT[f"{name}_api_key"]
            logger.warning("judge %s is left out of every evaluation: there is no key; set %s", name, variable)
    return ChatModels(config, replay=replay, telemetry=telemetry) if keys or named else None


def probe(chat_models: ChatModels | None) -> None:
    """Ask the vendors whether they know the models and take the keys, and warn of each that does not."""
    if chat_models is None:
        return
    found = chat_models.probe()
    states = {name: model["state"] for name, model in chat_models.status()["models"].items()}
    for name, said in found.items():
        if said == "ready":
            logger.info("%s is ready", name)
        elif states[name].startswith("off"):
            logger.warning("%s is off until the next start: %s", name, said)
        else:
            logger.warning("%s could not be checked and is asked all the same: %s", name, said)
