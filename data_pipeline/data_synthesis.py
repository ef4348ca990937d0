"""Makes training data of experiences: picks what came true, corrects what did not, and writes immutable data sets.

Called by the fine-tuning pipeline and by researchers. What a decision looks like as a conversation is handed in (`render`),
because that is the agents' business; nothing in here knows a prompt, and nothing reads an outcome that had not matured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from data_pipeline.datasets import SavedDataset, only_value, save_dataset
from data_pipeline.example_choice import balanced, without_duplicates
from data_pipeline.library.findings import Finding
from utils.clock import isoformat
from utils.hashing import canonical_json, sha256_hex
from utils.schema import direction

Message = dict[str, str]
"""{"role": system|user|assistant, "content": text}."""

OutputFormat = Literal["chatml", "alpaca"]
Rule = Literal["thresholds", "best_half"]

CANDIDATES = 20_000
"""Successes looked at for one data set: beyond this the memory of their states, not their number, is the limit."""


class Experience(Protocol):
    """What is read of a matured trajectory."""

    @property
    def trajectory_id(self) -> str: ...  # noqa: D102
    @property
    def agent_type(self) -> str: ...  # noqa: D102
    @property
    def market_state(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def recommendation(self) -> str | None: ...  # noqa: D102
    @property
    def confidence(self) -> float: ...  # noqa: D102
    @property
    def reward(self) -> float | None: ...  # noqa: D102
    @property
    def success(self) -> bool | None: ...  # noqa: D102
    @property
    def as_of(self) -> datetime | None: ...  # noqa: D102
    @property
    def matured_at(self) -> datetime | None: ...  # noqa: D102


class SuccessSource(Protocol):
    """The part of the experience library that is used."""

    def get_successful_trajectories(
        self,
        agent_type: str | None = None,
        market_regime: str | None = None,
        min_reward: float = 0.0,
        limit: int = 100,
        *,
        as_of: datetime | None = None,
    ) -> Sequence[Any]:
        """Return successes with at least `min_reward`, matured before `as_of`, best reward first."""
        ...

    def get_matured_trajectories(self, agent_type: str, *, as_of: datetime) -> Sequence[Any]:
        """Return every opinion of an agent that had matured before `as_of`, oldest first."""
        ...

    def get_findings(self, trajectory_ids: Sequence[str]) -> Mapping[str, Sequence[Finding]]:
        """Return what fault localisation found in each of these that has findings."""
        ...


@dataclass(frozen=True, slots=True)
class Correction:
    """What should have been recommended, the confidence that is due to it, and of how many like outcomes that is said."""

    recommendation: str
    confidence: float
    outcomes: int


@dataclass(frozen=True, slots=True)
class SFTExample:
    """One conversation to learn, and where it comes from."""

    messages: tuple[Message, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_chatml(self) -> dict[str, Any]:
        """Return {messages, metadata}, the conversational form of TRL."""
        return {"messages": [dict(message) for message in self.messages], "metadata": dict(self.metadata)}

    def to_alpaca(self) -> dict[str, Any]:
        """Return {instruction, input, output, metadata}: system, user and assistant text."""
        text = {message["role"]: message["content"] for message in self.messages}
        return {
            "instruction": text.get("system", ""),
            "input": text.get("user", ""),
            "output": text.get("assistant", ""),
            "metadata": dict(self.metadata),
        }


@dataclass(frozen=True, slots=True)
class Selection:
    """The experiences that were picked, and by which rule out of how many successes.

    `faulty` successes were left out for what was found in them, `lucky` ones because what was like them says otherwise;
    `findings` holds, by trajectory, what was found in the chosen, `corrections` what is to be learned in place of what
    was said.
    """

    chosen: tuple[Any, ...]
    rule: Rule
    candidates: int
    faulty: int = 0
    lucky: int = 0
    findings: Mapping[str, Sequence[Finding]] = field(default_factory=dict)
    corrections: Mapping[str, Correction] = field(default_factory=dict)

    def learned(self, experience: Any) -> str:
        """Return the recommendation that is learned of a chosen experience."""
        correction = self.corrections.get(experience.trajectory_id)
        return str(experience.recommendation if correction is None else correction.recommendation)


def render_plainly(experience: Any) -> list[Message]:
    """Render a decision without an agent's prompt: the state as JSON, the answer as JSON."""
    answer = {"recommendation": experience.recommendation, "confidence": round(float(experience.confidence), 2)}
    return [
        {"role": "system", "content": f"You are the {experience.agent_type} analyst. Answer with a JSON decision."},
        {"role": "user", "content": canonical_json(dict(experience.market_state))},
        {"role": "assistant", "content": canonical_json(answer)},
    ]


