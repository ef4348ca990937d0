"""The table of prices: prefixes, bands, announced changes, unknown models and files that are wrong."""

from __future__ import annotations

import logging
from datetime import date
from pathlib import Path

import pytest

from utils.errors import ConfigError
from utils.llm.prices import ModelPrice, PriceTable, load_prices
from utils.setting_sections import LlmSettings

DAY = date(2026, 11, 27)


def row(prefix: str, price: float, **more: object) -> dict[str, object]:
    return {"provider": "openai", "prefix": prefix, "input": price, "output": 10 * price, "source": "here", **more}


def table(*rows: dict[str, object]) -> PriceTable:
    return PriceTable.model_validate({"as_of": DAY, "prices": rows})


def usd(prices: PriceTable, model: str, tokens: int = 10**6, day: date = DAY) -> float:
    return ModelPrice(prices, "openai", model, today=lambda: day).usd(tokens, 0)


def test_the_longest_prefix_counts() -> None:
    prices = table(row("gpt-5", 1.0), row("gpt-5-mini", 0.25), row("gpt", 9.0))
    assert [usd(prices, name) for name in ("gpt-5-2026", "gpt-5-mini-2026", "gpt-4")] == [1.0, 0.25, 9.0]


def test_an_exact_row_does_not_price_longer_names() -> None:
    prices = table(row("gpt-5", 1.0, exact=True), row("gpt", 9.0))
    assert [usd(prices, name) for name in ("gpt-5", "gpt-5.9")] == [1.0, 9.0]


def test_an_announced_price_counts_from_its_day_on() -> None:
    prices = table(row("gpt", 1.0), row("gpt", 2.0, **{"from": "2027-01-01"}))
    assert usd(prices, "gpt-x", day=date(2026, 12, 31)) == 1.0
    assert usd(prices, "gpt-x", day=date(2027, 1, 1)) == 2.0


def test_a_long_prompt_is_counted_at_the_higher_band_as_a_whole() -> None:
    prices = table(row("gpt", 1.0, above={"prompt_tokens": 100_000, "input": 5.0, "output": 50.0}))
    assert usd(prices, "gpt-x", 100_000) == pytest.approx(0.1)
    assert usd(prices, "gpt-x", 100_001) == pytest.approx(0.500005)


def test_an_unknown_model_is_counted_at_the_dearest_and_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    prices = table(row("gpt-5", 1.0), row("gpt-9", 3.0))
    with caplog.at_level(logging.WARNING):
        price = ModelPrice(prices, "openai", "davinci", today=lambda: DAY)
        assert [price.usd(10**6, 10**6), price.usd(10**6, 0)] == [33.0, 3.0]
    assert len([record for record in caplog.records if "davinci" in record.getMessage()]) == 1


def test_an_unknown_model_on_a_server_of_ones_own_is_free_but_a_known_one_is_not() -> None:
    prices = table(row("gpt-5", 1.0))
    assert ModelPrice(prices, "openai", "qwen", free_if_unknown=True, today=lambda: DAY).usd(10**6, 10**6) == 0
    assert ModelPrice(prices, "openai", "gpt-5", free_if_unknown=True, today=lambda: DAY).usd(10**6, 0) == 1.0


def test_the_bundled_table_knows_every_default_model_at_its_list_price() -> None:
    prices = load_prices()
    found = {
        provider: ModelPrice(prices, provider, LlmSettings().model(provider), today=lambda: DAY).usd(50_000, 1000)
        for provider in ("anthropic", "openai", "gemini")
    }
    assert found == pytest.approx({"anthropic": 0.0055, "openai": 0.042, "gemini": 0.04125})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[]", "must hold as_of and prices"),
        (": {", "not readable as YAML"),
        ("as_of: 2026-01-01\nprices: []\n", "prices:"),
        ("as_of: 2026-01-01\nprices: [{provider: openai, prefix: x, input: -1, output: 1, source: s}]\n", "prices.0.input"),
        ("as_of: 2026-01-01\nprices: [{provider: openai, prefix: x, input: .nan, output: 1, source: s}]\n", "prices.0.input"),
        ("as_of: 2026-01-01\nprices: [{provider: openai, prefix: x, input: 1, output: 1}]\n", "prices.0.source"),
        ("as_of: 2026-01-01\nprices: [{provider: openai, prefix: x, inptu: 1, output: 1, source: s}]\n", "did you mean 'input'"),
    ],
)  # fmt: skip
def test_a_wrong_table_names_file_and_field(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_prices(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


def test_two_rows_of_the_same_day_are_refused() -> None:
    with pytest.raises(ValueError, match="two rows"):
        table(row("gpt", 1.0), row("gpt", 2.0))
