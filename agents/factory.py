"""Builds the agents that a configuration asks for. Called by the coordinator; the one place that knows every class."""

from __future__ import annotations

from pathlib import Path

from agents.base_agent import Agent, SnapshotProvider
from agents.conflicts.resolution import AdvancedConflictResolver, StrategyPreference
from agents.junior.fundamental_agent import FundamentalAgent
from agents.junior.news_agent import NewsAgent
from agents.junior.technical_agent import TechnicalAgent
from agents.policies.base import Policy
from agents.policies.prompting import PROMPTED_AGENTS
from agents.policies.rules import RulesFundamental, RulesNews, RulesStrategist, RulesTechnical
from agents.policies.rules.validator import RulesValidator
from agents.senior.strategist_agent import StrategistAgent
from agents.validator_agent import ValidatorAgent
from utils.errors import ConfigError
from utils.llm.base import ChatModel
from utils.llm.factory import HOSTED, ChatModels, keyed_providers
from utils.schema import AgentType
from utils.settings import ENVIRONMENT, OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry

ALWAYS = ("strategist", "validator")
"""Seats that no configuration leaves empty."""


def build_agents(
    config: OrchestratorConfig,
    snapshots: SnapshotProvider | None = None,
    telemetry: Telemetry = NO_TELEMETRY,
    preference: StrategyPreference | None = None,
    chat_models: ChatModels | None = None,
    prompt_key: bytes | None = None,
) -> dict[str, Agent]:
    """Return an agent for each seat; a trained model takes a seat by `Agent.set_policy`.

    Parameters
    ----------
    config : OrchestratorConfig
    snapshots : callable, optional
        See `Agent`.
    telemetry : Telemetry
    preference : StrategyPreference, optional
        What the validator knows of the strategies that resolved earlier conflicts.
    chat_models : ChatModels, optional
        With it the agents think with the hosted model that `hosted_provider` names, without it by rules.
    prompt_key : bytes, optional
        See `hosted_policy`.
    """
    seats: tuple[tuple[type[Agent], Policy], ...] = (
        (NewsAgent, RulesNews()),
        (TechnicalAgent, RulesTechnical()),
        (FundamentalAgent, RulesFundamental()),
        (StrategistAgent, RulesStrategist()),
        (ValidatorAgent, RulesValidator(AdvancedConflictResolver(preference=preference))),
    )
    provider = hosted_provider(config) if chat_models is not None else None
    model = chat_models.model(provider) if chat_models is not None and provider is not None else None

    def policy(agent_type: AgentType, rules: Policy) -> Policy:
        if model is None or agent_type not in PROMPTED_AGENTS:
            return rules
        deadline_s = config.agent(agent_type).timeout_s
        return hosted_policy(
            agent_type, model, rules, deadline_s=deadline_s, boundary_key=prompt_key, telemetry=telemetry
        )

    return {
        str(agent.agent_type): agent(
            policy(agent.agent_type, rules), fallback=rules, snapshots=snapshots, telemetry=telemetry
        )
        for agent, rules in seats
        if agent.agent_type in ALWAYS or config.agent(agent.agent_type).enabled
    }


def hosted_provider(config: OrchestratorConfig) -> str | None:
    """Return the provider that thinks for the agents: the configured one, with ``auto`` the first with a key, else None.

    Raises
    ------
    ConfigError
        If a provider is configured and has no key.
    """
    if config.agents in HOSTED:
        if config.agents not in keyed_providers(config):
            variable = ENVIRONMENT[f"{config.agents}_api_key"]
            raise ConfigError(f"agents: {config.agents!r} needs a key; set {variable} or choose auto or rules")
        return config.agents
    if config.agents != "auto":
        return None
    return next(iter(keyed_providers(config)), None)


def local_policy(agent_type: str, version: str, base_dir: Path, adapter_dir: Path, sha256: str) -> Policy:
    """Load a trained adapter as an agent's policy; imports torch.

    Raises
    ------
    ConfigError
        For an agent that no local model is trained for.
    ProviderError
        If the adapter is damaged or cannot be loaded.
    """
    if agent_type != "technical":
        raise ConfigError(f"there is no local model for the {agent_type} agent in this version")
    from agents.policies.local_model import LocalModelPolicy

    return LocalModelPolicy("technical", version, base_dir, adapter_dir, sha256, RulesTechnical())


def hosted_policy(
    agent_type: AgentType,
    chat_model: ChatModel,
    rules: Policy,
    *,
    deadline_s: float = 10.0,
    temperature: float | None = None,
    boundary_key: bytes | None = None,
    telemetry: Telemetry = NO_TELEMETRY,
) -> Policy:
    """Return the policy by which an agent thinks with a hosted model; see `HostedModelPolicy` for the parameters.

    Raises
    ------
    ConfigError
        For an agent that no hosted model thinks for.
    """
    from agents.policies.hosted_model import HostedModelPolicy

    return HostedModelPolicy(
        agent_type, chat_model, rules, deadline_s=deadline_s, temperature=temperature, boundary_key=boundary_key,
        telemetry=telemetry,
    )  # fmt: skip
