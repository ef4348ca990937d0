"""Who sits on a panel and in which way each is asked; reads the configuration of judges and builds them.

`MultiJudgeConsensus` calls `seats_of` once. A judge whose key is missing keeps its seat and fails every time with the
reason, so that its absence is seen in every result. Nobody is asked anything here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from judge.base import Judge, JudgeRequest, JudgeScore, WaitingJudge
from judge.llm_judge import LLMJudge
from judge.local_judge import LocalJudge
from utils.errors import ConfigError, JudgeError, ProviderError, nearest
from utils.llm.base import ChatModel
from utils.schema import JUNIOR_AGENTS

CODE_MODEL = "local"
"""Model name of the judge that is code; ``local:<folder>`` is a model on this machine."""

THREADS_A_JUDGE = 4
"""Of a judge that blocks: one that hangs can hold up its own calls only, and no more than so many threads."""

GRADED_AGENTS = (*JUNIOR_AGENTS, "strategist")
"""Agents whose opinions there is a rubric for."""

_CONFIG_KEYS = ("id", "model", "weight", "provider", "agents")


class ChatModelSource(Protocol):
    """Where judges get their models; `utils.llm.factory.ChatModels` is one."""

    def model(self, provider: str, model: str | None = None) -> ChatModel:
        """Return a model; ProviderError of kind auth where the key is missing."""
        ...


class _Absent:
    """Fails with the reason for which the judge could not be built."""

    def __init__(self, judge_id: str, reason: str) -> None:
        self.judge_id = judge_id
        self._reason = reason

    def grade(self, request: JudgeRequest) -> JudgeScore:
        raise JudgeError(self._reason)


@dataclass(frozen=True, slots=True)
class Seat:
    """A judge with its weight.

    Attributes
    ----------
    judge : Judge or WaitingJudge
    weight : float
        Positive.
    pool : ThreadPoolExecutor or None
        Where a judge that blocks is asked; None for those that wait by themselves or answer at once.
    agents : frozenset of str or None
        Whose opinions it grades; None for everyone's.
    """

    judge: Judge | WaitingJudge
    weight: float
    pool: ThreadPoolExecutor | None
    agents: frozenset[str] | None = None

    def grades(self, agent_type: str) -> bool:
        """Return whether the judge grades opinions of an agent."""
        return self.agents is None or agent_type in self.agents

    @property
    def judge_id(self) -> str:
        """The judge's id."""
        return self.judge.judge_id

    @property
    def is_instant(self) -> bool:
        """Whether the judge is code that answers at once, in the thread that asks."""
        return isinstance(self.judge, (LocalJudge, _Absent))

    def begin(self, request: JudgeRequest, deadline_s: float, account: str) -> Future[JudgeScore]:
        """Ask and return at once; an instant judge has answered then."""
        if isinstance(self.judge, WaitingJudge):
            return self.judge.begin(request, deadline_s, account)
        if self.pool is not None:
            return self.pool.submit(self.judge.grade, request)
        future: Future[JudgeScore] = Future()
        try:
            future.set_result(self.judge.grade(request))
        except JudgeError as fault:
            future.set_exception(fault)
        return future


def seats_of(
    configs: Sequence[Mapping[str, Any]],
    ready: Sequence[Judge | WaitingJudge],
    chat_models: ChatModelSource | None,
    prompt_key: bytes | None,
) -> tuple[tuple[Seat, ...], list[Any]]:
    """Return the panel, the configured judges in their order, then the ready ones that no entry names; and models to close.

    Raises
    ------
    ConfigError
        On an unknown key, provider, model or agent, a doubled id, a weight that is not positive, or an empty panel.
    """
    by_id = {judge.judge_id: judge for judge in ready}
    if len(by_id) != len(ready):
        raise ConfigError("judges: two ready judges have the same id; give each its own")
    seats: dict[str, Seat] = {}
    owned: list[Any] = []
    for config in configs:
        name, weight = _identity(config)
        if name in seats:
            raise ConfigError(f"judges.{name}: this id stands twice; give each judge its own")
        provider = _provider(name, config)
        judge = by_id.pop(name, None)
        if judge is None:
            judge = _built(name, provider, str(config.get("model")), chat_models, prompt_key, owned)
        seats[name] = _seat(judge, weight, _agents(name, config))
    for name, judge in by_id.items():
        seats[name] = _seat(judge, 1.0)
    if not seats:
        raise ConfigError("judges: the panel is empty; name at least one judge, for example local")
    return tuple(seats.values()), owned


