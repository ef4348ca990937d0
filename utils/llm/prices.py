"""What tokens cost: a dated table of USD per million, by provider and the beginning of a model's name.

`utils.llm.factory` loads it once; `utils.llm.hosted` asks it for the cost of each call. A model that is not in the table
is counted at the dearest price of its provider, never as free.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from utils.errors import ConfigError, nearest
from utils.llm.budget import utc_today
from utils.logs import logger
from utils.setting_sections import explained

PRICES_PATH = Path("config/llm/prices.yaml")
_SOURCE_ROOT = Path(__file__).resolve().parents[2]

UsdPerMillion = Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Band(_Section):
    """The price of calls whose prompt is longer than `prompt_tokens`."""

    prompt_tokens: Annotated[int, Field(ge=1)]
    input: UsdPerMillion
    output: UsdPerMillion


class PriceRow(_Section):
    """The price of models whose name begins with `prefix`, or is it, from a day on; all in USD per million tokens."""

    provider: Literal["anthropic", "openai", "gemini"]
    prefix: Annotated[str, Field(min_length=1)]
    exact: bool = False
    input: UsdPerMillion
    output: UsdPerMillion
    above: Band | None = None
    from_: date = Field(date.min, alias="from")
    source: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _dearer_above(self) -> PriceRow:
        if self.above and (self.above.input < self.input or self.above.output < self.output):
            raise ValueError(f"the price above {self.above.prompt_tokens} prompt tokens must not be lower")
        return self

    def fits(self, provider: str, model: str, day: date) -> bool:
        """Return whether this is a price of the model on that day."""
        named = model == self.prefix if self.exact else model.startswith(self.prefix)
        return named and self.provider == provider and self.from_ <= day

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """Return what a call costs in USD."""
        rate: PriceRow | Band = self.above if self.above and input_tokens > self.above.prompt_tokens else self
        return (input_tokens * rate.input + output_tokens * rate.output) / 1e6


class PriceTable(_Section):
    """Every row that is known, as of a day."""

    as_of: date
    prices: tuple[PriceRow, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_row_a_day(self) -> PriceTable:
        seen = set()
        for row in self.prices:
            key = (row.provider, row.prefix, row.exact, row.from_)
            if key in seen:
                raise ValueError(f"{row.provider} {row.prefix} has two rows from the same day; keep one")
            seen.add(key)
        return self

    def row(self, provider: str, model: str, day: date) -> PriceRow | None:
        """Return the row in force on a day for a model: that of the longest prefix; None if there is none."""
        fitting = [row for row in self.prices if row.fits(provider, model, day)]
        return max(fitting, key=lambda row: (len(row.prefix), row.exact, row.from_), default=None)

    def dearest_usd(self, provider: str, input_tokens: int, output_tokens: int) -> float:
        """Return what a call costs at the provider's dearest row, whatever its day."""
        return max(
            (row.usd(input_tokens, output_tokens) for row in self.prices if row.provider == provider), default=math.inf
        )


class ModelPrice:
    """The price of one model.

    Parameters
    ----------
    table : PriceTable
    provider, model : str
    free_if_unknown : bool
        Whether a model without a row costs nothing, as one on a server of one's own does.
    today : callable
        The date of UTC.
    """

    def __init__(
        self,
        table: PriceTable,
        provider: str,
        model: str,
        *,
        free_if_unknown: bool = False,
        today: Callable[[], date] = utc_today,
    ) -> None:
        self._table = table
        self._provider = provider
        self._model = model.removeprefix("models/")
        self._free_if_unknown = free_if_unknown
        self._today = today
        if not free_if_unknown and table.row(provider, self._model, today()) is None:
            logger.warning(
                "no price is known for the %s model %s: it is counted at the provider's dearest; add a row to the file "
                "that llm.prices names", provider, model,
            )  # fmt: skip

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """Return what a call of today costs in USD."""
        row = self._table.row(self._provider, self._model, self._today())
        if row is not None:
            return row.usd(input_tokens, output_tokens)
        return 0.0 if self._free_if_unknown else self._table.dearest_usd(self._provider, input_tokens, output_tokens)


class NoPrice:
    """The price of what runs on this machine."""

    def usd(self, input_tokens: int, output_tokens: int) -> float:
        """Return 0."""
        return 0.0


def load_prices(path: Path | None = None) -> PriceTable:
    """Return the table of a YAML file, config/llm/prices.yaml by default.

    Raises
    ------
    ConfigError
        With file and field, if it cannot be read or is not such a table.
    """
    chosen = path or next(
        (root / PRICES_PATH for root in (Path(), _SOURCE_ROOT) if (root / PRICES_PATH).is_file()), None
    )
    if chosen is None:
        raise ConfigError(f"{PRICES_PATH}: there is no such file; name one in llm.prices")
    try:
        content = yaml.safe_load(chosen.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"llm.prices: {chosen} is not readable as YAML: {' '.join(str(error).split())[:200]}"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"llm.prices: {chosen} must hold as_of and prices at its top level")
    try:
        return PriceTable.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_explain(item) for item in error.errors(include_url=False))
        raise ConfigError(f"llm.prices: {chosen}: {problems}") from None


def _explain(item: Any) -> str:
    location = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = [*PriceTable.model_fields, *PriceRow.model_fields, "from", *Band.model_fields]
        return f"unknown key {location!r}; remove it{nearest(str(item['loc'][-1]), known)}"
    if item["type"] == "missing":
        return f"{location}: this key is missing; add it"
    return explained(item)
