"""Which experiences become training data, corrected or as they were, by which rule; a data set on disk never changes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.data_synthesis import Correction, DataSynthesisModule, SFTExample
from data_pipeline.library.findings import Finding
from utils.errors import LibraryConflict
from utils.hashing import file_sha256

START = datetime(2014, 1, 2, 21, tzinfo=UTC)
LATER = START + timedelta(days=1000)


@dataclass(frozen=True)
class Experience:
    trajectory_id: str
    reward: float | None = 0.8
    confidence: float = 0.8
    success: bool | None = True
    recommendation: str | None = "buy"
    agent_type: str = "technical"
    market_state: dict[str, Any] = field(default_factory=lambda: {"indicators": {"rsi_14": 60.0}})
    as_of: datetime | None = START
    matured_at: datetime | None = START + timedelta(days=7)
    market_regime: str | None = "neutral"


class Library:
    """Remembers what it was asked, and answers as the real one does: successes, best reward first."""

    def __init__(self, experiences: list[Experience], findings: dict[str, list[Finding]] | None = None) -> None:
        self.experiences = experiences
        self.findings = findings or {}
        self.asked: dict[str, Any] = {}

    def get_matured_trajectories(self, agent_type: str, *, as_of: datetime) -> list[Experience]:
        return [e for e in self.experiences if e.matured_at is not None and e.matured_at < as_of]

    def get_findings(self, trajectory_ids: Sequence[str]) -> dict[str, list[Finding]]:
        return {name: self.findings[name] for name in trajectory_ids if name in self.findings}

    def get_successful_trajectories(
        self,
        agent_type: str | None = None,
        market_regime: str | None = None,
        min_reward: float = 0.0,
        limit: int = 100,
        *,
        as_of: datetime | None = None,
    ) -> list[Experience]:
        self.asked = {
            "agent_type": agent_type,
            "market_regime": market_regime,
            "min_reward": min_reward,
            "as_of": as_of,
        }
        found = [
            e
            for e in self.experiences
            if e.success
            and e.reward is not None
            and e.reward >= min_reward
            and market_regime in (None, e.market_regime)
            and (as_of is None or (e.matured_at is not None and e.matured_at < as_of))
        ]
        return sorted(found, key=lambda e: -(e.reward or 0.0))[:limit]


def many(count: int, **changes: Any) -> list[Experience]:
    return [
        replace(
            Experience(
                f"t{i:03}",
                market_state={"indicators": {"rsi_14": float(i)}},
                as_of=START + timedelta(days=i),
                matured_at=START + timedelta(days=i + 7),
            ),
            **changes,
        )
        for i in range(count)
    ]


def test_quality_is_half_reward_three_tenths_confidence_two_tenths_success() -> None:
    assert DataSynthesisModule.quality(Experience("a", reward=0.6, confidence=0.5)) == pytest.approx(0.65)
    assert DataSynthesisModule.quality(Experience("a", reward=-1.0, confidence=0.5, success=False)) == pytest.approx(
        -0.35
    )
    assert DataSynthesisModule.quality(Experience("a", reward=None)) == -math.inf


def test_the_thresholds_decide_where_they_leave_half_the_trigger_count() -> None:
    good, weak = many(50), [replace(e, trajectory_id=f"w{e.trajectory_id}", reward=0.4) for e in many(50)]
    selection = DataSynthesisModule(Library([])).filter_high_quality_trajectories([*good, *weak])
    assert selection.rule == "thresholds"
    assert {t.trajectory_id for t in selection.chosen} == {t.trajectory_id for t in good}


def test_the_best_half_of_the_successes_is_taken_where_the_thresholds_leave_too_few() -> None:
    experiences = [replace(e, reward=i / 100 - 0.2) for i, e in enumerate(many(49))]
    selection = DataSynthesisModule(Library([])).filter_high_quality_trajectories(experiences)
    assert selection.rule == "best_half"
    assert selection.candidates == 49
    assert [t.trajectory_id for t in selection.chosen] == [f"t{i:03}" for i in range(48, 23, -1)]


@pytest.mark.parametrize("trigger_count", [2, 1000])
def test_neither_rule_takes_a_wrong_direction_or_an_unknown_outcome(trigger_count: int) -> None:
    wrong = [
        Experience("lost", success=False, reward=2.0),
        Experience("open", success=None, reward=None),
        Experience("unmatured", matured_at=None),
        Experience("silent", recommendation=None),
    ]
    module = DataSynthesisModule(Library([]), trigger_count=trigger_count)
    chosen = module.filter_high_quality_trajectories([*wrong, *many(4)]).chosen
    assert chosen
    assert {t.trajectory_id for t in chosen} <= {"t000", "t001", "t002", "t003"}


def test_successes_with_negative_reward_are_asked_for_because_direction_counts() -> None:
    library = Library(many(10, reward=-0.1, market_regime="bull_market"))
    rows = DataSynthesisModule(library).synthesize_sft_dataset("technical", "bull_market", as_of=LATER)
    assert len(rows) == 5
    assert library.asked["min_reward"] < -1e300
    assert library.asked["market_regime"] == "bull_market"
    assert library.asked["as_of"] == LATER


def test_rows_are_in_order_of_time_carry_their_origin_and_respect_the_limit() -> None:
    library = Library([replace(e, reward=1 - i / 100) for i, e in enumerate(reversed(many(60)))])
    rows = DataSynthesisModule(library).synthesize_sft_dataset("technical", limit=10)
    assert [row["metadata"]["trajectory_id"] for row in rows] == [f"t{i:03}" for i in range(50, 60)]
    assert {row["metadata"]["rule"] for row in rows} == {"thresholds"}
    assert [m["role"] for m in rows[0]["messages"]] == ["system", "user", "assistant"]


def test_the_render_callable_writes_the_conversation() -> None:
    def render(t: Any) -> list[dict[str, str]]:
        return [{"role": "user", "content": t.trajectory_id}, {"role": "assistant", "content": t.recommendation}]

    rows = DataSynthesisModule(Library(many(2)), render=render).synthesize_sft_dataset("technical")
    assert rows[0]["messages"] == [{"role": "user", "content": "t000"}, {"role": "assistant", "content": "buy"}]


def test_alpaca_rows_hold_instruction_input_and_output() -> None:
    rows = DataSynthesisModule(Library(many(2))).synthesize_sft_dataset("technical", output_format="alpaca")
    assert rows[0].keys() == {"instruction", "input", "output", "metadata"}
    assert json.loads(rows[0]["output"]) == {"recommendation": "buy", "confidence": 0.8}


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="neither chatml nor alpaca"):
        DataSynthesisModule(Library([])).synthesize_sft_dataset("technical", output_format="csv")  # type: ignore[arg-type]


def test_a_saved_dataset_is_named_by_its_content_and_lists_what_it_holds(tmp_path: Path) -> None:
    module = DataSynthesisModule(Library(many(120)))
    saved = module.save_sft_dataset(module.synthesize_sft_dataset("technical"), tmp_path)
    assert saved.path.stem == saved.dataset_id == file_sha256(saved.path)
    manifest = json.loads(saved.manifest_path.read_text())
    assert manifest["ids"] == [f"t{i:03}" for i in range(120)]
    assert (manifest["kind"], manifest["agent_type"], manifest["rule"]) == ("sft", "technical", "thresholds")
    assert (manifest["from"], manifest["to"]) == ("2014-01-02T21:00:00Z", "2014-05-01T21:00:00Z")
    assert len(saved.path.read_text().splitlines()) == saved.rows == manifest["rows"] == 120


def test_saving_the_same_rows_again_changes_nothing_and_altered_content_is_a_conflict(tmp_path: Path) -> None:
    module = DataSynthesisModule(Library(many(2)))
    rows = module.synthesize_sft_dataset("technical")
    saved = module.save_sft_dataset(rows, tmp_path)
    before = saved.path.stat().st_mtime_ns
    assert module.save_sft_dataset(rows, tmp_path) == saved
    assert saved.path.stat().st_mtime_ns == before
    saved.path.write_text("altered\n")
    with pytest.raises(LibraryConflict):
        module.save_sft_dataset(rows, tmp_path)


def test_an_empty_dataset_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without rows"):
        DataSynthesisModule(Library([])).save_sft_dataset([], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_examples_convert_to_both_formats() -> None:
    example = SFTExample(
        (
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a"},
        ),
        {"trajectory_id": "x"},
    )
    assert example.to_chatml()["messages"][2] == {"role": "assistant", "content": "a"}
    assert example.to_alpaca() == {"instruction": "s", "input": "u", "output": "a", "metadata": {"trajectory_id": "x"}}


def test_statistics_tell_what_was_selected_and_saved(tmp_path: Path) -> None:
    module = DataSynthesisModule(Library(many(120)))
    saved = module.save_sft_dataset(module.synthesize_sft_dataset("technical"), tmp_path)
    statistics = module.get_synthesis_statistics()
    assert statistics["selections"] == {"thresholds": 1}
    assert statistics["last_selected"] == statistics["examples"] == 120
    assert statistics["average_quality"] == pytest.approx(0.84)
    assert statistics["datasets"] == [saved.dataset_id]


def _found(trajectory_id: str, severity: str) -> Finding:
    return Finding(trajectory_id, "unsupported_claim", severity, None, "/reasoning", "12 %", "Remove 12 %", "claims")


def test_what_came_true_for_faulty_reasons_is_not_learned_and_the_selection_counts_it() -> None:
    library = Library(many(10), {"t003": [_found("t003", "fatal")], "t004": [_found("t004", "medium")]})
    module = DataSynthesisModule(
        library, trigger_count=4, acceptable=lambda findings: all(f.severity != "fatal" for f in findings)
    )
    selection = module.select("technical")
    assert "t003" not in [t.trajectory_id for t in selection.chosen]
    assert (selection.candidates, selection.faulty) == (9, 1)
    assert module.get_synthesis_statistics()["last_left_out_as_faulty"] == 1


def test_what_was_found_in_an_example_travels_with_it_as_feedback() -> None:
    library = Library(many(3), {"t001": [_found("t001", "medium")]})
    module = DataSynthesisModule(library, trigger_count=1)
    examples = {e.metadata["trajectory_id"]: e.metadata for e in module.examples(module.select("technical"))}
    assert examples["t001"]["feedback"] == ["/reasoning: unsupported_claim, medium. Remove 12 %"]
    assert "feedback" not in examples["t000"]


def lost(number: int, recommendation: str | None = "buy", **changes: Any) -> Experience:
    """A call that went wrong, on a state of its own."""
    return replace(
        Experience(
            f"l{number:03}",
            reward=-0.9,
            success=False,
            recommendation=recommendation,
            market_state={"indicators": {"rsi_14": 1000.0 + number}},
            as_of=START + timedelta(days=number),
            matured_at=START + timedelta(days=number + 7),
        ),
        **changes,
    )


def correcting(
    experiences: list[Experience],
    due: Mapping[str, str],
    findings: dict[str, list[Finding]] | None = None,
    **options: Any,
) -> DataSynthesisModule:
    """A module that is told what should have been recommended, each with confidence .6 by 100 outcomes."""

    def correct(matured: Sequence[Any]) -> dict[str, Correction]:
        there = {t.trajectory_id for t in matured}
        return {name: Correction(call, 0.6, 100) for name, call in due.items() if name in there}

    return DataSynthesisModule(Library(experiences, findings), **{"trigger_count": 2, "correct": correct, **options})


def chosen(module: DataSynthesisModule, **options: Any) -> list[str]:
    return sorted(t.trajectory_id for t in module.select("technical", as_of=LATER, **options).chosen)


def test_what_was_wrong_is_learned_as_it_should_have_been_said() -> None:
    module = correcting([*many(2), lost(5, "strong_buy", confidence=0.9)], {"l005": "sell"})
    *_, example = module.synthesize_sft_dataset("technical", as_of=LATER)
    assert json.loads(example["messages"][-1]["content"]) == {"recommendation": "sell", "confidence": 0.6}
    assert "1005" in example["messages"][1]["content"]
    assert example["metadata"]["corrected"] == {
        "category": "wrong_recommendation",
        "said": "strong_buy, 0.90",
        "outcomes_alike": 100,
    }


def test_what_came_true_and_is_not_contradicted_is_learned_as_it_was_said() -> None:
    module = correcting([*many(2), lost(5)], {"l005": "sell", "t000": "strong_buy"})
    first, second, _ = module.synthesize_sft_dataset("technical", as_of=LATER)
    for example in (first, second):
        assert json.loads(example["messages"][-1]["content"]) == {"recommendation": "buy", "confidence": 0.8}
        assert "corrected" not in example["metadata"]


@pytest.mark.parametrize("due", ["hold", "sell", "strong_sell"])
def test_a_success_that_its_correction_contradicts_is_luck_and_left_out(due: str) -> None:
    module = correcting(many(4), {"t001": due})
    selection = module.select("technical", as_of=LATER)
    assert "t001" not in {t.trajectory_id for t in selection.chosen}
    assert (selection.candidates, selection.lucky, selection.faulty) == (3, 1, 0)
    assert module.get_synthesis_statistics()["last_left_out_as_lucky"] == 1


def test_a_faulty_success_is_left_out_whether_or_not_its_correction_agrees() -> None:
    findings = {name: [_found(name, "fatal")] for name in ("t001", "t002")}
    module = correcting(
        many(4), {"t001": "buy", "t002": "sell"}, findings, acceptable=lambda found: not found, min_reward=0.0
    )
    selection = module.select("technical", as_of=LATER)
    assert sorted(t.trajectory_id for t in selection.chosen) == ["t000", "t003"]
    assert (selection.faulty, selection.lucky) == (2, 0)


def test_what_was_found_in_a_wrong_output_does_not_stop_its_correction_and_travels_with_it() -> None:
    module = correcting(
        [*many(1), lost(5)],
        {"l005": "hold"},
        {"l005": [_found("l005", "fatal")]},
        acceptable=lambda found: not found,
    )
    *_, example = module.synthesize_sft_dataset("technical", as_of=LATER)
    assert example["metadata"]["trajectory_id"] == "l005"
    assert example["metadata"]["feedback"] == ["/reasoning: unsupported_claim, fatal. Remove 12 %"]


def test_a_wrong_call_is_not_learned_where_it_was_the_best_one_or_nothing_is_known_of_it() -> None:
    assert chosen(correcting([*many(2), lost(5), lost(6)], {"l005": "strong_buy"})) == ["t000", "t001"]


def test_what_said_nothing_or_cannot_be_read_is_not_corrected() -> None:
    experiences = [*many(2), lost(5, None), lost(6), lost(7)]
    module = correcting(
        experiences, dict.fromkeys(("l005", "l006", "l007"), "sell"), readable=lambda t: t.trajectory_id != "l006"
    )
    assert chosen(module) == ["l007", "t000", "t001"]


def test_only_what_had_matured_is_corrected_and_nothing_without_an_end_of_the_training_period() -> None:
    experiences = [*many(2), lost(5), lost(990), lost(993)]
    due = dict.fromkeys(("l005", "l990", "l993", "t000"), "sell")
    assert chosen(correcting(experiences, due)) == ["l005", "l990", "t001"]
    without = correcting(experiences, due).select("technical")
    assert without.corrections == {}
    assert without.lucky == 0
    uncorrected = correcting(experiences, due, correct=None).select("technical", as_of=LATER)
    assert uncorrected.corrections == {}


def test_a_regime_that_is_asked_for_holds_for_corrections_too() -> None:
    experiences = [*many(2, market_regime="bull_market"), lost(5, market_regime="bull_market"), lost(6)]
    module = correcting(experiences, {"l005": "sell", "l006": "sell"})
    assert chosen(module, market_regime="bull_market") == ["l005", "t000", "t001"]


def test_a_state_is_learned_once() -> None:
    same = {"indicators": {"rsi_14": 42.0}}
    experiences = [*many(6, market_state=same), *(lost(i, market_state=same) for i in range(6)), lost(9)]
    found = correcting(experiences, {f"l{i:03}": "sell" for i in range(10)}).select("technical", as_of=LATER)
    assert len(found.chosen) == 2
    assert Counter(t.market_state["indicators"]["rsi_14"] for t in found.chosen) == {42.0: 1, 1009.0: 1}


def test_corrected_and_true_examples_share_a_limit_evenly_over_regimes_and_actions() -> None:
    experiences = [
        *many(60),
        *(lost(100 + i) for i in range(60)),
        *(lost(200 + i, market_regime="bear_market") for i in range(3)),
    ]
    due = {f"l{i:03}": "sell" if i % 2 else "hold" for i in range(100, 300)}
    module = correcting(experiences, due, trigger_count=100)
    selection = module.select("technical", limit=33, as_of=LATER)
    cells = Counter((t.market_regime, selection.learned(t)) for t in selection.chosen)
    assert cells == {
        ("bear_market", "hold"): 2,
        ("bear_market", "sell"): 1,
        ("neutral", "buy"): 10,
        ("neutral", "hold"): 10,
        ("neutral", "sell"): 10,
    }
    assert selection.corrections.keys() == {t.trajectory_id for t in selection.chosen if not t.success}
    statistics = module.get_synthesis_statistics()
    assert statistics["by_recommendation"] == {"buy": 10, "hold": 12, "sell": 11}
    assert statistics["last_corrected"] == 23


@pytest.mark.parametrize("limit", [0, 1])
def test_the_limit_holds_for_corrected_examples(limit: int) -> None:
    module = correcting([*many(5), lost(7)], {"l007": "sell"})
    assert len(module.synthesize_sft_dataset("technical", limit=limit, as_of=LATER)) == limit


def test_the_order_in_which_the_library_answers_changes_no_byte(tmp_path: Path) -> None:
    experiences = [*many(20), *(lost(i) for i in range(30, 50))]
    due = {f"l{i:03}": "sell" for i in range(30, 50)}

    def identity(given: list[Experience]) -> str:
        module = correcting(given, due)
        return module.save_sft_dataset(
            module.synthesize_sft_dataset("technical", limit=15, as_of=LATER), tmp_path
        ).dataset_id

    assert identity(experiences) == identity(experiences[::-1]) == identity([*experiences[13:], *experiences[:13]])


def test_a_preference_pair_is_the_correction_before_what_was_said() -> None:
    module = correcting([*many(2), lost(5, confidence=0.9), lost(3)], {"l005": "sell", "l003": "hold"})
    selection = module.select("technical", as_of=LATER)
    first, second = module.preference_pairs(selection)
    assert first["metadata"]["trajectory_id"] == "l003"
    assert second.keys() == {"prompt", "chosen", "rejected", "metadata"}
    assert [message["role"] for message in second["prompt"]] == ["system", "user"]
    ((chosen_message,), (rejected_message,)) = second["chosen"], second["rejected"]
    assert (chosen_message["role"], rejected_message["role"]) == ("assistant", "assistant")
    assert json.loads(chosen_message["content"]) == {"recommendation": "sell", "confidence": 0.6}
    assert json.loads(rejected_message["content"]) == {"recommendation": "buy", "confidence": 0.9}
    assert second["metadata"]["corrected"]["said"] == "buy, 0.90"


def test_preference_pairs_are_no_examples_and_without_corrections_there_are_none() -> None:
    module = correcting([*many(2), lost(5)], {"l005": "sell"})
    module.preference_pairs(module.select("technical", as_of=LATER))
    assert module.get_synthesis_statistics()["examples"] == 0
    assert module.preference_pairs(module.select("technical")) == []


def test_saved_preference_pairs_load_as_a_conversational_preference_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `training`")
    module = correcting(
        [*many(2), lost(5), lost(6)], {"l005": "sell", "l006": "hold"}, {"l006": [_found("l006", "medium")]}
    )
    selection = module.select("technical", as_of=LATER)
    pairs, saved = module.preference_pairs(selection), module.save_preference_dataset(selection, tmp_path)
    assert module.get_synthesis_statistics()["datasets"] == [saved.dataset_id]
    rows = [json.loads(line) for line in saved.path.read_bytes().splitlines()]
    loaded = datasets.Dataset.from_list(rows)
    assert set(loaded.column_names) == {"prompt", "chosen", "rejected", "metadata"}
    assert [row["chosen"] for row in loaded] == [pair["chosen"] for pair in pairs]
    data_utils = pytest.importorskip("trl.data_utils", reason="needs the extra `training`")
    assert data_utils.is_conversational(loaded[0])
