"""Builds the agents of a configuration: a seat each, and the policy that thinks for it.

The coordinator calls `build_agents`. Which policy takes a seat is `OrchestratorConfig.policy_of`: rules, a local model, a hosted
one, or a policy that another package brings by an entry point. No model library is imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from agents.base_agent import Agent, SnapshotProvider
from agents.conflicts.resolution import AdvancedConflictResolver, StrategyPreference
from agents.junior.fundamental_agent import FundamentalAgent
from agents.junior.news_agent import NewsAgent
from agents.junior.technical_agent import TechnicalAgent
from agents.policies.base import Policy
from agents.policies.local.states import LOCAL_AGENTS
from agents.policies.prompting import PROMPTED_AGENTS
from agents.policies.rules import RulesFundamental, RulesNews, RulesStrategist, RulesTechnical
from agents.policies.rules.validator import RulesValidator
from agents.senior.strategist_agent import StrategistAgent
from agents.validator_agent import ValidatorAgent
from utils.errors import ConfigError, nearest
from utils.llm.base import ChatModel
from utils.llm.factory import HOSTED, ChatModels, keyed_providers
from utils.schema import AgentType
from utils.settings import ENVIRONMENT, OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry

ALWAYS = ("strategist", "validator")
"""Seats that no configuration leaves empty."""

PLUG_INS = "stock_agents.policies"
"""Entry point group; each names a callable (agent_type, config, rules) -> Policy."""

BUILT_IN = ("auto", "rules", "local", *HOSTED)
"""Ways of thinking that need no plug-in."""

LocalPolicies = Callable[[AgentType, Policy], Policy]
"""Gives a seat its local model, from its rules; `training.local_models.LocalModels` has one."""


def build_agents(
    config: OrchestratorConfig,
    snapshots: SnapshotProvider | None = None,
    telemetry: Telemetry = NO_TELEMETRY,
    preference: StrategyPreference | None = None,
    chat_models: ChatModels | None = None,
    prompt_key: bytes | None = None,
    local_policies: LocalPolicies | None = None,
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
        With it seats think with the hosted model that the configuration gives them, without it by rules.
    prompt_key : bytes, optional
        See `HostedModelPolicy`.
    local_policies : callable, optional
        Where seats of ``local`` get their model.

    Raises
    ------
    ConfigError
        If a seat is to be local and nothing gives it a model, or a plug-in is unknown or broken.
    """
    validator = RulesValidator(AdvancedConflictResolver(preference=preference))
    seats: tuple[tuple[type[Agent], Policy], ...] = (
        *(
            (agent, rules_for(agent.agent_type))
            for agent in (NewsAgent, TechnicalAgent, FundamentalAgent, StrategistAgent)
        ),
        (ValidatorAgent, validator),
    )

    def policy(agent_type: AgentType, rules: Policy) -> Policy:
        kind = policy_kind(config, agent_type)
        if kind == "local":
            if local_policies is None:
                raise ConfigError(
                    f"agents: {agent_type} is to think with a local model and none is open; "
                    "open one by training.local_models.LocalModels(config) and pass its `policy_for` as local_policies"
                )
            return local_policies(agent_type, rules)
        if kind in HOSTED and chat_models is not None:
            deadline_s = config.agent(agent_type).timeout_s
            return hosted_policy(
                agent_type, chat_models.model(kind), rules, deadline_s=deadline_s, boundary_key=prompt_key, telemetry=telemetry
            )  # fmt: skip
        return rules if kind in BUILT_IN else plugin_policy(kind, agent_type, config, rules)

    return {
        str(agent.agent_type): agent(
            policy(agent.agent_type, rules), fallback=rules, snapshots=snapshots, telemetry=telemetry
        )
        for agent, rules in seats
        if agent.agent_type in ALWAYS or config.agent(agent.agent_type).enabled
    }


def rules_for(agent_type: AgentType) -> Policy:
    """Return the rules by which an agent thinks where nothing else does; the validator's want a resolver of their own."""
    built: dict[str, Callable[[], Policy]] = {
        "news": RulesNews,
        "technical": RulesTechnical,
        "fundamental": RulesFundamental,
        "strategist": RulesStrategist,
    }
    return built[agent_type]()


