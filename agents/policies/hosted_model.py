"""How an agent thinks with a hosted model: rules supply the facts, the model of any vendor supplies the opinion on them.

Built by the daemon for seats whose agents are to think with a provider. It asks about a whole batch at once, never asks where
the rules abstain for want of data, and never repairs an answer: an unusable one is an abstention, a silent provider means rules.
"""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, wait

from agents.base_agent import abstain
from agents.policies.base import Policy, PolicyRequest
from agents.policies.hosted_answers import FORMS, answer_schema, read_answer
from agents.policies.hosted_state import Shown, show
from agents.policies.prompting import legible, prompt_hash, system_prompt
from utils.errors import ConfigError, ProviderError, ProviderFault
from utils.llm.base import ChatAnswer, ChatMessage, ChatModel
from utils.logs import logger
from utils.schema import AgentOutput, AgentType
from utils.telemetry import NO_TELEMETRY, Telemetry

ANSWERLESS: frozenset[ProviderFault] = frozenset(("refusal", "truncated", "malformed"))
"""The model was asked and has no usable opinion: the agent abstains. At any other fault nobody has thought: rules answer."""

_GRACE_S = 1.0
"""Beyond the deadline that a model holds itself; a model that outstays it is broken, and is treated as one that is away."""

_ACCOUNT_CHARS = 16
_REASON_CHARS = 300


