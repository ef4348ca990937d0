"""What all agents share: asking the policy, falling back to rules when its provider fails, abstaining, timing.

The coordinator hands batches of requests to `decide_many`; notebooks call `analyze` of the concrete agents. An agent
never reads a clock of its own, and never turns a missing answer into a neutral opinion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from agents.policies.base import Policy, PolicyRequest, SamplingPolicy, waits
from utils.errors import ConfigError, DataUnavailable, ProviderError
from utils.hashing import sha256_hex
from utils.logs import logger
from utils.market_regime_detector import MarketRegimeDetector
from utils.schema import OUTPUT_MODELS, AgentOutput, AgentType, BarWindow, MarketSnapshot
from utils.telemetry import NO_TELEMETRY, Telemetry

SnapshotProvider = Callable[[str, datetime | None], MarketSnapshot]
"""Returns the snapshot of a symbol as of an instant, None meaning the latest; raises `DataUnavailable` without data."""

_NONE = np.empty(0)
NO_BARS = BarWindow(np.empty(0, dtype="datetime64[D]"), _NONE, _NONE, _NONE, _NONE, _NONE)
"""The bars of a snapshot that knows of no market."""

RETRY_TEMPERATURE = 0.7
RETRY_STATE = 1


@dataclass(frozen=True, slots=True)
class Variation:
    """A question asked once more under other conditions.

    Attributes
    ----------
    request : PolicyRequest
    what : str
        What differs, for people and the trace.
    temperature : float
        Above 0 the policy is sampled; 0 asks it as usual.
    """

    request: PolicyRequest
    what: str
    temperature: float = 0.0


def abstain(agent_type: AgentType, symbol: str, as_of: datetime, reason: str, policy: str = "rules") -> AgentOutput:
    """Return an abstention: hold, confidence 0, and why."""
    return OUTPUT_MODELS[agent_type](
        agent_type=agent_type,
        symbol=symbol,
        as_of=as_of,
        recommendation="hold",
        confidence=0.0,
        abstained=True,
        abstain_reason=reason,
        policy=policy,
    )


class Agent:
    """One seat of the workflow and the policy that thinks for it.

    Parameters
    ----------
    policy : Policy
        Of the agent's own type.
    fallback : Policy, optional
        Rules that answer a batch whose policy raises `ProviderError`; visible in the outputs' `policy`. Without it, the
        fault goes to the caller.
    snapshots : callable, optional
        Where `analyze` gets market data from; `decide_many` is handed its snapshots.
    detector : MarketRegimeDetector, optional
        Names the regime for `analyze`.
    timer : callable, optional
        Seconds on a monotonic wall clock. Only live runs give one: latency measured in a replay would make its outputs
        differ from run to run, so without a timer `latency_s` stays what the policy says. What a policy states is kept.

    Raises
    ------
    ConfigError
        If a policy thinks for another agent.
    """

    agent_type: AgentType

    def __init__(
        self,
        policy: Policy,
        *,
        fallback: Policy | None = None,
        snapshots: SnapshotProvider | None = None,
        detector: MarketRegimeDetector | None = None,
        timer: Callable[[], float] | None = None,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._policy = self._checked(policy)
        self._fallback = self._checked(fallback) if fallback is not None else None
        self._snapshots = snapshots
        self._detector = detector or MarketRegimeDetector()
        self._timer = timer
        self._telemetry = telemetry

    @property
    def policy(self) -> Policy:
        """The policy that will answer the next batch."""
        return self._policy

    def set_policy(self, policy: Policy) -> None:
        """Let another policy think from the next batch on; a batch in hand is finished by the one that began it."""
        self._policy = self._checked(policy)

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        """Answer a batch, by the fallback if the policy's provider fails.

        Raises
        ------
        ProviderError
            If there is no fallback.
        """
        if not requests:
            return []
        policy = self._policy
        start = self._timer() if self._timer else 0.0
        try:
            outputs = _answered(policy, requests)
        except ProviderError as error:
            self._telemetry.count("agent_errors_total", agent_type=self.agent_type, error_type="provider")
            if self._fallback is None or self._fallback is policy:
                raise
            logger.warning("%s: %s failed, rules answer instead: %s", self.agent_type, policy.name, error)
            outputs = _answered(self._fallback, requests)
        if self._timer is None:
            return outputs
        latency = max(0.0, self._timer() - start) / len(outputs)
        # requests that were asked side by side each know their own latency; a share of the batch would understate it
        return [o if o.latency_s else o.model_copy(update={"latency_s": latency}) for o in outputs]

    @property
    def waits(self) -> bool:
        """Whether the policy waits on a server."""
        return waits(self._policy)

    def variation(self, request: PolicyRequest, known: MarketSnapshot) -> Variation | None:
        """Return the same question under other conditions, None where another answer is out of reach.

        Parameters
        ----------
        request : PolicyRequest
            As it was asked.
        known : MarketSnapshot
            All that may be known of the symbol at that instant; it may reach farther back than the request's snapshot.
        """
        if isinstance(self._policy, SamplingPolicy):
            return Variation(request, f"temperature {RETRY_TEMPERATURE}", RETRY_TEMPERATURE)
        return None

    def decide_variation(self, varied: Variation) -> AgentOutput:
        """Answer a question that was asked before, under its new conditions; faults as in `decide_many`."""
        policy = self._policy
        if not varied.temperature or not isinstance(policy, SamplingPolicy):
            return self.decide_many([varied.request])[0]
        start = self._timer() if self._timer else 0.0
        try:
            output = policy.sample(varied.request, varied.temperature, RETRY_STATE)
        except ProviderError as error:
            return self.fall_back(varied.request, str(error))
        if self._timer is None:
            return output
        return output.model_copy(update={"latency_s": max(0.0, self._timer() - start)})

    def fall_back(self, request: PolicyRequest, reason: str, error_type: str = "provider") -> AgentOutput:
        """Let the rules answer where the policy gave no answer; `error_type` is the metric's label.

        Raises
        ------
        ProviderError
            If there is no fallback, or the policy is the fallback itself.
        """
        self._telemetry.count("agent_errors_total", agent_type=self.agent_type, error_type=error_type)
        if self._fallback is None or self._fallback is self._policy:
            raise ProviderError(f"{self.agent_type}: {self._policy.name} gave no answer: {reason}", kind="timeout")
        logger.warning("%s: %s gave no answer, rules answer instead: %s", self.agent_type, self._policy.name, reason)
        return _answered(self._fallback, [request])[0]

    def by_rules(self, request: PolicyRequest) -> AgentOutput | None:
        """Return what the rules say, without asking the policy; None where there are none beside it."""
        return None if self._fallback is None else _answered(self._fallback, [request])[0]

    def snapshot(self, symbol: str, as_of: datetime | None) -> MarketSnapshot:
        """Return the snapshot that `analyze` looks at.

        Raises
        ------
        ConfigError
            If the agent was built without a source of snapshots.
        DataUnavailable
            If the source has nothing to say of the symbol.
        """
        if self._snapshots is None:
            raise ConfigError(f"the {self.agent_type} agent has no market data; build it with snapshots=...")
        return self._snapshots(symbol.upper(), as_of)

    def request(self, snapshot: MarketSnapshot) -> PolicyRequest:
        """Return the question of a single analysis."""
        return PolicyRequest(snapshot, self._detector.detect_regime(snapshot.inputs))

    def _ask(
        self, symbol: str, as_of: datetime | None, asked: Callable[[MarketSnapshot], PolicyRequest]
    ) -> AgentOutput:
        """Answer what `asked` makes of the symbol's snapshot; abstain at `as_of` where there is no data."""
        try:
            snapshot = self.snapshot(symbol, as_of)
        except DataUnavailable as fault:
            if as_of is None:
                raise
            return abstain(self.agent_type, symbol.upper(), as_of, str(fault), self._policy.name)
        return self.decide_many([asked(snapshot)])[0]

    def _checked(self, policy: Policy) -> Policy:
        if policy.agent_type != self.agent_type:
            raise ConfigError(
                f"policy {policy.name} thinks for {policy.agent_type}, not for the {self.agent_type} agent"
            )
        return policy


def narrowed(snapshot: MarketSnapshot, what: str, **fields: Any) -> MarketSnapshot:
    """Return a snapshot with other `fields`, under a hash of its own: `what` says how it differs from the one it came from."""
    return replace(snapshot, **fields, content_hash=sha256_hex(f"{snapshot.content_hash}|{what}"))


def _answered(policy: Policy, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
    outputs = policy.decide_many(requests)
    if len(outputs) != len(requests):
        raise ProviderError(f"{policy.name} gave {len(outputs)} answers to {len(requests)} requests")
    return outputs