class DataSynthesisModule:
    """Picks what is worth learning.

    Parameters
    ----------
    library : SuccessSource
        Usually `ExperienceLibraryPostgres`.
    min_reward, min_confidence, quality_threshold : float
        Absolute thresholds; reward is on the reward's own scale, confidence 0..1,
        quality = .5·reward + .3·confidence + .2·success.
    trigger_count : int
        Trajectories that trigger a training. Where the thresholds leave less than half of it, the best half of the
        successes by quality is taken instead: a high bar for reward picks large moves and not good decisions.
    render : callable
        Turns an experience into its conversation, assistant last.
    acceptable : callable
        Whether an output with these findings may be learned from; a call that came true for wrong reasons must not be.
    readable : callable
        Whether `render` can make a conversation of an experience; others are passed over.
    correct : callable, optional
        Returns, of an agent's matured experiences, by trajectory id what should have been recommended. With it, what was
        wrong is learned corrected, and a success that its correction contradicts, luck by all that is known, is left out;
        asked only where a selection states `as_of`, the end of what may be known.
    """

    def __init__(
        self,
        library: SuccessSource,
        min_reward: float = 0.5,
        min_confidence: float = 0.7,
        quality_threshold: float = 0.6,
        *,
        trigger_count: int = 100,
        render: Callable[[Any], Sequence[Message]] = render_plainly,
        acceptable: Callable[[Sequence[Finding]], bool] = lambda findings: True,
        readable: Callable[[Any], bool] = lambda experience: True,
        correct: Callable[[Sequence[Any]], Mapping[str, Correction]] | None = None,
    ) -> None:
        self._library = library
        self._min_reward = min_reward
        self._min_confidence = min_confidence
        self._quality_threshold = quality_threshold
        self._trigger_count = trigger_count
        self._render = render
        self._acceptable = acceptable
        self._readable = readable
        self._correct = correct
        self._selected: Counter[str] = Counter()
        self._last: Selection | None = None
        self._examples = 0
        self._saved: list[SavedDataset] = []

    @staticmethod
    def quality(experience: Experience) -> float:
        """Return .5·reward + .3·confidence + .2·success; minus infinity while the outcome is unknown."""
        if experience.reward is None or experience.success is None:
            return -math.inf
        return 0.5 * experience.reward + 0.3 * experience.confidence + 0.2 * experience.success

    def filter_high_quality_trajectories(self, trajectories: Iterable[Any]) -> Selection:
        """Pick among matured successes, best quality first; success of direction is required by either rule."""
        successes = [
            t for t in trajectories if t.success and t.reward is not None and t.matured_at and t.recommendation
        ]
        successes.sort(key=lambda t: (-self.quality(t), t.trajectory_id))
        chosen = [
            t
            for t in successes
            if t.reward >= self._min_reward
            and t.confidence >= self._min_confidence
            and self.quality(t) >= self._quality_threshold
        ]
        rule: Rule = "thresholds"
        if len(chosen) < self._trigger_count / 2:
            rule, chosen = "best_half", successes[: math.ceil(len(successes) / 2)]
        self._last = Selection(tuple(chosen), rule, len(successes))
        self._selected[rule] += 1
        return self._last

    def select(
        self,
        agent_type: str,
        market_regime: str | None = None,
        limit: int = 1000,
        *,
        as_of: datetime | None = None,
    ) -> Selection:
        """Pick among the successes of an agent that had matured before `as_of` (None: now); at most `limit`."""
        successes = self._library.get_successful_trajectories(
            agent_type, market_regime, min_reward=-math.inf, limit=CANDIDATES, as_of=as_of
        )
        found = [experience for experience in successes if self._readable(experience)]
        wrong, due = self._corrected(agent_type, market_regime, as_of)
        findings = self._library.get_findings([t.trajectory_id for t in (*found, *wrong)])
        sound = [t for t in found if self._acceptable(findings.get(t.trajectory_id, ()))]
        deserved = [t for t in sound if _agrees(t, due.get(t.trajectory_id))]
        picked = self.filter_high_quality_trajectories(deserved)
        candidates = [*picked.chosen, *wrong]
        if wrong:  # neither large moves nor a season shall be preferred
            candidates.sort(key=lambda t: sha256_hex(t.trajectory_id.encode()))
        corrections = {t.trajectory_id: due[t.trajectory_id] for t in wrong}
        unique = without_duplicates(candidates, lambda t: self._prompt(t, corrections.get(t.trajectory_id)))
        chosen = tuple(balanced(unique, limit, lambda t: _cell(t, corrections.get(t.trajectory_id))))
        names = [t.trajectory_id for t in chosen]
        self._last = Selection(
            chosen,
            picked.rule,
            picked.candidates,
            len(found) - len(sound),
            len(sound) - len(deserved),
            {name: findings[name] for name in names if name in findings},
            {name: corrections[name] for name in names if name in corrections},
        )
        return self._last

    def _corrected(
        self, agent_type: str, market_regime: str | None, as_of: datetime | None
    ) -> tuple[list[Any], Mapping[str, Correction]]:
        """Return the experiences that are to be learned corrected, and every correction."""
        if self._correct is None or as_of is None:
            return [], {}
        matured = [t for t in self._library.get_matured_trajectories(agent_type, as_of=as_of) if self._readable(t)]
        due = self._correct(matured)
        wrong = [
            t
            for t in matured
            if not t.success
            and t.recommendation
            and t.trajectory_id in due
            and not _agrees(t, due[t.trajectory_id])
            and (market_regime is None or t.market_regime == market_regime)
        ]
        return wrong, due

    def _prompt(self, experience: Any, correction: Correction | None) -> Hashable:
        """Return what an example asks: the same state is learned once."""
        return tuple(message["content"] for message in self._render(_as_corrected(experience, correction))[:-1])

    def examples(self, selection: Selection) -> list[SFTExample]:
        """Render a selection in order of decision time, so that equal selections give equal bytes."""
        made = self._rendered(selection)
        self._examples += len(made)
        return [example for _, example in made]

    def _rendered(self, selection: Selection) -> list[tuple[Any, SFTExample]]:
        """Return each experience of a selection with its example, in order of decision time."""
        ordered = sorted(selection.chosen, key=lambda t: (_instant(t.as_of), t.trajectory_id))
        examples = [
            SFTExample(
                tuple(self._render(_as_corrected(t, selection.corrections.get(t.trajectory_id)))),
                {
                    "trajectory_id": t.trajectory_id,
                    "agent_type": t.agent_type,
                    "as_of": _instant(t.as_of),
                    "matured_at": _instant(t.matured_at),
                    "quality": round(self.quality(t), 6),
                    "rule": selection.rule,
                    **_feedback(selection.findings.get(t.trajectory_id, ())),
                    **_correction(t, selection.corrections.get(t.trajectory_id)),
                },
            )
            for t in ordered
        ]
        return list(zip(ordered, examples, strict=True))

    def preference_pairs(self, selection: Selection) -> list[dict[str, Any]]:
        """Return the corrected examples in TRL's conversational preference format: prompt, chosen, rejected, metadata.

        Chosen is the correction, rejected what was said; where there are no corrections, there is no pair.
        """
        pairs = []
        for t, example in self._rendered(selection):
            if t.trajectory_id in selection.corrections:
                *prompt, chosen = example.messages
                pairs.append(
                    {
                        "prompt": [dict(message) for message in prompt],
                        "chosen": [dict(chosen)],
                        "rejected": [dict(self._render(t)[-1])],
                        "metadata": dict(example.metadata),
                    }
                )
        return pairs

    def save_preference_dataset(self, selection: Selection, directory: Path | str) -> SavedDataset:
        """Write the pairs of a selection as an immutable data set.

        Raises
        ------
        ValueError
            If nothing was corrected, so that there is no pair.
        """
        saved = save_dataset(
            self.preference_pairs(selection), directory, kind="pairwise", form="preference", rule=selection.rule
        )
        self._saved.append(saved)
        return saved

    def synthesize_sft_dataset(
        self,
        agent_type: str,
        market_regime: str | None = None,
        limit: int = 1000,
        output_format: OutputFormat = "chatml",
        *,
        as_of: datetime | None = None,
    ) -> list[dict[str, Any]]:
        """Return the examples of an agent as rows of the format.

        Raises
        ------
        ValueError
            If the format is unknown.
        LibraryUnavailable
            If the library is away.
        """
        if output_format not in ("chatml", "alpaca"):
            raise ValueError(f"output_format {output_format!r} is neither chatml nor alpaca")
        examples = self.examples(self.select(agent_type, market_regime, limit, as_of=as_of))
        return [e.to_chatml() if output_format == "chatml" else e.to_alpaca() for e in examples]

    def save_sft_dataset(self, rows: Sequence[Mapping[str, Any] | SFTExample], directory: Path | str) -> SavedDataset:
        """Write rows as ``<sha256>.jsonl`` with a manifest beside it; the same rows again are a no-op.

        Raises
        ------
        ValueError
            If there is no row.
        LibraryConflict
            If a file of that name holds something else.
        """
        plain = [row.to_chatml() if isinstance(row, SFTExample) else dict(row) for row in rows]
        rule = only_value({row.get("metadata", {}).get("rule") for row in plain})
        form = "chatml" if plain and "messages" in plain[0] else "alpaca"
        saved = save_dataset(plain, directory, kind="sft", form=form, rule=rule)
        self._saved.append(saved)
        return saved

    def get_synthesis_statistics(self) -> dict[str, Any]:
        """Return what this module has done: selections by rule, the last selection, examples, data sets saved."""
        last = self._last
        return {
            "selections": dict(self._selected),
            "last_rule": last.rule if last else None,
            "last_candidates": last.candidates if last else 0,
            "last_selected": len(last.chosen) if last else 0,
            "last_left_out_as_faulty": last.faulty if last else 0,
            "last_left_out_as_lucky": last.lucky if last else 0,
            "last_corrected": len(last.corrections) if last else 0,
            "average_quality": (
                sum(map(self.quality, last.chosen)) / len(last.chosen) if last and last.chosen else None
            ),
            "by_recommendation": dict(Counter(map(last.learned, last.chosen))) if last else {},
            "examples": self._examples,
            "datasets": [saved.dataset_id for saved in self._saved],
        }


