"""What a hosted model is shown of a request: facts that code computed, each with its evidence id, and texts as delimited data.

Called by `hosted_model` for every question. It shows nothing of the rules' own opinion, nothing after the decision time, and
never more than `MAX_PROMPT_BYTES` beside the system message; what is left out is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agents.policies.base import PastExperience, PolicyRequest
from agents.policies.local.states import technical_state_text
from agents.policies.prompting import delimited, legible, noted, within
from agents.policies.rules.figures import written
from data_pipeline.article_selection import usable_articles
from data_pipeline.rounding import price_figure
from utils.clock import isoformat
from utils.schema import (
    AgentOutput,
    Evidence,
    FundamentalOutput,
    NewsItem,
    NewsOutput,
    TechnicalOutput,
    ValidatorOutput,
)

MAX_PROMPT_BYTES = 5900
"""Of a user message; with the system message an agent stays below 8 KB. The budgets of its parts add up to less."""

ARTICLES_BYTES, FIGURES_BYTES = 3600, 1600
OPINIONS_BYTES, ANALYSTS_BYTES, RESTING_BYTES, HOLDINGS_BYTES = 2600, 700, 700, 200
EXPERIENCES_BYTES = 500

HEADLINE_CHARS, REASONING_CHARS, NAME_CHARS = 240, 600, 80

_BRACKETED = re.compile(r"\[([^\[\]]{1,400})\]")
_ID = re.compile(r"[0-9a-f]{16}|[^\s:]+:\S+")


@dataclass(frozen=True, slots=True)
class Shown:
    """A question, and what its answer may refer to.

    Attributes
    ----------
    message : str
        The user message.
    price : float
        USD, as it was written; 0 where the agent was shown none.
    evidence : mapping of str to Evidence
        Of what code computed, by the id that was shown.
    articles : mapping of str to NewsItem
        Those that were shown, by id.
    patterns : tuple of str
    """

    message: str
    price: float = 0.0
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    articles: Mapping[str, NewsItem] = field(default_factory=dict)
    patterns: tuple[str, ...] = ()

    def citable(self, name: str) -> bool:
        """Whether an id is that of evidence or of an article that was shown."""
        return name in self.evidence or name in self.articles

    def unknown_in(self, reasoning: str) -> list[str]:
        """Return the ids in square brackets that were not shown; brackets around other words are none of our business."""
        groups = (group.strip() for group in _BRACKETED.findall(reasoning))
        names = (name for group in groups if not self.citable(group) for name in re.split(r"[,;\s]+", group))
        return [name for name in names if _ID.fullmatch(name) and not self.citable(name)]


@dataclass(frozen=True, slots=True)
class _Part:
    """What is particular to an agent: its facts, and the strangers' texts that go between the boundaries."""

    facts: list[str]
    texts: list[str]
    evidence: dict[str, Evidence]
    articles: dict[str, NewsItem] = field(default_factory=dict)
    patterns: tuple[str, ...] = ()


def show(facts: AgentOutput, request: PolicyRequest, key: bytes, *, variant: str = "") -> Shown:
    """Return the question to a model.

    Parameters
    ----------
    facts : AgentOutput
        What the rules policy computed; no abstention.
    key : bytes
        Of the boundaries, see `prompting.delimited`.
    variant : str
        Asks for one of several independent answers; equal variants give equal bytes.
    """
    if isinstance(facts, NewsOutput):
        part = _news(request)
    elif isinstance(facts, TechnicalOutput):
        part = _technical(facts)
    elif isinstance(facts, FundamentalOutput):
        part = _fundamental(facts)
    else:
        part = _strategy(facts, request)
    price = price_figure(request.snapshot.price or 0.0)
    lines = [*_market(request), *_experiences(request.experiences), *part.facts]
    if variant:
        lines.insert(0, f"variant {variant}: one of several independent answers, so weigh the facts anew")
    if part.texts:
        lines.append(delimited(part.texts, key))
    return Shown("\n".join(lines), price, part.evidence, part.articles, part.patterns)


