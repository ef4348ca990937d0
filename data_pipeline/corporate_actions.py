"""Splits and dividends, told from the adjusted closes that a price file carries beside the closes.

The as-of store asks once for every bar it takes in; the broker receives the result. Only the day-on-day ratio of the
two moves is used, never an adjusted price: those are rewritten by every later dividend, so their level knows the future.
"""

from __future__ import annotations

from utils.schema import Bar, CorporateAction

MIN_DIVIDEND_YIELD = 2e-5
"""A factor nearer to 1 than this is arithmetic noise: no company pays a cent on a share of 500 USD."""

MIN_SPLIT_FACTOR = 1.2
"""Six for five. Smaller stock dividends are booked as cash of the same worth, as which they cannot be told apart."""

SPLIT_TOLERANCE = 2e-3
"""Relative distance at which a factor counts as a simple fraction (Alphabet's of 2014 was 1998 for 1000)."""

MAX_ORDINARY_YIELD = 0.03
"""The most that a dividend on the very day of a split is taken to be, as a share of the price."""

COMPOUND_SPLIT_FACTOR = 1.45
"""From here on a factor that is no fraction is a split with a dividend on one day: no dividend is a third of the price."""

MAX_FACTOR_TOLERANCE = 0.05
"""A factor known no better than this says nothing; prices of a fraction of a cent print too few digits."""

_MAX_RATIO = 200
_DENOMINATORS = (1, 2, 3, 4, 5)


def actions_of(bar: Bar, prior_close: float | None) -> tuple[CorporateAction, ...]:
    """Return what happened to the shares on the day of `bar`, in the order in which to book it.

    Parameters
    ----------
    bar : Bar
        With `adj_factor` f, the move of the adjusted close divided by the move of the close.
    prior_close : float or None
        Close P of the bar before, in USD as quoted then; None for the first bar, which tells nothing.

    Returns
    -------
    tuple of CorporateAction
        Empty on an ordinary day. A large fall in both closes leaves f at 1 and is therefore none: it is a real fall.
        For a split and a dividend on one day the split comes first and the dividend is a share after the split.

    Notes
    -----
    Vendors that follow CRSP (Yahoo says so of its adjusted close) multiply every earlier price by 1 - D/P, so that
    f = 1 / (1 - D/P) and the dividend a share is D = P·(1 - 1/f). Writing D = P·(f - 1) is the classic mistake: it
    overstates the cash by the yield squared.

    A split of p new shares for q old gives f = p/q; a consolidation gives f < 1, which no dividend can.
    """
    factor = bar.adj_factor
    if factor is None or prior_close is None or bar.factor_tolerance > MAX_FACTOR_TOLERANCE:
        return ()
    if abs(factor - 1) <= max(bar.factor_tolerance, MIN_DIVIDEND_YIELD):
        return ()
    ratio = split_ratio(factor, bar.factor_tolerance)
    if ratio is not None:
        return (_split(bar, ratio),)
    if factor < 1:
        return ()
    compound = _split_with_dividend(factor) if factor >= COMPOUND_SPLIT_FACTOR else None
    if compound is not None:
        cash = dividend_cash(factor / compound, prior_close / compound)
        return (_split(bar, compound), _dividend(bar, cash))
    return (_dividend(bar, dividend_cash(factor, prior_close)),)


def dividend_cash(factor: float, prior_close: float) -> float:
    """Return the dividend in USD a share, D = P·(1 - 1/f); see `actions_of`."""
    return prior_close * (1.0 - 1.0 / factor)


def split_ratio(factor: float, tolerance: float = 0.0) -> float | None:
    """Return new shares for one old if `factor` is near a simple fraction p/q with q up to 5, else None.

    Where the printed digits determine the factor more sharply than the fraction is near, the factor itself is returned.
    """
    size = factor if factor > 1 else 1.0 / factor
    if not MIN_SPLIT_FACTOR - SPLIT_TOLERANCE <= size <= _MAX_RATIO * (1 + SPLIT_TOLERANCE):
        return None
    allowed = max(SPLIT_TOLERANCE, min(tolerance, SPLIT_TOLERANCE * 2))
    for denominator in _DENOMINATORS:
        numerator = round(size * denominator)
        exact = numerator / denominator
        if exact > 1 and abs(size / exact - 1) <= allowed:
            chosen = exact if abs(size / exact - 1) <= max(tolerance, MIN_DIVIDEND_YIELD) else size
            return chosen if factor > 1 else 1.0 / chosen
    return None


def as_prior_close_factor(factor: float, close: float, prior_close: float, tolerance: float = 0.0) -> float:
    """Return a factor of the convention f = 1 + D/C, C the close of the ex-day, in the convention of `actions_of`.

    The bundled sample history adjusts in that way (Quandl's WIKI prices). Its splits are the same in both.
    """
    if abs(factor - 1) <= max(tolerance, MIN_DIVIDEND_YIELD) or split_ratio(factor, tolerance) is not None:
        return factor
    cash = (factor - 1.0) * close
    return prior_close / (prior_close - cash) if 0 < cash < prior_close else factor


def _split_with_dividend(factor: float) -> float | None:
    """Return the split by the largest p/q, q up to 2, that leaves an ordinary dividend's factor, None if none does."""
    candidates = (int(factor * denominator) / denominator for denominator in (1, 2))
    plausible = [ratio for ratio in candidates if ratio > 1 and factor / ratio - 1 <= MAX_ORDINARY_YIELD]
    return max(plausible, default=None)


def _split(bar: Bar, ratio: float) -> CorporateAction:
    return CorporateAction(bar.symbol, bar.session, "split", ratio, bar.available_at)


def _dividend(bar: Bar, cash: float) -> CorporateAction:
    return CorporateAction(bar.symbol, bar.session, "dividend", cash, bar.available_at)
