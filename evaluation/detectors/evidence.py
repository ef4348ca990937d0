"""Holds cited evidence against the data known at the decision: whether it exists, was known, and says what is cited.

Shared by all agents. Only what the snapshot could confirm is judged; evidence of other kinds is left unchecked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np

from data_pipeline.filing_figures import MULTIPLES
from evaluation.detectors.asof_facts import MULTIPLE_TOLERANCE, AsOfFacts, Citable
from evaluation.detectors.case import TOLERANCE, Case, differs, evidence_name
from utils.schema import Evidence

ARTICLE_KINDS = frozenset(("news", "article"))
FILED_KINDS = frozenset(("filing", "derived"))
FOREIGN_KINDS = frozenset(("agent", "peer", "sector", "portfolio", "regime", "note"))
"""What a snapshot of one symbol does not hold even where it is true; whatever else is cited must stand in it."""

OWN_KINDS = {"news": ARTICLE_KINDS, "technical": frozenset(("indicator",)), "fundamental": FILED_KINDS}
"""What the evidence of an agent has to contain; the strategist may cite anything."""

CLOCK_SLACK = timedelta(minutes=1)
STALE_BARS = 60
STALE_TOLERANCE = 1e-4
"""Relative difference at which a price counts as that of an older bar."""

SCALES = (1e3, 1e6, 1e9, 1e12, 100.0, 1e4, 10.0)
SPLITS = (2.0, 3.0, 4.0, 5.0, 7.0, 8.0, 15.0, 20.0, 1.5)
CURRENCIES = frozenset("EUR GBP JPY CHF CAD AUD CNY INR HKD KRW BRL MXN SEK NOK DKK € £ ¥".split())

_UNIT_WORDS = {
    "$": "usd", "us$": "usd", "dollar": "usd", "dollars": "usd", "usd/share": "usd", "x": "ratio", "times": "ratio",
    "multiple": "ratio", "points": "index", "0-100": "index", "share": "shares",
}  # fmt: skip
_SAME_UNITS = {frozenset(("ratio", "fraction"))}
_PERCENT_UNITS = frozenset(("%", "percent", "pct"))
_TOKEN = re.compile(r"\w+")


def cited_evidence(case: Case) -> None:
    """Report evidence that was not known (hallucination) and evidence that says something else (data_inaccuracy)."""
    facts, as_of = case.facts, case.output.as_of
    unverified: set[str] = set()
    for i, item in enumerate(case.output.evidence):
        if item.available_at > as_of or item.event_time > as_of:
            _look_ahead(case, i, item, facts.citable(item.id) if facts else None)
        elif facts is None:
            unverified.add("no snapshot")
        elif (known := facts.citable(item.id) or _named(item, facts) or _derived(item, facts)) is not None:
            if item.value == known.value and item.unit == known.unit:
                _same_time(case, i, item, known)
            else:
                _same(case, i, item, known, facts)
        elif _verifiable(item, facts, case.output.symbol):
            case.report(
                "hallucination",
                f"/evidence/{i}/id",
                f"{item.id!r} is not among the data known at the decision",
                found=item.id,
                expected="the id of a fact known at the decision",
            )
        else:
            unverified.add(f"evidence of kind {item.kind}")
    if unverified:
        reason = f"{', '.join(sorted(unverified))} to hold evidence against"
        case.skip("hallucination", reason)
        case.skip("data_inaccuracy", reason)


def missing_data(case: Case) -> None:
    """Report an output without evidence of its agent's kind where the snapshot has such data."""
    facts = case.facts
    if facts is None:
        return
    kinds = OWN_KINDS.get(case.agent_type)
    cited = case.output.evidence
    if any(item.kind in kinds for item in cited) if kinds else cited:
        return
    known = {
        "news": lambda: len(facts.articles),
        "technical": lambda: len(facts.indicators or {}),
        "fundamental": lambda: len(facts.filed.figures) if facts.filed else 0,
    }.get(case.agent_type, lambda: int(facts.price is not None))()
    if known:
        text = f"no evidence of the {case.agent_type} agent's kind, although {known} such facts were known"
        case.report("missing_data", "/evidence", text, found=len(cited), expected=f"{known} facts were known")


def _look_ahead(case: Case, i: int, item: Evidence, known: Citable | None) -> None:
    field = "available_at" if item.available_at > case.output.as_of else "event_time"
    right = known.event_time if known is not None and isinstance(known.event_time, datetime) else None
    if known is not None and right is None:
        right = case.output.as_of
    case.report(
        "hallucination",
        f"/evidence/{i}/{field}",
        f"{item.id!r} is cited at {case.output.as_of.isoformat()} but became known later",
        found=getattr(item, field),
        expected=f"at most {case.output.as_of.isoformat()}",
        corrected=right,
        sub_code="look_ahead",
    )


def _named(item: Evidence, facts: AsOfFacts) -> Citable | None:
    """Return the fact that evidence with a bare name cites; any filing's figure if it equals the cited one."""
    if ":" in item.id or item.kind in ARTICLE_KINDS:
        return None
    known = facts.by_name(item.id)
    if item.kind in FILED_KINDS and isinstance(item.value, float):
        for filing in facts.filings_with(item.id):
            if not differs(item.value, filing.metrics[item.id]):
                return facts.citable(f"{filing.filing_id}:{item.id}") or known
    return known