def _market(request: PolicyRequest) -> Iterator[str]:
    snapshot, regime, inputs = request.snapshot, request.regime, request.snapshot.inputs
    yield f"symbol {legible(snapshot.symbol, 20)}, as of {isoformat(snapshot.as_of)}"
    yield (
        f"regime {regime.overall_regime} (confidence {written(regime.confidence)}): volatility {regime.volatility_regime} "
        f"(rank {written(inputs.volatility)}), trend {regime.trend_regime} (strength {written(inputs.trend_strength)}), "
        f"news {regime.news_impact_regime} (impact {written(inputs.news_impact)}); "
        f"a usual day moves {written(inputs.daily_volatility)} of the price"
    )
    if inputs.flags:
        yield f"unknown, so shown at its default: {', '.join(inputs.flags)}"


def _experiences(experiences: Sequence[PastExperience]) -> Iterator[str]:
    """Yield what came of earlier opinions, all of which had matured before this decision."""
    if not experiences:
        return
    lines = [
        f"- {past.similarity:.2f} {legible(past.symbol, 20)} in {legible(past.market_regime, 40)}: {past.recommendation} "
        f"{written(past.confidence)}, {'right' if past.success else 'wrong'}, {past.actual_return:+.4f}"
        for past in experiences
    ]
    yield "what came of your earlier opinions in markets like this (similarity, opinion, return of the share):"
    yield from noted(within(lines, EXPERIENCES_BYTES), len(lines))


def _news(request: PolicyRequest) -> _Part:
    snapshot = request.snapshot
    articles = usable_articles(snapshot.news, snapshot.symbol, snapshot.as_of)
    lines = []
    for item in articles:
        hours = (snapshot.as_of - item.event_time).total_seconds() / 3600
        source = legible(item.source or "unnamed source", NAME_CHARS)
        lines.append(f"[{item.item_id}] {hours:.0f} h old, {source}: {legible(item.text, HEADLINE_CHARS)}")
    texts = within(lines, ARTICLES_BYTES)
    chosen = articles[: len(texts)]
    said = f"{len(chosen)} of {len(articles)} articles of the last days, newest first, each with its id:"
    return _Part([said], texts, {}, {item.item_id: item for item in chosen})


def _technical(facts: TechnicalOutput) -> _Part:
    lines, evidence = _cited(facts.evidence, FIGURES_BYTES)
    levels = [
        f"{name} in USD: {', '.join(written(level) for level in values) or 'none'}"
        for name, values in (("supports", facts.support_levels), ("resistances", facts.resistance_levels))
    ]
    volume = facts.signals.get("volume")
    return _Part(
        [
            "price and indicators of the daily bars, each with its id:",
            *lines,
            f"rounded, distances in average true ranges: {technical_state_text(facts)}",
            *levels,
            f"patterns found at the newest bar: {', '.join(facts.patterns) or 'none'}",
            f"volume against usual, -1 to 1: {'unknown' if volume is None else written(volume)}",
        ],
        [],
        evidence,
        patterns=facts.patterns,
    )


def _fundamental(facts: FundamentalOutput) -> _Part:
    lines, evidence = _cited(facts.evidence, FIGURES_BYTES)
    target = "unknown" if facts.price_target is None else f"{written(facts.price_target)} USD"
    cheapness = facts.signals.get("valuation")
    history = "unknown" if cheapness is None else written(cheapness)
    return _Part(
        [
            "figures known from filings, each with its id and the day from which it was known:",
            *lines,
            f"multiple against the median of its own past, -1 (dear) to 1 (cheap): {history}",
            f"price at which the multiple would be back at that median, within 40 percent: {target}",
            f"noted by code, for: {', '.join(facts.key_strengths) or 'nothing'}; against: {', '.join(facts.key_risks) or 'nothing'}",
        ],
        [],
        evidence,
    )


