"""Rubrics: the shipped ones are sound, and a wrong one stops with file, field and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from judge.local_judge import CHECKS
from judge.rubrics import RUBRIC_AGENTS, load_rubric
from utils.errors import ConfigError

DOCUMENTED = {
    "news": [0.30, 0.25, 0.20, 0.15, 0.10],
    "technical": [0.30, 0.25, 0.20, 0.15, 0.10],
    "fundamental": [0.25, 0.25, 0.20, 0.15, 0.10, 0.05],
    "strategist": [0.30, 0.25, 0.20, 0.15, 0.10],
}


@pytest.mark.parametrize("agent", RUBRIC_AGENTS)
def test_shipped_rubrics_carry_the_documented_weights(agent: str) -> None:
    assert list(load_rubric(agent).weights.values()) == DOCUMENTED[agent]


@pytest.mark.parametrize("agent", RUBRIC_AGENTS)
def test_every_dimension_of_a_shipped_rubric_has_checks(agent: str) -> None:
    assert set(load_rubric(agent).weights) == set(CHECKS[agent])


@pytest.mark.parametrize("agent", RUBRIC_AGENTS)
def test_the_weights_of_the_checks_of_a_dimension_sum_to_one(agent: str) -> None:
    for rules in CHECKS[agent].values():
        assert sum(rule.weight for rule in rules) == pytest.approx(1.0)


def test_name_file_name_and_path_lead_to_the_same_rubric() -> None:
    assert load_rubric("news") == load_rubric("news_rubric") == load_rubric("config/judge/rubrics/news_rubric.yaml")


def test_a_rubric_is_found_from_another_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_rubric("strategist").agent_type == "strategist"


def _written(tmp_path: Path, **changes: Any) -> Path:
    content = yaml.safe_load(Path("config/judge/rubrics/news_rubric.yaml").read_text())
    content.update(changes)
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _dimensions(**first: Any) -> list[dict[str, Any]]:
    dimensions = yaml.safe_load(Path("config/judge/rubrics/news_rubric.yaml").read_text())["dimensions"]
    dimensions[0].update(first)
    return dimensions


def test_weights_that_do_not_sum_to_one_are_refused_with_file_field_and_sum(tmp_path: Path) -> None:
    path = _written(tmp_path, dimensions=_dimensions(weight=0.5))
    with pytest.raises(ConfigError, match=r"broken\.yaml: dimensions: the weights sum to 1\.2; change them"):
        load_rubric(path)


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    path = _written(tmp_path, dimensions=_dimensions(wieght=0.3))
    with pytest.raises(ConfigError, match=r"unknown key 'dimensions\.0\.wieght'; remove it; did you mean 'weight'"):
        load_rubric(path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text("name: x\nagent_type: news\nversion: '1'\n")
    with pytest.raises(ConfigError, match=r"short\.yaml: dimensions: this key is missing"):
        load_rubric(path)


def test_a_missing_file_is_named_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match=r"newz: there is no such rubric; .* did you mean 'news'"):
        load_rubric("newz")


@pytest.mark.parametrize(
    "levels", [{"0-49": "low", "60-100": "high"}, {"0-60": "low", "50-100": "high"}, {"good": "x"}]
)
def test_bands_with_gaps_overlaps_or_words_are_refused(tmp_path: Path, levels: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="band"):
        load_rubric(_written(tmp_path, dimensions=_dimensions(levels=levels)))


@pytest.mark.parametrize("text", ["- a\n- b\n", "name: [unclosed\n"])
def test_content_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_rubric(path)


def test_the_reward_mapping_rises_with_the_score_and_knows_its_bands() -> None:
    mapping = load_rubric("news").reward_mapping
    rewards = [mapping.reward(score) for score in range(101)]
    assert rewards == sorted(rewards)
    assert [mapping.band(score) for score in (39.9, 40, 84.9, 85)] == ["poor", "adequate", "adequate", "excellent"]
    assert mapping.reward(50) == 0.0
