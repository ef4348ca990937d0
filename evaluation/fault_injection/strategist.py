"""Faults of the strategist: unresolved conflict, wrong size, lost stop, wishful target, wrong ratio, ignored portfolio.

Listed in `registry`. Where a price moves, the ratio that follows from it is recomputed, as somebody who believed the price
would have done.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from evaluation.fault_injection.drawing import MARGIN, beyond, by_factor, log_uniform, rounded, side_of
from evaluation.fault_injection.model import ABSENT, Case, Mutant, operators
from utils.schema import direction

MAX_SIZE = 0.2
RATIO_TOLERANCE = 0.05
REACH_SIGMAS = 4.0
ENTRY_ATRS = 3.0
HORIZON_SESSIONS = {"intraday": 1, "short_term": 5}
"""Longest count of sessions of a horizon that the target is measured by."""

FIRM = 0.5
_BLAND = ("Balanced view of the inputs", "Momentum and valuation considered", "Market conditions are mixed")


def _conflict_not_named(case: Case) -> Mutant | None:
    """Leave the conflict and its resolution out of the key factors."""
    if not _in_conflict(case):
        return None
    kept = [text for text in case.output["key_factors"] if "conflict" not in text]
    return case.mutant("/key_factors", {"/key_factors": kept}) if kept else None


def _conflict_glossed_over(case: Case) -> Mutant | None:
    if not _in_conflict(case):
        return None
    bland = case.rng.sample(_BLAND, case.rng.randrange(1, 4))
    return case.mutant("/key_factors", {"/key_factors": bland})


def _only_the_supporters_named(case: Case) -> Mutant | None:
    side = side_of(case.output)
    if not _in_conflict(case) or not side:
        return None
    kept = [
        f"{n}: {o.recommendation}"
        for n, o in sorted(case.truth.agent_outputs.items())
        if direction(o.recommendation) == side
    ]
    return case.mutant("/key_factors", {"/key_factors": kept})


def _conflict_overheard(case: Case) -> Mutant | None:
    """Decide as before although one of the analysts has changed sides."""
    outputs = case.truth.agent_outputs
    firm = {
        n: o for n, o in outputs.items() if not o.abstained and direction(o.recommendation) and o.confidence >= FIRM
    }
    if _in_conflict(case) or len(firm) < 2 or any("conflict" in text for text in case.output["key_factors"]):
        return None
    name = case.rng.choice(sorted(firm))
    turned = firm[name].model_copy(
        update={"recommendation": "sell" if direction(firm[name].recommendation) > 0 else "buy", "confidence": 0.7}
    )
    truth = replace(case.truth, agent_outputs={**outputs, name: turned})
    bland = [text for text in case.output["key_factors"] if not text.startswith(name)] or [_BLAND[0]]
    return case.mutant("/key_factors", {"/key_factors": bland}, truth=truth)


def _in_conflict(case: Case) -> bool:
    sides = {
        direction(o.recommendation)
        for o in case.truth.agent_outputs.values()
        if not o.abstained and o.confidence >= FIRM
    }
    return {1, -1} <= sides


def _size_too_large(case: Case) -> Mutant | None:
    return _oversized(case, case.rng.uniform(MAX_SIZE * 1.02, 1.0))


def _size_decimal_slip(case: Case) -> Mutant | None:
    return _oversized(case, case.output["position_size"] * 10)


def _oversized(case: Case, size: float) -> Mutant | None:
    if side_of(case.output) <= 0 or not MAX_SIZE * 1.02 <= size <= 1:
        return None
    return case.mutant(
        "/position_size", {"/position_size": round(size, 4)}, consequences=("portfolio_context_ignored",)
    )


def _hold_with_a_size(case: Case) -> Mutant | None:
    if side_of(case.output) or case.output["position_size"] > 0:
        return None
    wrong = round(log_uniform(case.rng, 0.005, MAX_SIZE / MARGIN), 4)
    broken = ("portfolio_context_ignored",)
    return case.mutant("/position_size", {"/position_size": wrong}, same=("/recommendation",), consequences=broken)


def _stop_null(case: Case) -> Mutant | None:
    return case.mutant("/stop_loss", {"/stop_loss": None}) if _has_levels(case) else None


def _stop_absent(case: Case) -> Mutant | None:
    return case.mutant("/stop_loss", {"/stop_loss": ABSENT}) if _has_levels(case) else None


def _stop_and_ratio_null(case: Case) -> Mutant | None:
    changes = {"/stop_loss": None, "/risk_reward_ratio": None}
    return case.mutant("/stop_loss", changes) if _has_levels(case) else None


def _target_on_wrong_side(case: Case) -> Mutant | None:
    """Set the target where a trade of the other side would have it."""
    if not _has_levels(case):
        return None
    entry, take = case.output["entry_target"], case.output["take_profit"]
    wrong = rounded(entry - (take - entry) * log_uniform(case.rng, 0.2, 1.5))
    return _taken(case, wrong) if wrong > 0 else None


def _target_out_of_reach(case: Case) -> Mutant | None:
    reach = _reach(case)
    if reach is None:
        return None
    share = reach * log_uniform(case.rng, MARGIN, 8.0)
    wrong = case.output["entry_target"] * (1 + side_of(case.output) * share)
    return _taken(case, rounded(wrong)) if wrong > 0 else None


def _target_of_a_long_horizon(case: Case) -> Mutant | None:
    """Give a year's target to a trade of days."""
    reach = _reach(case)
    share = case.rng.choice((0.25, 0.5, 1.0))
    if reach is None or share < reach * MARGIN:
        return None
    wrong = case.output["entry_target"] * (1 + side_of(case.output) * share)
    return _taken(case, rounded(wrong)) if wrong > 0 else None