def policy_kind(config: OrchestratorConfig, agent_type: AgentType) -> str:
    """Return how a seat thinks at the start: rules, local, a provider's name or a plug-in's.

    ``auto`` is the first provider with a key, else rules, until a champion takes the seat. The validator thinks by rules unless
    a plug-in is named for it.

    Raises
    ------
    ConfigError
        If the choice is none there is, cannot think for the agent, or is a provider without a key.
    """
    own, kind = config.agent(agent_type).policy, config.policy_of(agent_type)
    field = f"agents.{agent_type}.policy" if own else "agents"
    if kind not in BUILT_IN:
        known = (*BUILT_IN, *plug_ins())
        if kind not in known:
            raise ConfigError(
                f"{field}: {kind!r} is no way to think; choose one of {', '.join(known)}{nearest(kind, known)}"
            )
        return kind
    able = {"local": LOCAL_AGENTS, "rules": (agent_type,), "auto": (agent_type,)}.get(kind, PROMPTED_AGENTS)
    if agent_type not in able:
        if own:
            raise ConfigError(f"{field}: {kind!r} cannot think for the {agent_type} agent; leave it out")
        return "rules"
    if kind == "auto":
        return next(iter(keyed_providers(config)), "rules") if agent_type in PROMPTED_AGENTS else "rules"
    if kind in HOSTED and kind not in keyed_providers(config):
        raise ConfigError(
            f"{field}: {kind!r} needs a key; set {ENVIRONMENT[f'{kind}_api_key']} or choose auto or rules"
        )
    return kind


def policy_kinds(config: OrchestratorConfig) -> dict[AgentType, str]:
    """Return `policy_kind` of every seat that the configuration fills; faults as there."""
    seats: tuple[AgentType, ...] = ("news", "technical", "fundamental", "strategist", "validator")
    return {name: policy_kind(config, name) for name in seats if name in ALWAYS or config.agent(name).enabled}


def check_plug_ins(config: OrchestratorConfig) -> None:
    """Build the policy of every seat that a plug-in is to take once, and let it go; faults as in `plugin_policy`."""
    for agent_type, kind in policy_kinds(config).items():
        if kind not in BUILT_IN:
            rules = RulesValidator() if agent_type == "validator" else rules_for(agent_type)
            close = getattr(plugin_policy(kind, agent_type, config, rules), "close", None)
            if close is not None:
                close()


def plug_ins() -> tuple[str, ...]:
    """Return the names of the policies that installed packages bring."""
    return tuple(sorted({entry.name for entry in entry_points(group=PLUG_INS)}))


def plugin_policy(name: str, agent_type: AgentType, config: OrchestratorConfig, rules: Policy) -> Policy:
    """Build the policy that a package brings under a name.

    Raises
    ------
    ConfigError
        If no package brings it, or what it brings fails or thinks for another agent.
    """
    found = next((entry for entry in entry_points(group=PLUG_INS) if entry.name == name), None)
    if found is None:
        known = plug_ins()
        there = f"there are {', '.join(known)}" if known else "no installed package brings one"
        raise ConfigError(f"policy {name!r}: no plug-in of that name, {there}{nearest(name, known)}")
    try:
        policy: Policy = found.load()(agent_type, config, rules)
    except Exception as error:  # a stranger's code may raise anything, and none of it must look like a fault of ours
        raise ConfigError(f"policy {name!r}: {found.value} failed for the {agent_type} agent: {error!r}") from error
    missing = [part for part in _PROTOCOL if not hasattr(policy, part)]
    if missing:
        raise ConfigError(f"policy {name!r}: {found.value} gave a {type(policy).__name__} without {', '.join(missing)}")
    if policy.agent_type != agent_type:
        raise ConfigError(
            f"policy {name!r}: {found.value} gave a policy of {policy.agent_type} to the {agent_type} agent"
        )
    return policy


_PROTOCOL = ("agent_type", "name", "reads_experiences", "waits", "prompt_hash", "decide_many")


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