def _derived(item: Evidence, facts: AsOfFacts) -> Citable | None:
    """Return the fact behind a multiple that was computed of filings and price; the cited value, if it is one it can have."""
    name = evidence_name(item)
    if item.kind != "derived" or name not in MULTIPLES or not isinstance(item.value, float):
        return None
    possible = facts.multiples(name)
    if not possible or facts.last_session is None:
        return None
    true = any(not differs(item.value, value, MULTIPLE_TOLERANCE) for value in possible)
    return Citable("derived", item.value if true else possible[0], "ratio", facts.last_session, 1e-9)


def _verifiable(item: Evidence, facts: AsOfFacts, symbol: str) -> bool:
    """Return whether the snapshot would hold such a fact if it existed."""
    if item.kind in ARTICLE_KINDS:
        return True
    if item.tickers and symbol not in item.tickers:
        return False
    if facts.indicators is None and (item.kind == "indicator" or item.id.startswith("ind:")):
        return evidence_name(item) not in facts.computable
    return item.kind not in FOREIGN_KINDS


def _same(case: Case, i: int, item: Evidence, known: Citable, facts: AsOfFacts) -> None:
    """Report where value, unit or time of cited evidence differ from the known fact."""
    at = f"/evidence/{i}"
    if item.unit and item.unit != known.unit and known.unit and not _same_unit(item, known):
        code = "currency" if item.unit.upper() in CURRENCIES and known.unit == "USD" else "units"
        text = f"{item.id!r} is in {known.unit}, not in {item.unit}"
        case.report(
            "data_inaccuracy", f"{at}/unit", text, found=item.unit, expected=known.unit, corrected=known.unit, sub_code=code
        )  # fmt: skip
    value = item.value
    if isinstance(known.value, str) or isinstance(value, str):
        if not (isinstance(known.value, str) and isinstance(value, str) and quotes(value, known.value)):
            case.report(
                "data_inaccuracy", f"{at}/value", f"{item.id!r} does not say what is cited",
                found=value, expected=known.value, corrected=known.value,
            )  # fmt: skip
            return
    elif differs(value, known.value, TOLERANCE, known.floor) and not (
        item.unit.lower() in _PERCENT_UNITS and not differs(value / 100, known.value, TOLERANCE, known.floor)
    ):
        case.report(
            "data_inaccuracy", f"{at}/value", f"{item.id!r} is {known.value:.6g}, not {value:.6g}",
            found=value, expected=known.value, corrected=known.value, sub_code=_cause(item, value, known, facts),
        )  # fmt: skip
        return
    _same_time(case, i, item, known)


def _same_time(case: Case, i: int, item: Evidence, known: Citable) -> None:
    right = known.event_time
    if isinstance(right, datetime):
        if item.event_time is right or abs(item.event_time - right) <= CLOCK_SLACK:
            return
    elif item.event_time.date() >= right:
        return
    else:
        right = case.output.as_of
    case.report(
        "data_inaccuracy", f"/evidence/{i}/event_time", f"{item.id!r} is dated {item.event_time.isoformat()}, it is of {right.isoformat()}",
        found=item.event_time, expected=right, corrected=right, sub_code="stale",
    )  # fmt: skip


def _same_unit(item: Evidence, known: Citable) -> bool:
    stated, right = item.unit.lower(), known.unit.lower()
    stated = _UNIT_WORDS.get(stated, stated)
    if stated == right or frozenset((stated, right)) in _SAME_UNITS:
        return True
    if stated in _PERCENT_UNITS and isinstance(item.value, float) and isinstance(known.value, float):
        share = item.value / 100 if right == "fraction" else item.value
        return right in ("fraction", "index") and not differs(share, known.value, TOLERANCE, known.floor)
    return False


def _cause(item: Evidence, value: float, known: Citable, facts: AsOfFacts) -> str | None:
    """Return how a wrong value came about, as far as it can be told from the figures."""
    right = known.value
    if not isinstance(right, float) or not right or not value:
        return None
    ratio = abs(value / right)
    ratio = ratio if ratio >= 1 else 1 / ratio
    if value * right > 0:
        quoted = known.kind in ("price", "volume") or (known.unit == "USD" and known.kind == "indicator")
        for factors, code in ((SPLITS if quoted else (), "split"), (SCALES, "units")):
            if any(abs(ratio / factor - 1) <= TOLERANCE for factor in factors):
                return code
    if known.kind in ("price", "volume"):
        series = getattr(facts.snapshot.bars, evidence_name(item), facts.snapshot.bars.close)
        older = series[-STALE_BARS - 1 : -1]
        if np.any(np.abs(older - value) <= STALE_TOLERANCE * abs(value)):
            return "stale"
    if known.kind == "filing":
        older_filings = facts.filings_with(evidence_name(item))
        if any(not differs(value, filing.metrics[evidence_name(item)], STALE_TOLERANCE) for filing in older_filings):
            return "stale"
    return None


def quotes(quoted: str, text: str) -> bool:
    """Return whether a quotation stands in a text, whatever the case, the blanks and an ellipsis at its end."""
    if quoted in text:
        return True
    words, whole = " ".join(_TOKEN.findall(quoted.lower())), " ".join(_TOKEN.findall(text.lower()))
    return bool(words) and words in whole


def jaccard(one: str, other: str) -> float:
    """Return the share of the distinct words of two texts that both have, 0..1."""
    if one == other:
        return 1.0
    first, second = set(_TOKEN.findall(one.lower())), set(_TOKEN.findall(other.lower()))
    union = first | second
    return len(first & second) / len(union) if union else 0.0


def names_of(evidence: Sequence[Evidence]) -> dict[str, Evidence]:
    """Return evidence by bare name; of several with one name the first."""
    found: dict[str, Evidence] = {}
    for item in evidence:
        found.setdefault(evidence_name(item), item)
    return found