def _taken(case: Case, take: float) -> Mutant:
    entry, stop = case.output["entry_target"], case.output["stop_loss"]
    changes = {"/take_profit": take, "/risk_reward_ratio": _ratio(entry, stop, take)}
    return case.mutant("/take_profit", changes)


def _reach(case: Case) -> float | None:
    """Return the farthest target as a share of the entry, None where the volatility or a level is unknown."""
    snapshot, sessions = case.truth.snapshot, HORIZON_SESSIONS.get(case.output["time_horizon"])
    if snapshot is None or sessions is None or not _has_levels(case) or snapshot.inputs.daily_volatility <= 0:
        return None
    return REACH_SIGMAS * snapshot.inputs.daily_volatility * math.sqrt(sessions)


def _ratio_off(case: Case) -> Mutant | None:
    return _miscounted(case, lambda ratio: by_factor(case.rng, ratio, RATIO_TOLERANCE, 3.0))


def _ratio_inverted(case: Case) -> Mutant | None:
    return _miscounted(case, lambda ratio: 1 / ratio)


def _ratio_of_round_numbers(case: Case) -> Mutant | None:
    """Write the ratio that one likes to see."""
    return _miscounted(case, lambda ratio: case.rng.choice((1.0, 1.5, 2.0, 2.5, 3.0, 5.0)))


def _miscounted(case: Case, wrong: Any) -> Mutant | None:
    if not _has_levels(case):
        return None
    right = _ratio(case.output["entry_target"], case.output["stop_loss"], case.output["take_profit"])
    value = round(wrong(right), 4)
    if not beyond(value, right, RATIO_TOLERANCE) or value <= 0:
        return None
    return case.mutant("/risk_reward_ratio", {"/risk_reward_ratio": value})


def _stop_on_wrong_side(case: Case) -> Mutant | None:
    if not _has_levels(case):
        return None
    entry, stop, take = (case.output[name] for name in ("entry_target", "stop_loss", "take_profit"))
    wrong = rounded(entry + (entry - stop) * log_uniform(case.rng, 0.3, 2.0))
    return case.mutant("/stop_loss", {"/stop_loss": wrong, "/risk_reward_ratio": _ratio(entry, wrong, take)})


def _more_than_the_cash(case: Case) -> Mutant | None:
    return _beyond_cash(case, lambda free: free + log_uniform(case.rng, 0.01, MAX_SIZE))


def _full_size_without_cash(case: Case) -> Mutant | None:
    """Take the usual size whatever is left."""
    return _beyond_cash(case, lambda free: case.rng.choice((0.05, 0.1, 0.15)))


def _beyond_cash(case: Case, wrong: Any) -> Mutant | None:
    portfolio = case.truth.portfolio
    if side_of(case.output) <= 0 or portfolio is None or portfolio.equity <= 0:
        return None
    free = max(0.0, portfolio.cash) / portfolio.equity + portfolio.weights.get(case.output["symbol"], 0.0)
    size = round(wrong(free), 4)
    if not free + 0.008 <= size <= MAX_SIZE / 1.01:
        return None
    return case.mutant("/position_size", {"/position_size": size})