class HostedModelPolicy:
    """A `Policy` whose opinion is a hosted model's.

    Parameters
    ----------
    agent_type : AgentType
        news, technical, fundamental or strategist.
    chat_model : ChatModel
        Its name becomes the policy's, ``<provider>:<model>``. The caller closes it.
    rules : Policy
        Computes indicators, figures, levels and evidence, abstains where the data does not suffice, and answers in the
        model's place where the provider fails.
    deadline_s : float
        Wall seconds for a batch, whose requests are asked at the same time.
    temperature : float, optional
        A wish; None leaves it to the vendor.
    boundary_key : bytes, optional
        Secret behind the boundaries of untrusted text. None draws one for this process; a replay gives its own, so that equal
        requests are equal bytes.

    Raises
    ------
    ConfigError
        For an agent that there is no prompt for, or a deadline that is not positive.
    """

    reads_experiences = True
    waits = True

    def __init__(
        self,
        agent_type: AgentType,
        chat_model: ChatModel,
        rules: Policy,
        *,
        deadline_s: float = 10.0,
        temperature: float | None = None,
        boundary_key: bytes | None = None,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        if agent_type not in FORMS:
            raise ConfigError(f"no hosted model thinks for the {agent_type} agent, only for {', '.join(FORMS)}")
        if rules.agent_type != agent_type:
            raise ConfigError(f"rules of the {rules.agent_type} agent cannot compute the facts of {agent_type}")
        if not deadline_s > 0:
            raise ConfigError(f"deadline_s must be positive, got {deadline_s}")
        self.agent_type: AgentType = agent_type
        self.name = chat_model.name
        self.prompt_hash: str | None = prompt_hash(agent_type)
        self._model = chat_model
        self._rules = rules
        self._deadline_s = deadline_s
        self._temperature = temperature
        self._key = os.urandom(32) if boundary_key is None else boundary_key
        self._telemetry = telemetry
        self._lock = threading.Lock()
        self._failing: set[str] = set()  # kinds of faults since the provider last answered
        self._covered = 0
        self._system = ChatMessage("system", system_prompt(agent_type))
        self._schema = answer_schema(agent_type)

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        """Answer every request; all that have facts are asked at once.

        A refused, truncated or malformed answer is an abstention with its reason. At any other fault of the provider the
        request is answered by rules, shown in `policy`; each kind of fault is logged once an outage, all are counted.
        """
        return self._decide(requests, self._temperature)

    def sample(self, request: PolicyRequest, temperature: float, random_state: int) -> AgentOutput:
        """Return one of several answers to a request.

        Parameters
        ----------
        temperature : float
            0 is the usual answer. Vendors that take no temperature vary by what they are asked alone.
        random_state : int
            Stands in the question: equal states ask in equal bytes, so that a kept answer is found again.
        """
        if temperature < 0 or not math.isfinite(temperature):
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        if temperature == 0:
            return self.decide_many([request])[0]
        return self._decide([request], temperature, variant=str(random_state))[0]

    def _decide(
        self, requests: Sequence[PolicyRequest], temperature: float | None, *, variant: str = ""
    ) -> list[AgentOutput]:
        facts = self._rules.decide_many(requests)
        decided = list(facts)  # without data nobody is asked, and the rules say so
        asked: list[tuple[int, Shown, Future[ChatAnswer]]] = []
        faults: list[ProviderError] = []
        try:
            for i, request in enumerate(requests):
                if not facts[i].abstained:
                    shown = show(facts[i], request, self._key, variant=variant)
                    asked.append((i, shown, self._submit(shown, request, temperature)))
            wait([future for _, _, future in asked], self._deadline_s + _GRACE_S)
            for i, shown, future in asked:
                try:
                    decided[i] = self._opinion(facts[i], shown, future)
                except ProviderError as fault:
                    self._telemetry.count("agent_errors_total", agent_type=self.agent_type, error_type=fault.kind)
                    faults.append(fault)
                    decided[i] = facts[i].model_copy(update={"cost_usd": fault.cost_usd})
        finally:
            for _, _, future in asked:
                future.cancel()
        self._warn(faults, len(asked))
        return decided

    def _submit(self, shown: Shown, request: PolicyRequest, temperature: float | None) -> Future[ChatAnswer]:
        return self._model.submit(
            (self._system, ChatMessage("user", shown.message)),
            self._schema,
            deadline_s=self._deadline_s,
            temperature=temperature,
            account=request.snapshot.content_hash[:_ACCOUNT_CHARS],
        )

    def _opinion(self, facts: AgentOutput, shown: Shown, future: Future[ChatAnswer]) -> AgentOutput:
        """Return the model's opinion, or the abstention that its answer amounts to.

        Raises
        ------
        ProviderError
            If the provider gave no answer.
        """
        spent: dict[str, float] = {}
        try:
            answer = _result(future, self.name, self._deadline_s)
            spent = {"latency_s": answer.latency_s, "cost_usd": answer.cost_usd}
            fields = read_answer(answer.content, facts, shown)
        except ProviderError as fault:
            if fault.kind not in ANSWERLESS:
                raise
            self._telemetry.count("agent_errors_total", agent_type=self.agent_type, error_type=fault.kind)
            spent.setdefault("cost_usd", fault.cost_usd)  # of an answer that was none the fault knows it
            reason = legible(f"{fault.kind}: {fault}", _REASON_CHARS)
            return abstain(self.agent_type, facts.symbol, facts.as_of, reason, self.name).model_copy(update=spent)
        return facts.model_copy(update={**fields, **spent, "p_correct": None, "policy": self.name})

    def _warn(self, faults: Sequence[ProviderError], asked: int) -> None:
        """Warn of each kind of fault once until the provider answers again: an outage must not fill the log."""
        kinds = Counter(fault.kind for fault in faults)
        with self._lock:
            known, covered = set(self._failing), self._covered
            if faults:
                self._failing |= set(kinds)
                self._covered += len(faults)
            elif asked:
                self._failing, self._covered = set(), 0
        if set(kinds) - known:
            logger.warning(
                "%s: rules answer %d of %d requests in place of %s (%s), said once until it answers again: %s",
                self.agent_type, len(faults), asked, self.name, ", ".join(f"{n} {kind}" for kind, n in kinds.items()), faults[0],
            )  # fmt: skip
        elif known and not faults and asked:
            logger.info(
                "%s: %s answers again, after %d requests that rules answered", self.agent_type, self.name, covered
            )


def _result(future: Future[ChatAnswer], name: str, deadline_s: float) -> ChatAnswer:
    if not future.done():
        raise ProviderError(f"{name} gave no answer within {deadline_s:g} s", kind="timeout")
    try:
        return future.result()
    except CancelledError:
        raise ProviderError(f"{name} dropped the question", kind="closed") from None
