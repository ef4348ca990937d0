"""Generated filings for a history that has none, so that fundamental outputs can be measured. They say nothing of the companies.

Used by `clean_outputs`. Quarterly, seeded by symbol, consistent within themselves: earnings, shares, revenue, margin, debt
and equity add up, multiples rest on the price of the filing day. Every report that uses them says "generated filings".
"""

from __future__ import annotations

import math
import random
from datetime import UTC, date, datetime, time, timedelta

from utils.hashing import canonical_json, sha256_hex
from utils.schema import Filing

SECTORS = ("Technology", "Health Care", "Energy", "Financials", "Consumer Staples", "Utilities")
"""Drawn for each symbol; no statement about the companies either."""

STYLES = ("ratios", "statements", "full", "distressed", "loss")
"""What a company files: ready ratios, statements alone, both; both with heavy debt; statements with losses."""

YEARS_BEFORE = 4
SOURCE = "generated filing"


def sector_of(symbol: str) -> str:
    """Return the sector drawn for a symbol."""
    return random.Random(f"sector {symbol}").choice(SECTORS)


class GeneratedCompany:
    """The filings of one symbol, in step with its prices.

    Parameters
    ----------
    symbol : str
    start : date
        The first day of the prices; filings reach four years further back.
    price : float
        On that day, USD.
    """

    def __init__(self, symbol: str, start: date, price: float) -> None:
        self._rng = random.Random(f"filings {symbol}")
        rng = self._rng
        self.symbol = symbol
        self.style = rng.choice(STYLES)
        self._growth = rng.uniform(0.02, 0.16)
        self._margin = rng.uniform(0.06, 0.28)
        self._shares = round(math.exp(rng.uniform(math.log(2e8), math.log(6e9))))
        self._eps = price / rng.uniform(11.0, 28.0)
        self._leverage = rng.uniform(2.3, 4.5) if self.style == "distressed" else rng.uniform(0.15, 1.4)
        self._price0 = price
        self._revenues: list[float] = []
        self.filings: list[Filing] = []
        self._ended = _quarter_end(start - timedelta(days=365 * YEARS_BEFORE))
        self._number = 0
        self._quarters_before = 4 * YEARS_BEFORE
        while self.due < start:
            self.file(self._price0 * (1 + self._growth) ** ((self.due - start).days / 365.25))

    @property
    def due(self) -> date:
        """The day of the next filing."""
        return self._ended + timedelta(days=32)

    def file(self, price: float) -> Filing:
        """Add the filing that is due, at the price of its day, and return it."""
        rng = self._rng
        years = (self._number - self._quarters_before) / 4
        eps = self._eps * (1 + self._growth) ** years * (1 + rng.uniform(-0.02, 0.02))
        margin = self._margin * (1 + rng.uniform(-0.04, 0.04))
        revenue = round(eps * self._shares / margin, -3)
        if self.style == "loss":
            eps, margin = -0.4 * eps, -0.4 * margin
        income = round(eps * self._shares, -3)
        eps = round(income / self._shares, 4)
        equity = round(1.8 * abs(income) * (1 + rng.uniform(-0.03, 0.03)) / max(abs(margin), 0.05) ** 0.5, -3)
        debt = round(equity * self._leverage * (1 + rng.uniform(-0.03, 0.03)), -3)
        metrics = {"eps": eps, "revenue": revenue, "net_income": income, "total_debt": debt, "total_equity": equity}
        ratios = self._ratios(price, eps, revenue, income, debt / equity)
        if self.style == "statements":
            metrics |= {name: ratios[name] for name in ("debt_to_equity", "current_ratio", "interest_cover")}
        elif self.style == "ratios":
            metrics = ratios
        elif self.style == "loss":
            metrics |= {name: value for name, value in ratios.items() if name not in ("pe_ratio", "profit_margin")}
        else:
            metrics |= ratios
        filed = datetime.combine(self.due, time(12), UTC)
        identity = sha256_hex(f"{self.symbol}\x1f{filed.isoformat()}\x1f{self._ended}\x1f{canonical_json(metrics)}")[
            :16
        ]
        filing = Filing(identity, self.symbol, self._ended, filed, filed, metrics, SOURCE)
        self.filings.append(filing)
        self._ended = _quarter_end(self._ended + timedelta(days=20))
        self._number += 1
        return filing

    def _ratios(self, price: float, eps: float, revenue: float, income: float, leverage: float) -> dict[str, float]:
        rng, weak = self._rng, self.style == "distressed"
        ratios = {
            "profit_margin": round(income / revenue, 6),
            "debt_to_equity": round(leverage, 4),
            "current_ratio": round(rng.uniform(0.6, 0.9) if weak else rng.uniform(1.1, 2.6), 3),
            "interest_cover": round(rng.uniform(0.6, 1.3) if weak else rng.uniform(3.0, 20.0), 3),
        }
        if eps > 0:
            ratios["pe_ratio"] = round(price / eps, 4)
        if len(self.filings) >= 4:
            before = self._revenues[-4]
            ratios["revenue_growth"] = round(revenue / before - 1, 6)
        self._revenues.append(revenue)
        return ratios


def _quarter_end(day: date) -> date:
    """Return the end of the quarter that a day lies in."""
    month = 3 * ((day.month - 1) // 3) + 3
    following = date(day.year + month // 12, month % 12 + 1, 1)
    return following - timedelta(days=1)