def _sold_without_holding(case: Case) -> Mutant | None:
    """Sell what is not held, with levels that would suit a sale."""
    snapshot, portfolio = case.truth.snapshot, case.truth.portfolio
    held = portfolio.weights.get(case.output["symbol"], 0.0) if portfolio is not None else 1.0
    # a hold with a falling expectation is what a rule that looks at the portfolio makes of a sale
    if (
        snapshot is None
        or snapshot.price is None
        or held > 0
        or side_of(case.output)
        or case.output["expected_return"] >= 0
    ):
        return None
    if case.output["confidence"] < FIRM or snapshot.inputs.daily_volatility <= 0:
        return None
    entry, move = rounded(snapshot.price), snapshot.inputs.daily_volatility
    stop, take = rounded(entry * (1 + 1.5 * move)), rounded(entry * (1 - 3 * move))
    changes = {
        "/recommendation": "sell", "/entry_target": entry, "/stop_loss": stop, "/take_profit": take,
        "/risk_reward_ratio": _ratio(entry, stop, take),
        "/risk_assessment": "A rise against the sale is cut at the stop; overnight gaps can fill beyond it.",
    }  # fmt: skip
    return case.mutant("/recommendation", changes, same=("/position_size",))


def _entry_far_above(case: Case) -> Mutant | None:
    return _entered(case, 1)


def _entry_far_below(case: Case) -> Mutant | None:
    return _entered(case, -1)


def _entered(case: Case, way: int) -> Mutant | None:
    """Move entry, stop and target together far from the price."""
    atr = _atr(case)
    if atr is None or not _has_levels(case) or case.truth.snapshot is None or case.truth.snapshot.price is None:
        return None
    price, entry = case.truth.snapshot.price, case.output["entry_target"]
    factor = (price + way * atr * log_uniform(case.rng, ENTRY_ATRS * MARGIN, 20.0)) / entry
    if factor < 0.2:
        return None
    changes = {f"/{n}": rounded(case.output[n] * factor) for n in ("entry_target", "stop_loss", "take_profit")}
    changes["/risk_reward_ratio"] = _ratio(*(changes[f"/{n}"] for n in ("entry_target", "stop_loss", "take_profit")))
    # stop and target keep their distance from the entry; measured from the price they are out of place with it
    broken = ("take_profit_unrealistic", "risk_reward_miscalculation")
    return case.mutant("/entry_target", changes, consequences=broken)


def _intraday_after_the_close(case: Case) -> Mutant | None:
    """Plan a trade within a session that is over."""
    if case.truth.market_open is not False or not side_of(case.output):
        return None
    broken = ("take_profit_unrealistic", "timeframe_mismatch")
    return case.mutant("/time_horizon", {"/time_horizon": "intraday"}, consequences=broken)


def _atr(case: Case) -> float | None:
    technical = case.truth.agent_outputs.get("technical")
    return getattr(technical, "indicators", {}).get("atr_14")


def _has_levels(case: Case) -> bool:
    levels = (case.output.get(name) for name in ("entry_target", "stop_loss", "take_profit"))
    return bool(side_of(case.output)) and all(isinstance(level, int | float) and level > 0 for level in levels)


def _ratio(entry: float, stop: float, take: float) -> float:
    return round(abs(take - entry) / abs(entry - stop), 4)


OPERATORS = (
    *operators(
        "conflicting_signals_unresolved", "strategist",
        _conflict_not_named, _conflict_glossed_over, _only_the_supporters_named, _conflict_overheard,
    ),
    *operators("position_size_inappropriate", "strategist", _size_too_large, _size_decimal_slip, _hold_with_a_size),
    *operators("stop_loss_missing", "strategist", _stop_null, _stop_absent, _stop_and_ratio_null),
    *operators(
        "take_profit_unrealistic", "strategist", _target_on_wrong_side, _target_out_of_reach, _target_of_a_long_horizon
    ),
    *operators(
        "risk_reward_miscalculation", "strategist", _ratio_off, _ratio_inverted, _ratio_of_round_numbers, _stop_on_wrong_side
    ),
    *operators("portfolio_context_ignored", "strategist", _more_than_the_cash, _full_size_without_cash, _sold_without_holding),
    *operators("timing_inappropriate", "strategist", _entry_far_above, _entry_far_below, _intraday_after_the_close),
)  # fmt: skip
