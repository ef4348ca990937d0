"""Model cards as text and page: every number of the verdict is there, and whatever the record holds is escaped."""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from version_factory import GATE

from evaluation.report.verdict_charts import verdict_charts
from training.model_card import ModelCard
from training.model_card_page import render_html, render_markdown
from training.model_registry import AliasEvent, ModelVersion

AT = datetime(2014, 4, 1, 21, tzinfo=UTC)
MODEL = ModelVersion(
    "technical@0123456789ab", "technical", uuid.UUID(int=5), Path("/data/training/5/adapter"), "a" * 64, "builtin:tiny",
    "b" * 64, Path("/base"), GATE, "rejected",
)  # fmt: skip
CARD = ModelCard(
    MODEL, "rl", "c" * 32,
    {"algorithm": "GRPO", "code_version": "0.1.0+gabc", "hyper_parameters": {"beta": 0.02}, "note": "<script>alert(1)</script>"},
    {"first_loss": 1.25, "final_loss": 0.625, "reward_first": -0.5, "reward_last": 0.375, "error_spent": 0.005, "level": 0.995},
    {"new_matured_decisions": 512}, AT, AT, AT, "d" * 64, 4321, AT, AT, "technical@ffffffffffff",
    (("c" * 32, AliasEvent("technical", "challenger", None, MODEL.version, "passed | the gate", AT)),), True,
)  # fmt: skip


def numbers(values: Any) -> Iterator[str]:
    """Every number of nested JSON as a card writes it."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        for item in values:
            yield from numbers(item)
    elif isinstance(values, (int, float)):
        yield f"{values:.6g}"


def texts(page: str) -> list[str]:
    """The text of each element of a page, which must be well-formed XML."""
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    return [element.text.strip() for element in root.iter() if element.text]


def test_the_page_is_well_formed_and_holds_every_number_of_the_verdict() -> None:
    found = texts(render_html(CARD))
    assert set(numbers(GATE)) <= set(found)
    assert "The challenger is <not> shown to earn more reward." in found
    assert "bull & calm" in found


def test_the_text_holds_every_number_of_the_verdict_and_its_reasons() -> None:
    card = render_markdown(CARD)
    cells = {cell.strip() for line in card.splitlines() for cell in line.split("|")}
    assert set(numbers(GATE)) <= cells
    assert "- The challenger is <not> shown to earn more reward." in card


@pytest.mark.parametrize("render", [render_markdown, render_html])
def test_lineage_training_budget_and_aliases_are_told(render: Any) -> None:
    card = render(CARD)
    for words in (
        "d" * 64, "4321", "0.1.0+gabc", "builtin:tiny", "b" * 64, "technical@ffffffffffff", str(uuid.UUID(int=5)), "GRPO",
        "1.25 to 0.625", "-0.5 to 0.375", "error spent", "0.995", "challenger", "2014-04-01T21:00:00Z", "hyper_parameters.beta",
    ):  # fmt: skip
        assert words in card


def test_whatever_the_record_holds_is_text_on_the_page() -> None:
    assert "<script>" not in render_html(CARD)
    assert "<script>alert(1)</script>" in texts(render_html(CARD))


def test_a_version_whose_bytes_are_gone_says_so_and_one_without_parent_began_with_the_base() -> None:
    card = render_markdown(replace(CARD, has_bytes=False, parent=None, events=()))
    assert "no longer stored" in card
    assert "training began with the base model" in card
    assert "It never held one." in card


def test_a_version_without_a_verdict_has_a_card() -> None:
    for gate in (None, {"verdict": "reject"}):
        bare = replace(CARD, model=replace(MODEL, gate=gate))
        assert texts(render_html(bare))
        assert f"Verdict: {(gate or {'verdict': 'none'})['verdict']}" in render_markdown(bare)


def test_charts_draw_each_criterion_from_its_bound_to_its_estimate_around_the_line_it_must_exceed() -> None:
    reward, net, floors = (svg for _, svg in verdict_charts(GATE))
    assert "+0.125, ≥ -0.031" in reward
    assert "bull &amp; calm, 30 sessions" in reward
    assert "+22.0, ≥ +8.8" in net  # 6 and -7.25 basis points above the margin of -16
    assert "strong" in net
    assert "+8.8" in floors  # validity .9876 above .90
    for svg in (reward, net, floors):
        ElementTree.fromstring(svg)
