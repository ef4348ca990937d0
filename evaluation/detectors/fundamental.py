"""What a fundamental agent's output can get wrong about a company: multiples, earnings, debt, growth, peers.

Figures are held against the filings known at the decision; where there is no snapshot, against each other.
"""

from __future__ import annotations

from data_pipeline.filing_figures import MAX_PE, MULTIPLES
from evaluation.detectors.asof_facts import MULTIPLE_TOLERANCE, price_over_earnings
from evaluation.detectors.case import TOLERANCE, Case, differs, evidence_name, stated_price
from utils.json_pointer import join

EARNINGS_TOLERANCE = 0.01
LEVERAGE_TOLERANCE = 0.05
MAX_TARGET = 5.0
"""Price target over price beyond which it is no estimate."""

MAX_GROWTH = 0.5
MAX_GROWTH_OF_PAST = 3.0
LEAST_GROWTH = -0.9
HIGH_LEVERAGE, LOW_COVER, GOOD_HEALTH = 2.0, 1.5, 0.7
LOW_LIQUIDITY = 1.0
KEY_METRICS = ("pe_ratio", "revenue_growth", "profit_margin", "debt_to_equity")
EARNINGS = ("eps", "revenue", "net_income")

_GROWTH_OF = {"revenue_growth": "revenue", "earnings_growth": "eps", "eps_growth": "eps"}
_LIQUID_WORDS = ("liquid", "current ratio", "current_ratio", "short-term obligations")
_DEBT_WORDS = ("debt", "leverage", "gearing")


def missing_key_metric(case: Case) -> None:
    """Report an analysis without metrics, and filed key metrics that were left out."""
    metrics = case.output.key_metrics
    filed = case.facts.filed if case.facts else None
    if not metrics:
        known = {name: item.value for name, item in filed.figures.items()} if filed else None
        text = "no metric is given"
        case.report(
            "missing_key_metric", "/key_metrics", text, found="none", expected=", ".join(KEY_METRICS), corrected=known
        )
        return
    if case.facts is None:
        case.skip("missing_key_metric", "the filings are unknown; that there are metrics was checked")
    for name in KEY_METRICS:
        item = filed.figures.get(name) if filed else None
        if name not in metrics and item is not None and item.filing is not None:
            text = f"{name} is filed as {item.value:.6g} and left out"
            case.report(
                "missing_key_metric", f"/key_metrics/{name}", text,
                found="left out", expected=item.value, corrected=item.value,
            )  # fmt: skip


def earnings_hallucination(case: Case) -> None:
    """Report EPS, revenue and net income that stand in no filing."""
    if case.facts is None:
        case.skip("earnings_hallucination", "the filings are unknown")
        return
    for name in EARNINGS:
        value = case.output.key_metrics.get(name)
        if value is None:
            continue
        filings = case.facts.filings_with(name)
        if all(differs(value, filing.metrics[name], EARNINGS_TOLERANCE) for filing in filings):
            right = filings[-1].metrics[name] if filings else None
            text = f"{name} {value:.6g} stands in no known filing"
            case.report(
                "earnings_hallucination", f"/key_metrics/{name}", text, found=value,
                expected=right if right is not None else "a filed figure", corrected=right,
            )  # fmt: skip


def financial_ratio_misinterpretation(case: Case) -> None:
    """Report a negative P/E used as a ratio, and strengths that the ratios deny."""
    metrics, facts = case.output.key_metrics, case.facts
    pe_ratio = metrics.get("pe_ratio")
    if pe_ratio is not None and pe_ratio < 0:
        right = facts.filed_value("pe_ratio") if facts else None
        case.report(
            "financial_ratio_misinterpretation", "/key_metrics/pe_ratio", "a negative P/E ranks nothing",
            found=pe_ratio, expected=right if right is not None else "no P/E where there are losses", corrected=right,
        )  # fmt: skip
    if "key_strengths" in case.broken:
        return
    current = (facts.filed_value("current_ratio") if facts else None) or metrics.get("current_ratio")
    leverage = (facts.leverage if facts else None) or metrics.get("debt_to_equity")
    for i, strength in enumerate(case.output.key_strengths):
        text = strength.lower()
        for words, denied, against in (
            (_LIQUID_WORDS, current is not None and current < LOW_LIQUIDITY, f"a current ratio of {current}"),
            (_DEBT_WORDS, leverage is not None and leverage > HIGH_LEVERAGE, f"a debt/equity of {leverage}"),
        ):
            if denied and any(word in text for word in words):
                case.report(
                    "financial_ratio_misinterpretation", f"/key_strengths/{i}", f"{strength!r} stands against {against}",
                    found=strength, expected=against,
                )  # fmt: skip
                break


def valuation_calculation_error(case: Case) -> None:
    """Report impossible multiples, multiples off their parts, and targets out of all proportion."""
    for name in MULTIPLES:
        value = case.output.key_metrics.get(name)
        if value is None or (name == "pe_ratio" and value < 0):
            continue
        candidates = _multiples(case, name)
        right = candidates[0] if candidates else None
        if name == "pe_ratio" and value > MAX_PE:
            case.report(
                "valuation_calculation_error", "/key_metrics/pe_ratio", f"a P/E of {value:.6g} means nothing",
                found=value, expected=right if right is not None else f"at most {MAX_PE:.0f}", corrected=right,
            )  # fmt: skip
        elif candidates and all(differs(value, known, MULTIPLE_TOLERANCE) for known in candidates):
            text = f"{name} is {value:.6g}, by its parts {right:.6g}"
            case.report(
                "valuation_calculation_error",
                f"/key_metrics/{name}",
                text,
                found=value,
                expected=right,
                corrected=right,
            )
    if "price_target" not in case.broken:
        _target(case)


