"""What a strategist's decision can get wrong: size, stop, target, ratio, portfolio, timing, unresolved conflicts.

`trade` is run first. It reads side, entry and levels together, and where all of them speak against one field, it takes
that field for the corrupt one, so that the others are not blamed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from data_pipeline.rounding import price_figure
from evaluation.detectors.case import Case, letters, stated_price
from utils.schema import AgentOutput, TechnicalOutput, direction

LEAST_LETTERS = 20
MAX_SIZE = 0.20
RATIO_TOLERANCE = 0.05
REACH_SIGMAS = 4.0
FAR_ATRS = 3.0
CONFIDENT = 0.5
CASH_SLACK = 0.005
"""Share of the size by which rounding and fees may exceed the cash."""

HORIZON_SESSIONS = {"intraday": 1, "short_term": 5, "medium_term": 60, "long_term": 252}
"""Longest of each horizon in sessions; a year where it is open."""

LEAST_VOTES = 3
"""Witnesses against a side that outweigh it."""

_ROUNDING = 1e-6
_RESOLVED = ("conflict", "disagree", "oppos", "contradict", "outweigh", "despite", "overrid", "resolv")


@dataclass(frozen=True, slots=True)
class Trade:
    """A decision's levels with the side and entry that they were made for.

    `entry_is_far` says that the stated entry is out of reach, so that levels are measured from the price.
    """

    side: int
    entry: float | None
    price: float | None
    atr: float | None
    entry_is_far: bool


def trade(case: Case) -> None:
    """Read the levels once, and report a side that all of them stand against."""
    output, side = case.output, case.side
    price = case.facts.price if case.facts else None
    price = price or stated_price(output)
    atr = _atr(case)
    entry = output.entry_target if "entry_target" not in case.broken else None
    far = bool(entry and price and atr and abs(entry - price) > FAR_ATRS * atr * (1 + _ROUNDING))
    entry = price if far or entry is None else entry
    votes = []
    if entry is not None:
        if output.stop_loss is not None:
            votes.append(entry - output.stop_loss)
        if output.take_profit is not None:
            votes.append(output.take_profit - entry)
    votes.append(output.signals.get("consensus", 0.0))
    others = [1 if vote > 0 else -1 for vote in votes if vote]
    case.scratch["side_votes"] = others
    if output.expected_return:
        others = [*others, 1 if output.expected_return > 0 else -1]
    if side and len(others) >= LEAST_VOTES and all(vote == -side for vote in others):
        right = "buy" if side < 0 else "sell"
        case.report(
            "wrong_recommendation", "/recommendation",
            f"{output.recommendation} where expected return, stop and target are those of a {right}",
            found=output.recommendation, expected=right, corrected=right,
        )  # fmt: skip
        side = -side
    case.scratch["trade"] = Trade(side, entry, price, atr, far)


def _atr(case: Case) -> float | None:
    if case.facts and case.facts.atr:
        return case.facts.atr
    technical = case.truth.agent_outputs.get("technical")
    if isinstance(technical, TechnicalOutput) and technical.indicators.get("atr_14"):
        return technical.indicators["atr_14"]
    if "evidence" in case.broken:
        return None
    return next(
        (item.value for item in case.output.evidence if item.id.endswith("atr_14") and isinstance(item.value, float)),
        None,
    )


def missing_risk_assessment(case: Case) -> None:
    """Report a side whose risk is not described."""
    if case.side and not letters(case.output.risk_assessment, LEAST_LETTERS):
        count = sum(map(str.isalpha, case.output.risk_assessment))
        text = f"a {case.output.recommendation} with a risk assessment of {count} letters"
        case.report(
            "missing_risk_assessment",
            "/risk_assessment",
            text,
            found=count,
            expected=f"at least {LEAST_LETTERS} letters",
        )


def position_size_inappropriate(case: Case) -> None:
    """Report sizes beyond a fifth of equity, and holds with a size."""
    size = case.output.position_size
    if not case.side and size > 0 and "recommendation" not in case.broken:
        case.report(
            "position_size_inappropriate", "/position_size", f"a hold with a size of {size:.4g}",
            found=size, expected=0.0, corrected=0.0,
        )  # fmt: skip
    elif size > MAX_SIZE:
        case.report(
            "position_size_inappropriate", "/position_size", f"{size:.4g} of equity in one symbol",
            found=size, expected=f"at most {MAX_SIZE}", corrected=MAX_SIZE,
        )  # fmt: skip


def stop_loss_missing(case: Case) -> None:
    """Report a side without a stop."""
    if not case.side or case.output.stop_loss is not None:
        return
    right = _mirrored_stop(case)
    text = f"a {case.output.recommendation} without a stop"
    case.report(
        "stop_loss_missing", "/stop_loss", text, found="none",
        expected=right if right is not None else "a price at which the trade ends", corrected=right,
    )  # fmt: skip


def _mirrored_stop(case: Case) -> float | None:
    """Return the stop that entry, target and ratio imply."""
    plan: Trade = case.scratch["trade"]
    ratio, take = case.output.risk_reward_ratio, case.output.take_profit
    if not ratio or take is None or plan.entry is None or plan.side * (take - plan.entry) <= 0:
        return None
    stop = plan.entry - plan.side * abs(take - plan.entry) / ratio
    return price_figure(stop) if stop > 0 else None


def take_profit_unrealistic(case: Case) -> None:
    """Report targets on the wrong side of the entry or out of reach."""
    plan: Trade = case.scratch["trade"]
    take = case.output.take_profit
    if not plan.side or take is None:
        return
    if plan.entry is None:
        case.skip("take_profit_unrealistic", "neither an entry nor a price is known")
        return
    right = _implied_take(case, plan)
    if plan.side * (take - plan.entry) <= 0:
        case.report(
            "take_profit_unrealistic", "/take_profit", f"the target {take:.6g} is on the wrong side of {plan.entry:.6g}",
            found=take, expected=right if right is not None else "a target on the side of the trade", corrected=right,
        )  # fmt: skip
        return
    sigma = case.facts.snapshot.inputs.daily_volatility if case.facts else 0.0
    if sigma <= 0:
        case.skip("take_profit_unrealistic", "the volatility is unknown; the side was checked")
        return
    if "time_horizon" in case.broken:
        return
    horizon = case.output.time_horizon
    if horizon == "intraday" and case.truth.market_open is False:
        horizon = "short_term"  # that the horizon is wrong is said elsewhere
    reach = REACH_SIGMAS * sigma * math.sqrt(HORIZON_SESSIONS[horizon])
    if abs(take / plan.entry - 1) > reach + _ROUNDING:
        inside = right if right is not None and abs(right / plan.entry - 1) <= reach else None
        if inside is None and plan.entry * (1 + plan.side * reach) > 0:
            inside = price_figure(plan.entry * (1 + plan.side * reach * (1 - CASH_SLACK)))
        text = f"the target is {abs(take / plan.entry - 1):.4g} away, four standard deviations are {reach:.4g}"
        case.report(
            "take_profit_unrealistic", "/take_profit", text, found=take, expected=inside, corrected=inside, reach=reach
        )


def _implied_take(case: Case, plan: Trade) -> float | None:
    """Return the target that entry, stop and ratio imply."""
    ratio, stop = case.output.risk_reward_ratio, case.output.stop_loss
    if not ratio or stop is None or plan.entry is None or plan.side * (plan.entry - stop) <= 0:
        return None
    take = plan.entry + plan.side * ratio * abs(plan.entry - stop)
    return price_figure(take) if take > 0 else None


def risk_reward_miscalculation(case: Case) -> None:
    """Report stops on the wrong side of the entry, and ratios that are not those of the levels."""
    plan: Trade = case.scratch["trade"]
    stop, take, ratio = case.output.stop_loss, case.output.take_profit, case.output.risk_reward_ratio
    if not plan.side or stop is None:
        return
    if plan.entry is None:
        case.skip("risk_reward_miscalculation", "neither an entry nor a price is known")
        return
    if plan.side * (plan.entry - stop) <= 0:
        right = _mirrored_stop(case)
        case.report(
            "risk_reward_miscalculation", "/stop_loss", f"the stop {stop:.6g} is on the wrong side of {plan.entry:.6g}",
            found=stop, expected=right if right is not None else "a stop against the side of the trade", corrected=right,
        )  # fmt: skip
        return
    # with a target or an entry that is wrong itself, the stated ratio is the better witness
    if take is None or ratio is None or plan.entry_is_far or case.found_at("/take_profit"):
        return
    right = abs(take - plan.entry) / abs(plan.entry - stop)
    if abs(ratio - right) > RATIO_TOLERANCE * right + _ROUNDING:
        right = round(right, 4)
        text = f"the ratio is {right:.4g}, not {ratio:.4g}"
        case.report(
            "risk_reward_miscalculation", "/risk_reward_ratio", text, found=ratio, expected=right, corrected=right
        )


def portfolio_context_ignored(case: Case) -> None:
    """Report purchases that the cash does not pay for, and sales of what is not held."""
    portfolio = case.truth.portfolio
    plan: Trade = case.scratch["trade"]
    if portfolio is None or not plan.side:
        return
    held = portfolio.weights.get(case.output.symbol, 0.0)
    if plan.side < 0:
        if held <= 0:
            text = f"{case.output.symbol} is to be sold but not held"
            case.report(
                "portfolio_context_ignored", "/recommendation", text,
                found=case.output.recommendation, expected="hold", corrected="hold",
            )  # fmt: skip
        return
    free = max(0.0, portfolio.cash) / portfolio.equity if portfolio.equity > 0 else 0.0
    affordable = max(0.0, held) + free
    # what exceeds the limit for a symbol has been said; beyond the cash is a second fault only below it
    size = min(case.output.position_size, MAX_SIZE)
    if size > affordable * (1 + CASH_SLACK) + _ROUNDING:
        right = math.floor(affordable * 1e4) / 1e4
        text = f"{case.output.position_size:.4g} of equity, cash and holding allow {affordable:.4g}"
        case.report(
            "portfolio_context_ignored", "/position_size", text,
            found=case.output.position_size, expected=right, corrected=right,
        )  # fmt: skip


def timing_inappropriate(case: Case) -> None:
    """Report entries out of reach, and intraday plans while the market is closed."""
    plan: Trade = case.scratch["trade"]
    entry = case.output.entry_target
    if entry is not None and "entry_target" not in case.broken:
        if plan.price is None or plan.atr is None:
            case.skip("timing_inappropriate", "price or average true range is unknown")
        elif plan.entry_is_far:
            text = (
                f"the entry {entry:.6g} is {abs(entry - plan.price) / plan.atr:.3g} ATR from the price {plan.price:.6g}"
            )
            case.report(
                "timing_inappropriate", "/entry_target", text, found=entry, expected=plan.price, corrected=plan.price
            )
    if case.output.time_horizon == "intraday" and "time_horizon" not in case.broken:
        if case.truth.market_open is None:
            case.skip("timing_inappropriate", "whether the market is open is unknown")
        elif not case.truth.market_open and case.side:
            text = "an intraday trade while the market is closed"
            case.report(
                "timing_inappropriate", "/time_horizon", text,
                found="intraday", expected="short_term", corrected="short_term",
            )  # fmt: skip


def conflicting_signals_unresolved(case: Case) -> None:
    """Report confident inputs on both sides of which neither trace nor key factors say how they were weighed."""
    inputs = {
        name: direction(other.recommendation)
        for name, other in case.truth.agent_outputs.items()
        if isinstance(other, AgentOutput) and not other.abstained and other.confidence >= CONFIDENT
    }
    if not {1, -1} <= set(inputs.values()):
        return
    said = " ".join(case.output.key_factors).lower()
    if any(word in said for word in _RESOLVED) or any("conflict" in str(step).lower() for step in case.truth.workflow):
        return
    camps = ", ".join(f"{name} {'buys' if side > 0 else 'sells'}" for name, side in sorted(inputs.items()) if side)
    case.report(
        "conflicting_signals_unresolved", "/key_factors", f"{camps}, and nothing says how that was resolved",
        found=camps, expected="how the conflict was resolved",
    )  # fmt: skip