def _seat(judge: Judge | WaitingJudge, weight: float, agents: frozenset[str] | None = None) -> Seat:
    if isinstance(judge, (LocalJudge, _Absent, WaitingJudge)):
        return Seat(judge, weight, None, agents)
    pool = ThreadPoolExecutor(THREADS_A_JUDGE, thread_name_prefix=f"judge-{judge.judge_id}")
    return Seat(judge, weight, pool, agents)


def _agents(name: str, config: Mapping[str, Any]) -> frozenset[str] | None:
    agents = config.get("agents")
    if agents is None:
        return None
    if isinstance(agents, str) or not agents:
        raise ConfigError(f"judges.{name}.agents: must be a list of agents, not {agents!r}; leave it out for all")
    for agent in agents:
        if agent not in GRADED_AGENTS:
            raise ConfigError(
                f"judges.{name}.agents: {agent!r} is none of {', '.join(GRADED_AGENTS)}{nearest(str(agent), GRADED_AGENTS)}"
            )
    return frozenset(agents)


def _identity(config: Mapping[str, Any]) -> tuple[str, float]:
    for key in config:
        if key not in _CONFIG_KEYS:
            raise ConfigError(f"judges: unknown key {key!r}{nearest(str(key), _CONFIG_KEYS)}")
    name = config.get("id")
    if not isinstance(name, str) or not name:
        raise ConfigError("judges: an entry has no id; give each judge a unique one, for example local")
    weight = config.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        raise ConfigError(f"judges.{name}.weight: must be a positive number, not {weight!r}")
    return name, float(weight)


def _provider(name: str, config: Mapping[str, Any]) -> str:
    from utils.llm.factory import PROVIDER_PREFIXES, provider_of

    provider, model = config.get("provider"), config.get("model")
    known = tuple(dict.fromkeys(PROVIDER_PREFIXES.values()))
    if provider is not None:
        if provider not in known:
            hint = nearest(str(provider), known)
            raise ConfigError(f"judges.{name}.provider: {provider!r} is none of {', '.join(known)}{hint}")
        return str(provider)
    try:
        return provider_of(str(model))
    except ConfigError:
        raise ConfigError(
            f"judges.{name}.model: {model!r} names no known provider; begin it with {', '.join(PROVIDER_PREFIXES)} or set provider"
        ) from None


def _built(
    name: str, provider: str, model: str, chat_models: ChatModelSource | None, key: bytes | None, owned: list[Any]
) -> Judge | WaitingJudge:
    if provider == "local":
        if model == CODE_MODEL:
            return LocalJudge(name)
        if not model.startswith(f"{CODE_MODEL}:"):
            raise ConfigError(
                f"judges.{name}.model: {model!r} is no local model; use local, or local:<folder> of a causal language model"
            )
    try:
        if chat_models is not None:
            asked = model.removeprefix(f"{CODE_MODEL}:") if provider == "local" else model
            return LLMJudge.for_panel(name, chat_models.model(provider, asked), prompt_key=key)
        from utils.llm.factory import chat_model

        owned.append(chat_model(model, provider=provider))
        return LLMJudge.for_panel(name, owned[-1], prompt_key=key)
    except ProviderError as error:
        return _Absent(name, f"{error.kind}: {error}")