def _strategy(facts: AgentOutput, request: PolicyRequest) -> _Part:
    figures, figure_evidence = _cited(
        [item for item in facts.evidence if not isinstance(item.value, str)], RESTING_BYTES
    )
    quotes, quote_evidence = _cited([item for item in facts.evidence if isinstance(item.value, str)], OPINIONS_BYTES)
    agents = sorted(request.agent_outputs.items())
    opinions = [f"- {legible(name, NAME_CHARS)}: {_opinion(output)}" for name, output in agents]
    said = [f"{legible(name, NAME_CHARS)} says: {legible(_words(output), REASONING_CHARS)}" for name, output in agents]
    texts = within([*said, *quotes], OPINIONS_BYTES)
    quoted = list(quote_evidence.items())[: max(0, len(texts) - len(said))]
    return _Part(
        [
            *_holdings(request),
            "analysts:",
            *noted(within(opinions, ANALYSTS_BYTES), len(opinions)),
            "price and the figures that the analysts rest on, each with its id:",
            *figures,
        ],
        noted(texts, len(said) + len(quotes)),
        {**figure_evidence, **dict(quoted)},
    )


def _words(output: AgentOutput) -> str:
    return output.abstain_reason or "" if output.abstained else output.reasoning


def _holdings(request: PolicyRequest) -> Iterator[str]:
    portfolio, symbol = request.portfolio, request.snapshot.symbol
    if portfolio is None:
        yield "portfolio: unknown"
        return
    held = portfolio.weights.get(symbol, 0.0)
    yield (
        f"portfolio: equity {portfolio.equity:.0f} USD, cash {portfolio.cash:.0f} USD, "
        f"share of equity held in {legible(symbol, 20)}: {written(held)}"
    )
    others = sorted((weight, name) for name, weight in portfolio.weights.items() if name != symbol and weight > 0)
    if others:
        lines = within([f"{legible(name, 20)} {written(weight)}" for weight, name in others[::-1]], HOLDINGS_BYTES)
        yield f"other holdings, the largest {len(lines)} of {len(others)}: {', '.join(lines)}"


def _opinion(output: AgentOutput) -> str:
    if output.abstained:
        return "abstains"
    said = f"{output.recommendation}, confidence {written(output.confidence)}"
    if output.p_correct is not None:
        said += f" (such calls came true with {written(output.p_correct)})"
    if isinstance(output, NewsOutput):
        said += f", sentiment {written(output.sentiment_score)} of 2, {output.price_impact}, {output.time_horizon}"
    elif isinstance(output, TechnicalOutput):
        said += f", {output.trend}, momentum {output.momentum}"
        said += f", supports {', '.join(map(written, output.support_levels)) or 'none'}"
        said += f", resistances {', '.join(map(written, output.resistance_levels)) or 'none'}"
    elif isinstance(output, FundamentalOutput):
        said += (
            f", {output.valuation}, health {written(output.financial_health)}, growth {written(output.growth_quality)}"
        )
        said += "" if output.price_target is None else f", price target {written(output.price_target)} USD"
    elif isinstance(output, ValidatorOutput):
        said += f", in place of {', '.join(legible(name, NAME_CHARS) for name in output.replaces) or 'nobody'}"
    return said


def _cited(items: Sequence[Evidence], budget_bytes: int) -> tuple[list[str], dict[str, Evidence]]:
    """Return a line for each item as far as they fit, and the items by the id that is shown."""
    named = {legible(item.id, NAME_CHARS): item for item in items}
    lines = []
    for name, item in named.items():
        if isinstance(item.value, str):
            lines.append(f"[{name}] {legible(item.value, HEADLINE_CHARS)}")
        else:
            known = "" if item.source == "bars" else f", known from {item.available_at:%Y-%m-%d}"
            lines.append(f"[{name}] {written(item.value)} {item.unit}{known}")
    kept = within(lines, budget_bytes)
    return noted(kept, len(lines)), dict(list(named.items())[: len(kept)])