def _agrees(experience: Any, correction: Correction | None) -> bool:
    return correction is None or direction(str(experience.recommendation)) == direction(correction.recommendation)


def _as_corrected(experience: Any, correction: Correction | None) -> Any:
    if correction is None:
        return experience
    return replace(experience, recommendation=correction.recommendation, confidence=correction.confidence)


def _cell(experience: Any, correction: Correction | None) -> Hashable:
    """Return the regime and the action that an example stands for."""
    said = correction.recommendation if correction else experience.recommendation
    return getattr(experience, "market_regime", None) or "", direction(str(said))


def _correction(experience: Any, correction: Correction | None) -> dict[str, Any]:
    """Return what was corrected, in the words of the error taxonomy, for the example's metadata."""
    if correction is None:
        return {}
    said = f"{experience.recommendation}, {experience.confidence:.2f}"
    return {"corrected": {"category": "wrong_recommendation", "said": said, "outcomes_alike": correction.outcomes}}


def _feedback(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """Return what was found in an example's output, one line an error, for the example's metadata; nothing if nothing was."""
    lines = [f"{f.pointer or 'the output'}: {f.category}, {f.severity}. {f.suggested_fix}" for f in findings]
    return {"feedback": lines} if lines else {}


def _instant(value: datetime | None) -> str:
    return isoformat(value) if value is not None else ""