def _multiples(case: Case, name: str) -> list[float]:
    """Return what a multiple can be by the snapshot, or, without one, by what the output itself cites."""
    if case.facts:
        return case.facts.multiples(name)
    cited = [
        item.value
        for item in case.output.evidence
        if item.kind == "filing" and evidence_name(item) == name and isinstance(item.value, float)
    ]
    price, eps = stated_price(case.output), case.output.key_metrics.get("eps")
    if name == "pe_ratio" and price and eps:
        cited += price_over_earnings(price, [eps])
    return cited


def _target(case: Case) -> None:
    target = case.output.price_target
    price = (case.facts.price if case.facts else None) or stated_price(case.output)
    if target is not None and price and target > MAX_TARGET * price:
        text = f"the target {target:.6g} is {target / price:.3g} times the price {price:.6g}"
        case.report(
            "valuation_calculation_error", "/price_target", text,
            found=target, expected=f"at most {MAX_TARGET * price:.6g}",
        )  # fmt: skip


def debt_analysis_error(case: Case) -> None:
    """Report leverage off the filed one, and good health claimed for an overburdened company."""
    metrics, facts = case.output.key_metrics, case.facts
    leverage = facts.leverage if facts else None
    stated = metrics.get("debt_to_equity")
    if leverage is None and metrics.get("total_equity") and "total_debt" in metrics:
        leverage = metrics["total_debt"] / metrics["total_equity"]
    if leverage is None and stated is not None:
        case.skip("debt_analysis_error", "the filed leverage is unknown; health was checked")
    if stated is not None and leverage is not None and differs(stated, leverage, LEVERAGE_TOLERANCE):
        text = f"debt/equity is {leverage:.6g}, not {stated:.6g}"
        case.report(
            "debt_analysis_error", "/key_metrics/debt_to_equity", text,
            found=stated, expected=leverage, corrected=leverage,
        )  # fmt: skip
    leverage = leverage if leverage is not None else stated
    cover = facts.filed_value("interest_cover", "interest_coverage") if facts else None
    if cover is None:
        cover = metrics.get("interest_cover", metrics.get("interest_coverage"))
    health = case.output.financial_health
    if leverage is None or cover is None or "financial_health" in case.broken:
        return
    if health > GOOD_HEALTH and leverage > HIGH_LEVERAGE and cover < LOW_COVER:
        text = f"health {health:.3g} with debt/equity {leverage:.4g} and interest cover {cover:.4g}"
        case.report("debt_analysis_error", "/financial_health", text, found=health, expected=f"at most {GOOD_HEALTH}")


def growth_projection_unrealistic(case: Case) -> None:
    """Report growth that neither the filings state nor the past makes likely."""
    facts = case.facts
    for name, value in case.output.key_metrics.items():
        if not name.endswith("growth"):
            continue
        filed = facts.filed_value(name) if facts else None
        if filed is not None and not differs(value, filed, TOLERANCE, 1e-6):
            continue
        past = facts.yearly_growth(_GROWTH_OF.get(name, "")) if facts else None
        limit = max(MAX_GROWTH, MAX_GROWTH_OF_PAST * past if past is not None else MAX_GROWTH)
        if value > limit or value < LEAST_GROWTH:
            case.report(
                "growth_projection_unrealistic", join("key_metrics", name),
                f"a growth of {value:.4g} a year lies outside {LEAST_GROWTH} to {limit:.4g}",
                found=value, expected=filed if filed is not None else f"{LEAST_GROWTH} to {limit:.4g}", corrected=filed,
            )  # fmt: skip


def sector_comparison_invalid(case: Case) -> None:
    """Report comparisons with companies of another sector."""
    symbol, sectors = case.output.symbol, case.truth.sectors
    evidence = case.output.evidence
    own = sectors.get(symbol) or next(
        (item.sector for item in evidence if item.sector and item.tickers and symbol in item.tickers), None
    )
    for i, item in enumerate(evidence):
        others = [ticker for ticker in item.tickers or () if ticker != symbol]
        if not item.sector and not others:
            continue
        if own is None:
            case.skip("sector_comparison_invalid", "the symbol's sector is unknown")
            continue
        if item.sector and item.sector.lower() != own.lower():
            text = f"{item.id!r} is of the sector {item.sector}, {symbol} of {own}"
            case.report("sector_comparison_invalid", f"/evidence/{i}/sector", text, found=item.sector, expected=own)
            continue
        strange = [ticker for ticker in others if sectors.get(ticker, own).lower() != own.lower()]
        if strange:
            text = f"{', '.join(strange)} is not of the sector {own}"
            case.report(
                "sector_comparison_invalid", f"/evidence/{i}/tickers", text, found=", ".join(strange), expected=own
            )
