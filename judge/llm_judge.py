"""A language model as a judge: it grades each dimension of a rubric, code checks the answer and computes the total.

The panel calls `begin` (or `grade`), people and notebooks `evaluate`. Nothing of an answer is repaired: what is missing,
surplus, out of range or not of the asked type makes it no grade at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.ground_truth import GroundTruth
from judge.base import OUTCOME_KEYS, JudgeRequest, JudgeScore, readable_output
from judge.prompting import judge_prompt, prompt_hash
from judge.robustness_guard import RobustnessGuard
from judge.rubrics import Rubric, load_rubric
from judge.verdict import Verdict, verdict_of
from utils.errors import ConfigError, JudgeError, LookAheadError, ProviderError, nearest
from utils.llm.base import ChatModel
from utils.schema import AgentOutput, MarketSnapshot

DEADLINE_S = 20.0
KEY_BYTES = 32
_CONFIG_KEYS = ("provider", "model", "temperature", "max_tokens", "api_key", "base_url")


class LLMJudge:
    """Grades outputs by a language model.

    Parameters
    ----------
    rubrics_dir : path, optional
        Where ``<agent>_rubric.yaml`` lie; the shipped ones where None.
    model : str, optional
        Such as ``claude-haiku-5-5``, ``gpt-5.4-mini``, ``gemini-3.8-flash`` or ``local:<folder>``.
    api_key : str, optional
        The provider's; its environment variable where None.
    config : mapping, optional
        ``{"judge": {provider, model, temperature 0, max_tokens 2048, api_key, base_url}}`` in place of model and key.
    judge_id : str, optional
        The model's name where None.
    chat_model : ChatModel, optional
        A ready model in place of `model`; it is not closed by the judge.
    prompt_key : bytes, optional
        From which boundaries and verdict ids are derived. Random by default, so that nobody can foresee them; a replay
        gives one, so that equal requests make equal questions.

    Raises
    ------
    ConfigError
        Without a model, or on an unknown key or provider.
    JudgeError
        If the provider's key is missing (``auth: ...``).
    """

    def __init__(
        self,
        rubrics_dir: str | Path | None = None,
        model: str | None = None,
        api_key: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        judge_id: str | None = None,
        chat_model: ChatModel | None = None,
        prompt_key: bytes | None = None,
    ) -> None:
        settings = _settings(config, model, api_key)
        self._rubrics_dir = Path(rubrics_dir) if rubrics_dir is not None else None
        self._temperature = settings.temperature
        self._owned: Any = None
        if chat_model is None:
            chat_model = self._owned = _opened(settings)
        self._model: ChatModel = chat_model
        self._key = prompt_key if prompt_key is not None else os.urandom(KEY_BYTES)
        self._guard = RobustnessGuard()
        self._rubrics: dict[str, Rubric] = {}
        self.judge_id = judge_id or chat_model.name

    @classmethod
    def for_panel(
        cls, judge_id: str, chat_model: ChatModel, *, temperature: float = 0.0, prompt_key: bytes | None = None
    ) -> LLMJudge:
        """Return a judge for a panel, on a model that the caller owns and closes."""
        config = {"judge": {"temperature": temperature}}
        return cls(config=config, judge_id=judge_id, chat_model=chat_model, prompt_key=prompt_key)

    @property
    def chat_model(self) -> ChatModel:
        """The model that is asked."""
        return self._model

    @property
    def prompt_hash(self) -> str:
        """SHA-256 of the prompt's templates."""
        return prompt_hash()

    def load_rubric(self, name: str) -> Rubric:
        """Return a rubric by agent, file name or path; read once.

        Raises
        ------
        ConfigError
            If there is none or it is wrong.
        """
        rubric = self._rubrics.get(name)
        if rubric is None:
            stem = str(name).removesuffix(".yaml").removesuffix("_rubric")
            path = self._rubrics_dir / f"{stem}_rubric.yaml" if self._rubrics_dir else None
            rubric = self._rubrics[name] = load_rubric(path if path is not None and path.is_file() else name)
        return rubric

    def begin(self, request: JudgeRequest, deadline_s: float = DEADLINE_S, account: str = "") -> Future[JudgeScore]:
        """Begin a grade, see `judge.base.WaitingJudge`."""
        return _then(self._ask(request, deadline_s, account), lambda verdict: verdict.score)

    def grade(self, request: JudgeRequest) -> JudgeScore:
        """Return the grade of one output, waiting for it.

        Raises
        ------
        JudgeError
            If the output abstained or the model gave no valid grade; the text begins with the kind of the fault.
        """
        return self._ask(request, DEADLINE_S, "").result().score

    def evaluate(
        self,
        agent_output: AgentOutput | Mapping[str, Any] | str | None = None,
        rubric_name: str | None = None,
        context: Mapping[str, Any] | None = None,
        *,
        agent_type: str | None = None,
        ground_truth: GroundTruth | Mapping[str, Any] | None = None,
        market_data: MarketSnapshot | Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Grade one output, for people.

        Parameters
        ----------
        agent_output : AgentOutput, mapping or JSON text
        rubric_name : str, optional
            Agent, file name or path of a rubric; that of `agent_type` where None.
        context : mapping, optional
            See `JudgeRequest`.
        agent_type : str, optional
            That of the rubric where None.
        ground_truth : GroundTruth or mapping, optional
            What was known when the output was made; never how it turned out.
        market_data : MarketSnapshot or mapping, optional
            Shown beside the output: price, daily_volatility and whatever else a mapping holds.

        Returns
        -------
        dict
            overall_score (0..1), score (0..100), dimension_scores (0..100 by dimension), feedback, strengths,
            weaknesses, suggestions, metadata.

        Raises
        ------
        JudgeError
            If there is no valid grade; the text begins with the kind of the fault.
        LookAheadError
            If the outcome or the right call is among what is given.
        ConfigError
            If there is no such rubric.
        """
        return self._begun(agent_output, rubric_name, context, agent_type, ground_truth, market_data).result()

    def batch_evaluate(
        self, items: Iterable[Mapping[str, Any]], *, in_flight: int = 16
    ) -> list[dict[str, Any] | JudgeError]:
        """Grade many outputs at the same time.

        Parameters
        ----------
        items : iterable of mapping
            Keyword arguments of `evaluate`, one mapping an output.
        in_flight : int
            Questions that are open at once, at least 1.

        Returns
        -------
        list
            In the order of the items: the dict of `evaluate`, or the JudgeError why there is none.
        """
        if in_flight < 1:
            raise ValueError(f"in_flight must be at least 1, not {in_flight}")
        results: list[dict[str, Any] | JudgeError] = []
        waiting: list[Future[dict[str, Any]]] = []
        for item in items:
            if len(waiting) >= in_flight:
                results.append(_outcome(waiting.pop(0)))
            waiting.append(self._attempted(dict(item)))
        return results + [_outcome(future) for future in waiting]

    def close(self) -> None:
        """Release the model if the judge made it; idempotent."""
        if self._owned is not None:
            self._owned.close()

    def _attempted(self, item: dict[str, Any]) -> Future[dict[str, Any]]:
        names = ("agent_output", "rubric_name", "context", "agent_type", "ground_truth", "market_data")
        for key in item:
            if key not in names:
                raise ValueError(f"batch_evaluate: an item has the key {key!r}{nearest(str(key), names)}")
        try:
            return self._begun(*(item.get(name) for name in names))
        except JudgeError as fault:
            return _failed(fault)

    def _begun(
        self, agent_output: Any, rubric_name: Any, context: Any, agent_type: Any, ground_truth: Any, market_data: Any
    ) -> Future[dict[str, Any]]:
        name = rubric_name or agent_type
        if agent_output is None or name is None:
            raise JudgeError("invalid: give agent_output, and rubric_name or agent_type")
        rubric = self.load_rubric(name)
        kind = agent_type or rubric.agent_type
        if kind != rubric.agent_type:
            raise ConfigError(f"{name}: this rubric grades {rubric.agent_type}, not {kind}; name {kind}_rubric")
        output = readable_output(kind, agent_output)
        request = JudgeRequest(kind, output, rubric, _context(context, ground_truth, market_data))
        screened = self._guard.screen(output)
        if screened.verdict != "pass":
            flag = screened.flags[0]
            raise JudgeError(f"quarantined: {flag.family} at {flag.pointer}; the output is not shown to a model")
        started = time.monotonic()
        return _then(self._ask(request, DEADLINE_S, ""), lambda verdict: self._described(verdict, rubric, started))

    def _described(self, verdict: Verdict, rubric: Rubric, started: float) -> dict[str, Any]:
        grade, answer = verdict.score, verdict.answer
        return {
            "overall_score": grade.score / 100,
            "score": grade.score,
            "dimension_scores": dict(grade.criteria_scores),
            "feedback": grade.reasoning,
            "strengths": list(verdict.strengths),
            "weaknesses": list(verdict.weaknesses),
            "suggestions": list(verdict.suggestions),
            "metadata": {
                "judge_id": self.judge_id,
                "model": answer.model,
                "rubric": rubric.name,
                "rubric_version": rubric.version,
                "band": rubric.reward_mapping.band(grade.score),
                "confidence": grade.confidence,
                "prompt_hash": prompt_hash(),
                "cost_usd": grade.cost_usd,
                "input_tokens": answer.input_tokens,
                "output_tokens": answer.output_tokens,
                "cached": answer.cached,
                "latency_s": time.monotonic() - started,
            },
        }

    def _ask(self, request: JudgeRequest, deadline_s: float, account: str) -> Future[Verdict]:
        if request.output.abstained:
            return _failed(JudgeError("abstained: an abstention has no reasoning to grade"))
        prompt = judge_prompt(request, self._key)
        try:
            asked = self._model.submit(
                prompt.messages, prompt.schema, deadline_s=deadline_s, temperature=self._temperature, account=account
            )
        except ProviderError as error:
            return _failed(JudgeError(f"{error.kind}: {error}"))
        return _then(asked, lambda answer: verdict_of(self.judge_id, answer, prompt, request.rubric))


@dataclass(frozen=True, slots=True)
class _Settings:
    model: str | None
    provider: str | None
    api_key: str | None
    base_url: str | None
    temperature: float
    max_tokens: int


def _settings(config: Mapping[str, Any] | None, model: str | None, api_key: str | None) -> _Settings:
    section = (config or {}).get("judge") or {}
    if not isinstance(section, Mapping):
        raise ConfigError("judge: the section must hold keys and values, such as provider and model")
    for key in section:
        if key not in _CONFIG_KEYS:
            raise ConfigError(f"judge: unknown key {key!r}; remove it{nearest(str(key), _CONFIG_KEYS)}")
    temperature, tokens = section.get("temperature", 0), section.get("max_tokens", 2048)
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 <= temperature <= 2:
        raise ConfigError(f"judge.temperature: must be a number of 0 to 2, not {temperature!r}")
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ConfigError(f"judge.max_tokens: must be a positive whole number, not {tokens!r}")
    return _Settings(
        model if model is not None else section.get("model"),
        section.get("provider"),
        api_key if api_key is not None else section.get("api_key"),
        section.get("base_url"),
        float(temperature),
        tokens,
    )


def _opened(settings: _Settings) -> Any:
    from utils.llm.factory import chat_model

    if not settings.model:
        raise ConfigError("judge.model: name a model, for example claude-haiku-5-5, or give chat_model")
    try:
        return chat_model(
            settings.model,
            provider=settings.provider,
            api_key=settings.api_key,
            base_url=settings.base_url,
            max_output_tokens=settings.max_tokens,
        )
    except ProviderError as error:
        raise JudgeError(f"{error.kind}: {error}") from None


def _context(context: Mapping[str, Any] | None, ground_truth: Any, market_data: Any) -> dict[str, Any]:
    known = dict(context or {})
    for source in (ground_truth, market_data):
        if isinstance(source, Mapping) and (leaked := OUTCOME_KEYS.intersection(source)):
            raise LookAheadError(f"a judge must not know the outcome; leave out {', '.join(sorted(leaked))}")
    if ground_truth is not None:
        try:
            known["truth"] = GroundTruth.of(ground_truth)
        except ValueError as error:
            raise JudgeError(f"invalid: {error}") from None
    if isinstance(market_data, MarketSnapshot):
        truth = known.get("truth") or GroundTruth()
        known["truth"] = replace(truth, snapshot=truth.snapshot or market_data)
    elif market_data is not None:
        known.update(market_data)
    return known


def _outcome(future: Future[dict[str, Any]]) -> dict[str, Any] | JudgeError:
    try:
        return future.result()
    except JudgeError as fault:
        return fault


def _failed(fault: JudgeError) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(fault)
    return future


def _then(before: Future[Any], step: Any) -> Future[Any]:
    """Return a future of ``step(result)``; faults of a provider become judges' faults, cancelling ends what runs."""
    after: Future[Any] = Future()

    def finish(done: Future[Any]) -> None:
        if not after.set_running_or_notify_cancel():
            return
        try:
            after.set_result(step(done.result()))
        except ProviderError as error:
            after.set_exception(JudgeError(f"{error.kind}: {error}", cost_usd=error.cost_usd, tokens=error.tokens))
        except CancelledError:
            after.set_exception(JudgeError("closed: the model was closed before it answered"))
        except Exception as error:  # whoever waits must hear of anything, and a callback has nobody else to tell
            after.set_exception(error)

    def stop(done: Future[Any]) -> None:
        if done.cancelled():
            before.cancel()

    after.add_done_callback(stop)
    before.add_done_callback(finish)
    return after
