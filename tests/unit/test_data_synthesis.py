"""Which experiences become training data, by which rule, and that a data set on disk never changes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.data_synthesis import DataSynthesisModule, SFTExample
from data_pipeline.library.findings import Finding
from utils.errors import LibraryConflict
from utils.hashing import file_sha256

START = datetime(2014, 1, 2, 21, tzinfo=UTC)


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


class Library:
    """Remembers what it was asked, and answers as the real one does: successes, best reward first."""

    def __init__(self, experiences: list[Experience], findings: dict[str, list[Finding]] | None = None) -> None:
        self.experiences = experiences
        self.findings = findings or {}
        self.asked: dict[str, Any] = {}

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
        found = [e for e in self.experiences if e.success and e.reward is not None and e.reward >= min_reward]
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
    library = Library(many(10, reward=-0.1))
    rows = DataSynthesisModule(library).synthesize_sft_dataset("technical", "bull_market", as_of=START)
    assert len(rows) == 5
    assert library.asked["min_reward"] < -1e300
    assert library.asked["market_regime"] == "bull_market"
    assert library.asked["as_of"] == START


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
