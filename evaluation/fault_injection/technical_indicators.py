"""Faults of the technical analyst's indicators: wrong value, window, interval or reading.

Listed in `registry`. A wrong indicator stays where it was alone in half of the cases and is repeated by evidence and text
in the other half.
"""

from __future__ import annotations

from typing import Any

from evaluation.fault_injection.drawing import (
    beyond,
    by_factor,
    carried_along,
    digits_swapped,
    evidence_of,
    log_uniform,
    rounded,
    side_of,
)
from evaluation.fault_injection.model import Case, Mutant, operators
from evaluation.fault_injection.stale_indicators import indicator_value, wrong_windows
from utils.json_pointer import join

INDICATOR_TOLERANCE = 0.05
OVERBOUGHT, OVERSOLD = 70.0, 30.0
NEAR_ZERO = 1e-4
"""Smallest share of the price from which a relative error of MACD means anything."""
BOUNDED = ("rsi_14", "stoch_k", "stoch_d", "mfi_14")
SWAPS = {
    "macd": "macd_signal", "macd_signal": "macd", "bb_upper": "bb_lower", "bb_lower": "bb_upper", "stoch_k": "stoch_d",
    "stoch_d": "stoch_k", "sma_20": "sma_50", "sma_50": "sma_200", "sma_200": "sma_20", "ema_12": "ema_26",
    "ema_26": "ema_12", "rsi_14": "mfi_14", "mfi_14": "rsi_14", "adx_14": "rsi_14", "atr_14": "macd",
}  # fmt: skip
"""Columns that are taken for one another."""


def _by_factor(case: Case) -> Mutant | None:
    return _miscomputed(case, lambda name, value: by_factor(case.rng, value, INDICATOR_TOLERANCE))


def _digits_swapped(case: Case) -> Mutant | None:
    return _miscomputed(case, lambda name, value: digits_swapped(case.rng, value))


def _of_earlier_bar(case: Case) -> Mutant | None:
    """Take the value of up to 120 bars ago."""
    bars_ago = int(log_uniform(case.rng, 1, 120))
    snapshot = case.truth.snapshot
    return None if snapshot is None else _miscomputed(case, lambda n, v: indicator_value(snapshot.bars, n, bars_ago))


def _over_wrong_window(case: Case) -> Mutant | None:
    snapshot = case.truth.snapshot

    def wrong(name: str, value: float) -> float | None:
        windows = wrong_windows(name)
        if snapshot is None or not windows:
            return None
        return indicator_value(snapshot.bars, name, 0, case.rng.choice(windows))

    return _miscomputed(case, wrong)


def _of_another_symbol(case: Case) -> Mutant | None:
    other = case.peer.output["indicators"] if case.peer is not None else {}
    return _miscomputed(case, lambda name, value: other.get(name))


def _of_another_column(case: Case) -> Mutant | None:
    return _miscomputed(case, lambda name, value: case.output["indicators"].get(SWAPS.get(name, "")))


def _out_of_scale(case: Case) -> Mutant | None:
    """Write an oscillator of 0..100 beyond its range."""
    names = [name for name in BOUNDED if name in case.output["indicators"]]
    wrong = case.rng.choice(
        (case.rng.uniform(101.0, 160.0), case.rng.uniform(-60.0, -1.0), case.rng.uniform(300, 9900))
    )
    return _miscomputed(case, lambda name, value: wrong, names)


def _sign_lost(case: Case) -> Mutant | None:
    names = [name for name in ("macd", "macd_signal", "obv") if name in case.output["indicators"]]
    return _miscomputed(case, lambda name, value: -value, names)


def _miscomputed(case: Case, wrong: Any, names: list[str] | None = None) -> Mutant | None:
    """Return the output with one indicator off, unless that would make its signal wrong as well."""
    indicators = case.output["indicators"]
    names = sorted(indicators) if names is None else names
    if not names:
        return None
    name = case.rng.choice(names)
    right = indicators[name]
    value = wrong(name, right)
    if value is None or abs(right) < NEAR_ZERO * case.output["current_price"]:
        return None
    value = rounded(value)
    side = side_of(case.output)
    if name == "rsi_14" and ((side > 0 and value > OVERBOUGHT) or (side < 0 and value < OVERSOLD)):
        return None
    if not beyond(value, right, INDICATOR_TOLERANCE):
        return None
    pointer = join("indicators", name)
    changes, broken = carried_along(case.rng, case.output, name, right, value)
    same = tuple(place for place in changes if place.endswith("/value"))
    return case.mutant(pointer, {pointer: value, **changes}, same=same, consequences=broken)


def _overbought_bought(case: Case) -> Mutant | None:
    return _against_rsi(case, "buy")


def _oversold_sold(case: Case) -> Mutant | None:
    return _against_rsi(case, "sell")


def _extreme_chased(case: Case) -> Mutant | None:
    rsi = case.output["indicators"].get("rsi_14", 50.0)
    return _against_rsi(case, "strong_buy" if rsi > 50 else "strong_sell")


def _against_rsi(case: Case, recommendation: str) -> Mutant | None:
    """Take a side that RSI speaks against, with signal and conviction to match."""
    rsi = case.output["indicators"].get("rsi_14")
    if rsi is None or (rsi <= OVERBOUGHT + 0.2 if "buy" in recommendation else rsi >= OVERSOLD - 0.2):
        return None
    changes = {
        "/recommendation": recommendation,
        "/signal": recommendation.removeprefix("strong_"),
        "/confidence": round(case.rng.uniform(0.55, 0.85), 3),
    }
    return case.mutant("/recommendation", changes, same=("/signal", "/indicators/rsi_14"))


def _one_hourly(case: Case) -> Mutant | None:
    return _other_interval(case, ("1h", "4h", "60min"))


def _one_intraday(case: Case) -> Mutant | None:
    return _other_interval(case, ("5min", "15min", "1min"))


def _one_weekly(case: Case) -> Mutant | None:
    return _other_interval(case, ("1wk", "1mo"))


def _other_interval(case: Case, intervals: tuple[str, ...]) -> Mutant | None:
    items = [index for index, _ in evidence_of(case.output, "indicator")]
    if len(items) < 3:
        return None
    index = case.rng.choice(items)
    place = join("evidence", index)
    name = str(case.output["evidence"][index]["id"]).rpartition(":")[2]
    wrong = case.rng.choice(intervals)
    same = (place, join("indicators", name), "/indicators")
    return case.mutant(f"{place}/bar_interval", {f"{place}/bar_interval": wrong}, same=same)


OPERATORS = (
    *operators(
        "indicator_calculation_error",
        "technical",
        _by_factor,
        _digits_swapped,
        _of_earlier_bar,
        _over_wrong_window,
        _of_another_symbol,
        _of_another_column,
        _out_of_scale,
        _sign_lost,
    ),
    *operators("wrong_signal_interpretation", "technical", _overbought_bought, _oversold_sold, _extreme_chased),
    *operators("timeframe_confusion", "technical", _one_hourly, _one_intraday, _one_weekly),
)
