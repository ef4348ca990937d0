"""Rubrics: what an agent's reasoning is graded on, loaded from YAML and validated once.

Judges and the consensus ask `load_rubric`; a rubric that is wrong stops the start with one line that names file, field
and remedy. Nothing here grades anything.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from utils.errors import ConfigError, nearest

RUBRICS_DIR = Path("config/judge/rubrics")
RUBRIC_AGENTS: tuple[str, ...] = ("news", "technical", "fundamental", "strategist")
_SOURCE_ROOT = Path(__file__).resolve().parent.parent
_BAND = re.compile(r"^(\d{1,3})-(\d{1,3})$")
_WEIGHT_TOLERANCE = 1e-6

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Dimension(_Section):
    """One thing that is graded. `levels` maps bands such as ``90-100`` to what earns them; together they cover 0..100."""

    name: str = Field(min_length=1)
    weight: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    description: str = Field(min_length=1)
    levels: dict[str, str] = Field(min_length=1)

    @field_validator("levels")
    @classmethod
    def _bands_cover_the_scale(cls, levels: dict[str, str]) -> dict[str, str]:
        bands = []
        for key in levels:
            match = _BAND.match(key)
            if not match:
                raise ValueError(f"{key!r} is not a band of scores; write it as 70-89")
            bands.append((int(match.group(1)), int(match.group(2))))
        bands.sort()
        expected = 0
        for low, high in bands:
            if low != expected or high < low:
                raise ValueError(f"the bands must cover 0 to 100 without gap or overlap; look at {low}-{high}")
            expected = high + 1
        if expected != 101:
            raise ValueError("the bands must end at 100")
        return levels


class RewardMapping(_Section):
    """From a score to a reward: `base` times (score/50 - 1), a bonus for excellent work, a penalty for poor work.

    `excellent` and `poor` are shares of the full score.
    """

    excellent: Share = 0.85
    poor: Share = 0.40
    base: Amount = 1.0
    bonus: Amount = 0.2
    penalty: Amount = 0.2

    @model_validator(mode="after")
    def _ordered(self) -> RewardMapping:
        if self.poor >= self.excellent:
            raise ValueError(f"poor ({self.poor}) must lie below excellent ({self.excellent})")
        return self

    def band(self, score: float) -> Literal["excellent", "adequate", "poor"]:
        """Return the word for a score of 0..100."""
        if score >= 100 * self.excellent:
            return "excellent"
        return "poor" if score < 100 * self.poor else "adequate"

    def reward(self, score: float) -> float:
        """Return what a score of 0..100 is worth by itself, without any outcome."""
        extra = {"excellent": self.bonus, "adequate": 0.0, "poor": -self.penalty}[self.band(score)]
        return self.base * (score / 50 - 1) + extra


class Rubric(_Section):
    """What one agent's outputs are graded on; the weights of the dimensions sum to 1."""

    name: str = Field(min_length=1)
    agent_type: Literal["news", "technical", "fundamental", "strategist"]
    version: str
    dimensions: tuple[Dimension, ...] = Field(min_length=1)
    reward_mapping: RewardMapping = RewardMapping()

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> Rubric:
        total = sum(dimension.weight for dimension in self.dimensions)
        if abs(total - 1) > _WEIGHT_TOLERANCE:
            raise ValueError(f"dimensions: the weights sum to {total:.6g}; change them so that they sum to 1")
        names = [dimension.name for dimension in self.dimensions]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"dimensions: {', '.join(doubled)} stands twice; name each dimension once")
        return self

    @functools.cached_property
    def weights(self) -> dict[str, float]:
        """Weight by name of dimension, in the order of the file."""
        return {dimension.name: dimension.weight for dimension in self.dimensions}


def load_rubric(path_or_name: str | Path) -> Rubric:
    """Load and validate a rubric.

    Parameters
    ----------
    path_or_name : str or Path
        A path to a YAML file, or an agent's name (``news``, ``news_rubric``): then the file in ``config/judge/rubrics``
        of the working directory, else the one beside the package.

    Raises
    ------
    ConfigError
        If there is no such file, it is not YAML, a key is unknown or missing, a value is out of range, or the weights
        do not sum to 1. The message names the file, the field and the remedy.
    """
    path = _find(path_or_name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: the file must hold keys and values at its top level, such as name and dimensions")
    try:
        return Rubric.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_explain(item) for item in error.errors(include_url=False))
        raise ConfigError(f"{path}: {problems}") from None


def _find(path_or_name: str | Path) -> Path:
    """Return the file that a path or an agent's name stands for."""
    given = Path(path_or_name)
    if given.is_file():
        return given
    stem = str(path_or_name).removesuffix(".yaml").removesuffix("_rubric")
    if stem in RUBRIC_AGENTS:
        for root in (Path(), _SOURCE_ROOT):
            path = root / RUBRICS_DIR / f"{stem}_rubric.yaml"
            if path.is_file():
                return path
    hint = nearest(stem, RUBRIC_AGENTS)
    raise ConfigError(
        f"{path_or_name}: there is no such rubric; give the path of a YAML file or one of {', '.join(RUBRIC_AGENTS)}{hint}"
    )


def _explain(item: Any) -> str:
    """Return one validation error as words that name the field and the remedy."""
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        return f"unknown key {location!r}; remove it{nearest(str(key), _known_keys(parents))}"
    if item["type"] == "missing":
        return f"{location}: this key is missing; add it"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{location}: {message}" if location else message


def _known_keys(parents: list[Any]) -> list[str]:
    """Return the keys of the section that `parents` leads to."""
    sections: dict[str, type[BaseModel]] = {"dimensions": Dimension, "reward_mapping": RewardMapping}
    model = sections.get(str(parents[0]), Rubric) if parents else Rubric
    return list(model.model_fields)
