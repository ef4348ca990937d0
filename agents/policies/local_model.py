"""How an agent thinks with a local model: rules supply the facts, the model supplies the opinion on them.

Built by the daemon when a local version is champion or in shadow. It never loads an adapter whose bytes are not the
recorded ones, and never asks the model where the rules abstain for want of data.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from agents.policies.base import Policy, PolicyRequest
from agents.policies.decision_generator import DecisionGenerator
from agents.policies.state_text import ParsedDecision, is_grounded, parse_decision, technical_state_text
from utils.artifacts import ArtifactCorrupt, folder_digest, verify
from utils.errors import ProviderError
from utils.schema import AgentOutput, AgentType, TechnicalOutput, direction


class LocalModelPolicy:
    """A `Policy` whose opinion is a trained adapter's.

    Parameters
    ----------
    agent_type : AgentType
        Only technical has a state text in this version.
    version : str
        Immutable name of the adapter; becomes the policy name ``local:<version>``.
    base_dir, adapter_dir : Path
        Base model folder, and adapter folder with its manifest.
    expected_sha256 : str
        Digest of the adapter as the registry recorded it.
    rules : Policy
        Computes indicators, levels and evidence, and abstains where the data does not suffice.
    device : {"cpu", "auto"}
        See `DecisionGenerator`.

    Raises
    ------
    ProviderError
        If the adapter is not byte for byte the recorded one, or the base not the one it was trained on, or either
        cannot be loaded.
    """

    reads_experiences = False
    waits = False
    prompt_hash: str | None = None

    def __init__(
        self,
        agent_type: AgentType,
        version: str,
        base_dir: Path,
        adapter_dir: Path,
        expected_sha256: str,
        rules: Policy,
        *,
        device: Literal["cpu", "auto"] = "auto",
    ) -> None:
        if agent_type != "technical":
            raise ProviderError(f"there is no local model policy for the {agent_type} agent, only for technical")
        self.agent_type: AgentType = agent_type
        self.name = f"local:{version}"
        self._rules = rules
        try:
            adapter = verify(adapter_dir, expected_sha256)
            base_sha256 = folder_digest(base_dir)[1]
        except (ArtifactCorrupt, OSError) as error:
            raise ProviderError(f"version {version} is not loaded: {error}") from error
        if adapter.meta.get("base_sha256") != base_sha256:
            raise ProviderError(f"version {version} is not loaded: {base_dir} is not the base model it was trained on")
        self._generator = DecisionGenerator(base_dir, adapter_dir, device)

    def decide_many(self, requests: Sequence[PolicyRequest]) -> list[AgentOutput]:
        """Answer every request in one padded batch; what the rules abstain from never reaches the model."""
        facts = self._rules.decide_many(requests)
        asked = [i for i, output in enumerate(facts) if isinstance(output, TechnicalOutput) and not output.abstained]
        texts = [technical_state_text(cast(TechnicalOutput, facts[i])) for i in asked]
        answers = self._generator.generate(texts) if texts else []
        decided = [output.model_copy(update={"policy": self.name}) for output in facts]
        for i, text, answer in zip(asked, texts, answers, strict=True):
            decided[i] = self._opinion(cast(TechnicalOutput, facts[i]), text, answer)
        return decided

    def close(self) -> None:
        """Free the model."""
        self._generator.close()

    def _opinion(self, facts: TechnicalOutput, state_text: str, answer: str) -> AgentOutput:
        decision = parse_decision(answer)
        if decision is None:
            return facts.model_copy(
                update={
                    "recommendation": "hold",
                    "confidence": 0.0,
                    "p_correct": None,
                    "signal": "hold",
                    "abstained": True,
                    "abstain_reason": "the local model's answer is not a valid decision",
                    "reasoning": "",
                    "policy": self.name,
                }
            )
        side = direction(decision.recommendation)
        return facts.model_copy(
            update={
                "recommendation": decision.recommendation,
                "confidence": decision.confidence,
                "p_correct": None,
                "signal": "buy" if side > 0 else ("sell" if side < 0 else "hold"),
                "reasoning": _reasoning(self.name, facts, state_text, decision),
                "policy": self.name,
            }
        )


def _reasoning(name: str, facts: TechnicalOutput, state_text: str, decision: ParsedDecision) -> str:
    """Say what the model recommends on which facts; figures are the exact ones, never the model's rounded citation."""
    rsi = facts.indicators.get("rsi_14")
    grounds = {"uptrend": "an uptrend", "downtrend": "a downtrend"}.get(facts.trend, "a sideways market")
    if rsi is not None:
        grounds += f" with RSI {rsi:.1f}"
    sentence = (
        f"The local model {name.removeprefix('local:')} recommends {decision.recommendation.replace('_', ' ')} "
        f"with confidence {decision.confidence:.2f} on {grounds} and {facts.momentum.replace('_', ' ')} momentum."
    )
    if not is_grounded(state_text, decision):
        sentence += " The evidence it cites is not what the indicators say."
    return sentence
