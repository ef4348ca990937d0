"""Which judges a configuration seats: one for each hosted model that there is a key for, and the local one.

The daemon and notebooks build their panel here; how judges grade and how grades are combined stands elsewhere. Hosted
judges grade the opinions of ``judge.hosted_agents``, the local one everyone's.
"""

from __future__ import annotations

from typing import Any

from judge.multi_judge_consensus import MultiJudgeConsensus
from utils.errors import ConfigError, nearest
from utils.llm.factory import HOSTED, ChatModels, keyed_providers
from utils.settings import OrchestratorConfig

LOCAL = "local"


def judge_configs(config: OrchestratorConfig) -> list[dict[str, Any]]:
    """Return an entry {id, model, provider, weight} for each judge that `judges` names, of hosted ones with their agents.

    ``auto`` is a judge for each key plus the local one. A judge that is named without a key is seated and left out of
    every evaluation, visibly.

    Raises
    ------
    ConfigError
        If a name is none of a judge or stands twice, or a weight belongs to nobody.
    """
    names = config.judges.replace(",", " ").split()
    if names == ["auto"] or not names:
        names = [*keyed_providers(config), LOCAL]
    known = (*HOSTED, LOCAL)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"judges: {name!r} is no judge; name auto or some of {', '.join(known)}{nearest(name, known)}"
            )
        if names.count(name) > 1:
            raise ConfigError(f"judges: {name} stands twice; name each judge once")
    for name in config.judge.weights:
        if name not in known:
            raise ConfigError(f"judge.weights: {name!r} is no judge{nearest(name, known)}")
    return [
        {
            "id": name,
            "model": _model(config, name),
            "provider": name,
            "weight": config.judge.weights.get(name, 1.0),
            **({} if name == LOCAL else {"agents": config.judge.hosted_agents}),
        }
        for name in names
    ]


def build_panel(
    config: OrchestratorConfig, chat_models: ChatModels | None, prompt_key: bytes | None = None
) -> MultiJudgeConsensus:
    """Return the panel of a configuration.

    Parameters
    ----------
    config : OrchestratorConfig
    chat_models : ChatModels, optional
        Where hosted judges come from; not needed for the local one alone.
    prompt_key : bytes, optional
        What the boundaries around untrusted text derive from; random by default, given in a replay so that equal
        requests are equal.
    """
    configs = judge_configs(config)
    settings = config.judge
    return MultiJudgeConsensus(
        configs,
        settings.method,
        settings.disagreement_threshold,
        deadline_s=settings.deadline_s,
        quorum=settings.quorum if len(configs) > 1 else 1,
        chat_models=chat_models,
        prompt_key=prompt_key,
    )


def _model(config: OrchestratorConfig, provider: str) -> str:
    if provider == LOCAL:
        return LOCAL
    chosen = {str(name): model for name, model in config.judge.models.items()}.get(provider)
    return chosen or config.llm.model(provider)
