"""The arms of a comparison: what a name such as ``rules``, ``local`` or ``anthropic`` means for each seat.

`training.compare` plans its arms here, and every worker opens them from their plans. A plan is plain data that says which
version or model serves which seat and what is to be known of it; nothing is loaded, asked or spent before it is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from agents.factory import hosted_policy, plug_ins, plugin_policy, rules_for
from agents.policies.base import Policy
from agents.policies.local.decisions import prompt_hash as local_prompt_hash
from agents.policies.local.states import LOCAL_AGENTS
from agents.policies.prompting import PROMPTED_AGENTS, prompt_hash
from data_pipeline.library_access import open_library
from training import training_runs
from training.local_models import LocalModels
from training.model_registry import ModelRegistry, ModelVersion
from utils.clock import isoformat
from utils.errors import ConfigError, nearest
from utils.llm.factory import HOSTED, ChatModels, keyed_providers
from utils.llm.untrusted import replay_key
from utils.schema import JUNIOR_AGENTS, AgentType
from utils.settings import ENVIRONMENT, OrchestratorConfig

SEATS: tuple[AgentType, ...] = (*JUNIOR_AGENTS, "strategist")
"""Seats that an arm fills, in the order in which they are asked."""

KNOWN_ARMS = ("rules", "local", "local:base", "local:<agent>@<hash>", *HOSTED)

ENOUGH_S = 3600.0
"""A computing model is waited for: what it says must not depend on how busy the machine is. Its latency is reported."""


@dataclass(frozen=True, slots=True)
class TrainedVersion:
    """A version of the registry, and until when its training had seen outcomes."""

    model: ModelVersion
    data_cutoff: datetime | None


@dataclass(frozen=True, slots=True)
class SeatPlan:
    """Who is to think on one seat.

    Attributes
    ----------
    policy : str
        As outputs will name it.
    prompt_hash : str or None
        SHA-256 of the system prompt, None for rules.
    version : ModelVersion or None
        Of a local model; None for its base model.
    base_model : str or None
        Of a local model.
    data_cutoff : datetime or None
        Until when the version's training had seen outcomes.
    note : str
        What a reader must know: the gate's verdict, or why rules serve.
    """

    agent_type: AgentType
    kind: Literal["rules", "local", "hosted", "plug-in"]
    policy: str
    prompt_hash: str | None = None
    version: ModelVersion | None = None
    base_model: str | None = None
    data_cutoff: datetime | None = None
    note: str = ""

    def described(self) -> dict[str, Any]:
        """Return the seat as JSON values, for the protocol."""
        version = self.version
        return {
            "policy": self.policy,
            "prompt_sha256": self.prompt_hash,
            "version": version.version if version else None,
            "adapter_sha256": version.sha256 if version else None,
            "base_model": self.base_model,
            "state": version.state if version else None,
            "gate_verdict": (version.gate or {}).get("verdict") if version else None,
            "trained_on_outcomes_until": isoformat(self.data_cutoff) if self.data_cutoff else None,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """A named way of thinking, seat by seat."""

    name: str
    seats: tuple[SeatPlan, ...]

    @property
    def hosted(self) -> bool:
        """Whether answers come from a vendor: such an arm waits, costs money, and may remember the period."""
        return any(seat.kind == "hosted" for seat in self.seats)

    @property
    def local(self) -> bool:
        """Whether a local model thinks on any seat."""
        return any(seat.kind == "local" for seat in self.seats)

    def described(self) -> dict[str, Any]:
        """Return the arm as JSON values."""
        return {"name": self.name, "seats": {seat.agent_type: seat.described() for seat in self.seats}}


@dataclass(frozen=True, slots=True)
class Arm:
    """An opened arm: a policy for each seat that it fills by other means than rules, and for the rest rules."""

    name: str
    policies: Mapping[AgentType, Policy]
    described: Mapping[str, Any]
    _closers: tuple[Callable[[], None], ...] = field(default=(), repr=False)

    def close(self) -> None:
        """Free models and end connections."""
        for closer in self._closers:
            closer()


def open_arm(
    name: str, config: OrchestratorConfig, versions: Callable[[], Sequence[TrainedVersion]] | None = None
) -> Arm:
    """Resolve a name and open it; parameters and errors as `plan_arm` and `open_planned`."""
    return open_planned(plan_arm(name, config, versions), config)


def plan_arm(
    name: str, config: OrchestratorConfig, versions: Callable[[], Sequence[TrainedVersion]] | None = None
) -> ArmPlan:
    """Say what a name means.

    Parameters
    ----------
    name : str
        ``rules``; ``local``: on each seat the champion, else the newest version whatever the gate said of it, else the base
        model; ``local:base``; ``local:<agent>@<hash>``: that version, given by any beginning of its hash, and rules on all
        other seats; ``anthropic``, ``openai`` or ``gemini``: that vendor's model of section llm; ``<plug-in>``: that policy on
        all seats, ``<plug-in>:<agent>``: on one, with rules on all others.
    config : OrchestratorConfig
    versions : callable, optional
        The trained versions, newest first; the registry of the configured library by default. Called for local arms only.

    Raises
    ------
    ConfigError
        If nothing is known by that name, there is no such version, or the vendor has no key.
    """
    versions = versions or (lambda: registered_versions(config))
    if name == "rules":
        return ArmPlan(name, tuple(_by_rules(agent) for agent in SEATS))
    if name in HOSTED:
        return ArmPlan(name, tuple(_hosted_seat(agent, name, config) for agent in SEATS))
    if name == "local:base":
        return ArmPlan(name, tuple(_local_seat(agent, (), config) for agent in SEATS))
    if name == "local":
        known = versions()
        return ArmPlan(name, tuple(_local_seat(agent, known, config) for agent in SEATS))
    kind, _, wanted = name.partition(":")
    if kind == "local" and "@" in wanted:
        chosen = _chosen(name, wanted, versions())
        return ArmPlan(
            name,
            tuple(_version_seat(chosen) if agent == chosen.model.agent_type else _by_rules(agent) for agent in SEATS),
        )
    brought = plug_ins()
    if kind in brought and (not wanted or wanted in SEATS):
        return ArmPlan(
            name,
            tuple(
                SeatPlan(agent, "plug-in", kind, note="a policy of another package")
                if wanted in ("", agent)
                else _by_rules(agent)
                for agent in SEATS
            ),
        )
    known_names = (*KNOWN_ARMS, *brought)
    raise ConfigError(
        f"policies: nothing is known by the name {name!r}{nearest(name, known_names)}; choose among {', '.join(known_names)}"
    )


def open_planned(plan: ArmPlan, config: OrchestratorConfig, local_models: LocalModels | None = None) -> Arm:
    """Open every seat of a plan.

    Parameters
    ----------
    plan : ArmPlan
    config : OrchestratorConfig
    local_models : LocalModels, optional
        Shared between arms, so that a base model is loaded once; its owner closes it. By default the arm opens its own.

    Raises
    ------
    ConfigError, ProviderError
        If a model is damaged, not installed or cannot be reached.
    """
    closers: list[Callable[[], None]] = []
    chat_models = ChatModels(config, replay=True) if plan.hosted else None
    if chat_models is not None:
        closers.append(chat_models.close)
    if plan.local and local_models is None:
        local_models = open_local_models(config)
        closers.append(local_models.close)
    policies: dict[AgentType, Policy] = {}
    try:
        for seat in plan.seats:
            policy = policies[seat.agent_type] = _opened(seat, config, chat_models, local_models)
            if seat.kind in ("local", "plug-in") and callable(close := getattr(policy, "close", None)):
                closers.insert(0, close)
    except BaseException:
        Arm(plan.name, {}, {}, tuple(closers)).close()
        raise
    return Arm(plan.name, policies, plan.described(), tuple(closers))


def open_local_models(config: OrchestratorConfig) -> LocalModels:
    """Return local models that are waited for, however long they compute."""
    patient = {agent: config.agent(agent).model_copy(update={"timeout_s": ENOUGH_S}) for agent in SEATS}
    return LocalModels(config.model_copy(update={"agent_settings": {**config.agent_settings, **patient}}))


def registered_versions(config: OrchestratorConfig) -> list[TrainedVersion]:
    """Return the versions of the configured library's registry, newest first.

    Raises
    ------
    ConfigError, ComponentStartError
        If the library cannot be opened.
    """
    if config.uses_embedded_database and not config.data_dir.is_dir():
        raise ConfigError(
            f"data_dir: there is no folder {str(config.data_dir)!r}; local models are found in the daemon's"
        )
    library = open_library(config)
    try:
        models = ModelRegistry(library).versions()
        with library.connection() as connection, connection.cursor() as cursor:
            cutoffs = training_runs.data_cutoffs(cursor, [model.training_run_id for model in models])
    finally:
        library.close()
    return [TrainedVersion(model, cutoffs.get(model.training_run_id)) for model in models]


def _opened(
    seat: SeatPlan, config: OrchestratorConfig, chat_models: ChatModels | None, local_models: LocalModels | None
) -> Policy:
    agent = seat.agent_type
    rules = rules_for(agent)
    if seat.kind == "plug-in":
        return plugin_policy(seat.policy, agent, config, rules)
    if seat.kind == "local" and local_models is not None:
        if seat.version is None:
            return local_models.policy_for(agent, rules)
        return local_models.version_policy(seat.version, agent, rules)
    if seat.kind == "hosted" and chat_models is not None:
        model = chat_models.model(seat.policy.partition(":")[0])
        key = replay_key(config.random_state)
        return hosted_policy(agent, model, rules, deadline_s=config.agent(agent).timeout_s, boundary_key=key)
    return rules


def _by_rules(agent: AgentType, note: str = "") -> SeatPlan:
    return SeatPlan(agent, "rules", "rules", note=note)


def _hosted_seat(agent: AgentType, provider: str, config: OrchestratorConfig) -> SeatPlan:
    if provider not in keyed_providers(config):
        raise ConfigError(f"policies: {provider} needs a key; set {ENVIRONMENT[f'{provider}_api_key']}")
    if agent not in PROMPTED_AGENTS:
        return _by_rules(agent, "there is no prompt for this agent")
    return SeatPlan(
        agent, "hosted", f"{provider}:{config.llm.model(provider)}", prompt_hash(agent),
        note="a hosted model: it may remember this period",
    )  # fmt: skip


def _local_seat(agent: AgentType, known: Sequence[TrainedVersion], config: OrchestratorConfig) -> SeatPlan:
    if agent not in LOCAL_AGENTS:
        return _by_rules(agent, "there is no local model for this agent in this version")
    own = [version for version in known if version.model.agent_type == agent]
    chosen = next((version for version in own if version.model.state == "champion"), own[0] if own else None)
    if chosen is not None:
        return _version_seat(chosen)
    base = config.learning.base_model
    return SeatPlan(
        agent,
        "local",
        "local:base",
        local_prompt_hash(agent),
        base_model=base,
        note=f"the base model {base}, untrained",
    )


def _version_seat(chosen: TrainedVersion) -> SeatPlan:
    model = chosen.model
    (agent,) = (agent for agent in get_args(AgentType) if agent == model.agent_type)
    verdict = (model.gate or {}).get("verdict", "no verdict")
    return SeatPlan(
        agent, "local", f"local:{model.version}", local_prompt_hash(agent), model, model.base_model, chosen.data_cutoff,
        f"{model.state}; the gate said: {verdict.replace('_', ' ')}",
    )  # fmt: skip


def _chosen(name: str, wanted: str, known: Sequence[TrainedVersion]) -> TrainedVersion:
    """Return the one version whose name begins with `wanted`."""
    found = [version for version in known if version.model.version.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"policies: {name!r} could be any of {', '.join(version.model.version for version in found)}; give more of the hash"
        )
    names = [version.model.version for version in known]
    raise ConfigError(
        f"policies: the registry holds no version {wanted!r}{nearest(wanted, names)}; "
        "'python -m training.model_registry list' shows what there is"
    )
