"""Deployment: what serves each agent, and what answers in its shadow, is what the registry's aliases say.

Called at the start and by the learning loop's thread whenever an alias has moved. It never trains, moves no alias, and
never decides what is better.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from agents.factory import policy_kinds, rules_for
from agents.policies.base import Policy
from agents.policies.local.states import LOCAL_AGENTS
from orchestration.coordinator import Coordinator
from training.local_models import LocalModels
from training.model_registry import Alias, Holders, ModelVersion
from training.trials import LoadFault
from utils.errors import ProviderError, TrainingFailed
from utils.llm.factory import HOSTED
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
        As configured: what serves its agents now serves them wherever there is no champion.
    models : LocalModels
        Closed by its owner.
    held_by : callable
        Reads what the aliases of an agent point to.
    on_state : callable
        Told when a version cannot be loaded, and when all can be again.
    """

    def __init__(
        self,
        config: OrchestratorConfig,
        coordinator: Coordinator,
        models: LocalModels,
        held_by: Callable[[str], Holders],
        on_state: Callable[[str], None],
    ) -> None:
        self._config = config
        self._coordinator = coordinator
        self._models = models
        self._held_by = held_by
        self._on_state = on_state
        self._configured: dict[str, Policy] = {
            name: policy for name in LOCAL_AGENTS if (policy := coordinator.serving(name)) is not None
        }
        # a champion without a predecessor that answers is measured by these; a hosted model would be billed for it
        hosted: list[AgentType] = [name for name, kind in policy_kinds(config).items() if kind in HOSTED]
        self._references = self._configured | {name: rules_for(name) for name in hosted if name in self._configured}
        self._loaded: dict[str, dict[str, Policy]] = {}  # by agent and version: what serves, or answers in shadow
        self._faults: dict[str, dict[str, LoadFault]] = {}  # by agent and version: what could not be loaded
        self._lost: dict[str, str] = {}  # by agent, the predecessor among them that degrades nothing
        self._unserved: dict[str, str | None] = {}  # by agent, the champion that the configuration keeps from serving
        self._said = "running"

    def align(self, agent_type: str) -> None:
        """Let an agent be served by its champion, shadowed by its challenger and by what it would fall back to.

        The former serves from the agent's next decision on. Without a champion, the configured policy serves; where the
        champion cannot be loaded, the previous version does, or else the configured policy, and the state is degraded until
        an alignment finds that all can be loaded. A previous version that never can be, beside a champion that serves, is
        no such case: it is said once, and the reference takes its place in the shadow. What is loaded already stays; a
        decision in hand is finished by the policy that began it, which is unloaded once nobody asks it any more. A second
        alignment changes nothing, unless what could not be loaded now can.
        """
        configured = self._configured.get(agent_type)
        if configured is None:
            return
        holders = self._held_by(agent_type)
        self._faults[agent_type] = {}
        yields = self._config.policy_of(agent_type) in ("auto", "local")  # its seat to a champion
        wanted: dict[Alias, bool] = {"champion": yields, "previous": yields, "challenger": True}
        champion, previous, challenger = (
            self._policy(agent_type, holders[alias].model) if needed and alias in holders else None
            for alias, needed in wanted.items()
        )
        serves: Policy = configured
        shadows: list[Policy] = []
        if not yields:
            self._note_unserved(agent_type, holders)
        elif champion is not None:
            serves = champion
            shadows.append(self._counterpart(agent_type, previous))
        elif "champion" in holders and previous is not None:
            serves = previous
        if challenger is not None:
            shadows.append(challenger)
        self._serve(agent_type, serves, tuple(policy for policy in shadows if policy is not serves))
        kept = {id(serves), *map(id, shadows)}
        # let go, not closed: a decision in hand may still ask it
        self._loaded[agent_type] = {v: p for v, p in self._loaded.get(agent_type, {}).items() if id(p) in kept}
        self._report(agent_type, holders, serves)

    def counterpart(self, agent_type: str, previous: str | None) -> str:
        """Return the name of the policy that answers beside a champion with this predecessor, as of the last alignment."""
        if agent_type not in self._configured:
            return "rules"
        loaded = self._loaded.get(agent_type, {}).get(previous) if previous is not None else None
        return self._counterpart(agent_type, loaded).name

    def load_fault(self, agent_type: str, version: str) -> LoadFault | None:
        """Return why a version could not be loaded at the last alignment, None where it was, or was not asked for."""
        return self._faults.get(agent_type, {}).get(version)

    def latencies_s(self, agent_type: str, policy: str) -> Sequence[float]:
        """Return the seconds that a policy's newest answers took; live only."""
        return self._coordinator.latencies_s(agent_type, policy)

    def _counterpart(self, agent_type: str, previous: Policy | None) -> Policy:
        """Return what a champion is measured by: its predecessor where that is loaded, else what it replaced."""
        return self._references[agent_type] if previous is None else previous

    def _policy(self, agent_type: str, version: ModelVersion) -> Policy | None:
        """Return a version's policy, loaded if it is not; None where it cannot be."""
        loaded = self._loaded.setdefault(agent_type, {})
        if version.version not in loaded:
            seat: AgentType = agent_type  # type: ignore[assignment]
            started, base_is_there = time.perf_counter(), False
            try:
                self._models.base_version()
                base_is_there = True
                loaded[version.version] = self._models.version_policy(version, seat, rules_for(seat))
            except ProviderError as error:
                # a server that is away, or a base model, may come back; damaged bytes or those of another base do not
                lasting = base_is_there and error.kind == "fault"
                self._faults[agent_type][version.version] = LoadFault(str(error), lasting)
                return None
            took_ms = 1000 * (time.perf_counter() - started)
            logger.info("local:%s is loaded (in %.0f ms)", version.version, took_ms)
        return loaded[version.version]

    def _serve(self, agent_type: str, policy: Policy, shadows: tuple[Policy, ...]) -> None:
        if self._coordinator.serving(agent_type) is not policy:
            self._coordinator.set_policy(agent_type, policy)
            logger.info("%s is served by %s from now on", agent_type, policy.name)
        before, names = self._coordinator.shadows.get(agent_type, []), [shadow.name for shadow in shadows]
        self._coordinator.set_shadows(agent_type, shadows)
        if names != before:
            logger.info("in the shadow of %s: %s", agent_type, ", ".join(names) or "nobody")

    def _note_unserved(self, agent_type: str, holders: Holders) -> None:
        held = holders.get("champion")
        version = None if held is None else held.model.version
        if version is not None and version != self._unserved.get(agent_type):
            name = self._configured[agent_type].name
            logger.info("%s stays with %s, as configured; %s is registered only", agent_type, name, version)
        self._unserved[agent_type] = version

    def _report(self, agent_type: str, holders: Holders, serves: Policy) -> None:
        """Say which versions cannot be loaded, and what that leads to."""
        faults, champion = self._faults[agent_type], holders.get("champion")
        self._note_lost(agent_type, holders, serves)
        for version, fault in faults.items():
            if version != self._lost.get(agent_type):
                logger.error("%s", fault.reason)
        if champion is not None and champion.model.version in faults:
            logger.error(
                "the %s agent's champion %s cannot be loaded: %s serves in its place",
                agent_type, champion.model.version, serves.name,
            )  # fmt: skip
        ill = (v for agent, found in self._faults.items() for v in found if v != self._lost.get(agent))
        first = next(ill, None)
        state = f"degraded: {first} cannot be loaded" if first else "running"
        if state != self._said:
            self._said = state
            self._on_state(state)

    def _note_lost(self, agent_type: str, holders: Holders, serves: Policy) -> None:
        """Say once that a predecessor can never be loaded, while its champion serves on, measured by something else."""
        faults, said = self._faults[agent_type], self._lost.pop(agent_type, None)
        champion, previous = holders.get("champion"), holders.get("previous")
        if champion is None or previous is None or champion.model.version in faults:
            return
        lost = previous.model.version
        fault = faults.get(lost)
        if fault is None or not fault.lasting:
            return
        self._lost[agent_type] = lost
        if lost != said:
            logger.warning(
                "the %s agent's previous version %s cannot be loaded (%s): %s is measured by %s from now on, and a rollback "
                "would go to %s",
                agent_type, lost, fault.reason, serves.name, self._references[agent_type].name,
                self._configured[agent_type].name,
            )  # fmt: skip


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
