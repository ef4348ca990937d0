"""What a hosted model is asked to answer for each agent, as a table of pydantic models, and the checks on what came back.

`hosted_model` sends the JSON schema that is generated here and reads every answer here. An answer is taken as it is or not at
all: no figure is moved into its range, no name guessed at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from agents.policies.hosted_state import Shown
from agents.policies.rules.news import article_evidence
from data_pipeline.article_selection import headline
from utils.errors import ProviderError
from utils.json_pointer import join
from utils.schema import (
    AgentOutput,
    Evidence,
    FundamentalOutput,
    KeyEvent,
    NewsItem,
    NewsOutput,
    Recommendation,
    StrategistOutput,
    TechnicalOutput,
    direction,
)
from utils.schema.agents import Signed, TimeHorizon, Unit
from utils.schema.parsing import CONTROL_CHARACTERS

MAX_REASONING_CHARS = 2000
MAX_PHRASE_CHARS = 300
_REASON_CHARS = 280


def _clean(text: str) -> str:
    if CONTROL_CHARACTERS.search(text):
        raise ValueError("control characters are not allowed")
    return text


Phrase = Annotated[str, Field(min_length=1, max_length=MAX_PHRASE_CHARS), AfterValidator(_clean)]
Prose = Annotated[str, Field(min_length=1, max_length=MAX_REASONING_CHARS), AfterValidator(_clean)]
Level = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Sentiment(_Strict):
    sentiment: Signed


class _ChartVotes(_Strict):
    trend: Signed
    momentum: Signed
    mean_reversion: Signed


class _FilingVotes(_Strict):
    valuation: Signed
    growth: Signed
    profitability: Signed
    leverage: Signed


class _Consensus(_Strict):
    consensus: Signed


class Opinion(_Strict):
    """What every agent is asked for; grounds stand before the verdict, so that a model thinks before it decides."""

    evidence_ids: Annotated[list[str], Field(min_length=1, max_length=16)]
    reasoning: Prose


class _Verdict(_Strict):
    recommendation: Recommendation
    confidence: Unit


class NewsAnswer(_Verdict, Opinion):
    """Opinion on articles; `key_events` are ids of shown ones."""

    sentiment_score: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
    signals: _Sentiment
    price_impact: Literal["bullish", "bearish", "neutral"]
    time_horizon: TimeHorizon
    key_events: Annotated[list[str], Field(max_length=5)]
    risk_factors: Annotated[list[Phrase], Field(max_length=6)]


class TechnicalAnswer(_Verdict, Opinion):
    """Opinion on a chart; `patterns` are among those found."""

    signals: _ChartVotes
    trend: Literal["uptrend", "downtrend", "sideways"]
    momentum: Literal["strong_bullish", "bullish", "neutral", "bearish", "strong_bearish"]
    patterns: Annotated[list[str], Field(max_length=8)]
    signal: Literal["buy", "sell", "hold"]


class FundamentalAnswer(_Verdict, Opinion):
    """Opinion on filed figures."""

    signals: _FilingVotes
    valuation: Literal["undervalued", "fairly_valued", "overvalued"]
    financial_health: Unit
    growth_quality: Unit
    key_strengths: Annotated[list[Phrase], Field(max_length=6)]
    key_risks: Annotated[list[Phrase], Field(max_length=6)]


class StrategistAnswer(_Verdict, Opinion):
    """The decision; levels in USD, 0 for those of a hold."""

    signals: _Consensus
    key_factors: Annotated[list[Phrase], Field(min_length=1, max_length=8)]
    position_size: Unit
    stop_loss: Level
    take_profit: Level
    time_horizon: TimeHorizon
    expected_return: Signed
    risk_assessment: Prose


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The model of an agent's answer, and the type of the output that code computes the facts of."""

    answer: type[Opinion]
    output: type[AgentOutput]


FORMS: dict[str, AnswerForm] = {
    "news": AnswerForm(NewsAnswer, NewsOutput),
    "technical": AnswerForm(TechnicalAnswer, TechnicalOutput),
    "fundamental": AnswerForm(FundamentalAnswer, FundamentalOutput),
    "strategist": AnswerForm(StrategistAnswer, StrategistOutput),
}
"""By agent type."""

_KEPT = ("type", "enum", "const", "minimum", "maximum", "minItems", "maxItems")
_ORDER = ("evidence_ids", "reasoning")
_LAST = ("recommendation", "confidence")


@cache
def answer_schema(agent_type: str) -> dict[str, Any]:
    """Return the JSON schema of an agent's answer as strict structured output wants it: all required, nothing else allowed.

    Lengths of texts are left out, which not every vendor's schemas know; they are checked when the answer is read.
    """
    schema = FORMS[agent_type].answer.model_json_schema()
    strict = _strict(schema, schema.get("$defs", {}))
    middle = [name for name in strict["properties"] if name not in _ORDER + _LAST]
    names = [*_ORDER, *middle, *_LAST]
    return {**strict, "properties": {name: strict["properties"][name] for name in names}, "required": names}


def _strict(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        return _strict(definitions[str(node["$ref"]).rpartition("/")[2]], definitions)
    result = {name: node[name] for name in _KEPT if name in node}
    if "items" in node:
        result["items"] = _strict(node["items"], definitions)
    if "properties" in node:
        result["properties"] = {name: _strict(child, definitions) for name, child in node["properties"].items()}
        result["required"] = list(node["properties"])
        result["additionalProperties"] = False
    return result


def read_answer(content: Mapping[str, Any], facts: AgentOutput, shown: Shown) -> dict[str, Any]:
    """Return the fields of the output that a model's answer gives.

    Parameters
    ----------
    content : mapping
        The object that the model answered with.
    facts : AgentOutput
        What code computed for the same request.
    shown : Shown
        What the model was shown, and may cite.

    Raises
    ------
    ProviderError
        Of kind malformed, naming the first field that is not as asked for: a type, a range, a name that was not shown, or
        levels on the wrong side of the price.
    """
    form = FORMS[facts.agent_type]
    try:
        answer = form.answer.model_validate(dict(content))
    except ValidationError as error:
        faults = [(join(*item["loc"]), item["msg"]) for item in error.errors(include_url=False, include_input=False)]
    else:
        faults = list(_faults(answer, shown))
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ProviderError(f"{faults[0][0]}: {faults[0][1]}{more}"[:_REASON_CHARS], kind="malformed")
    fields = answer.model_dump(exclude={"evidence_ids"})
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    fields["signals"] = {**facts.signals, **fields["signals"]}
    if isinstance(answer, NewsAnswer):
        fields |= _quoted(answer, shown.articles)
    if isinstance(answer, StrategistAnswer):
        fields |= _levels(answer, shown.price)
    return fields


def _faults(answer: Opinion, shown: Shown) -> Iterator[tuple[str, str]]:
    """Yield the places where an answer of the right form names what was not shown, or contradicts its own verdict."""
    yield from _unknown("evidence_ids", answer.evidence_ids, shown.articles or shown.evidence, "evidence")
    for name in shown.unknown_in(answer.reasoning):
        yield "/reasoning", f"[{name}] is no evidence that was shown"
    if isinstance(answer, NewsAnswer):
        yield from _unknown("key_events", answer.key_events, shown.articles, "article")
    if isinstance(answer, TechnicalAnswer):
        yield from _unknown("patterns", answer.patterns, shown.patterns, "pattern")
    if isinstance(answer, StrategistAnswer):
        yield from _misplaced(answer, shown.price)


def _unknown(
    field: str, names: Sequence[str], known: Mapping[str, Any] | Sequence[str], what: str
) -> Iterator[tuple[str, str]]:
    for i, name in enumerate(names):
        if name not in known:
            yield f"/{field}/{i}", f"no {what} of that name was shown"


def _misplaced(answer: StrategistAnswer, price: float) -> Iterator[tuple[str, str]]:
    side = direction(answer.recommendation)
    if side <= 0 and answer.position_size:
        yield "/position_size", f"a {'sell' if side else 'hold'} has size 0"
    if side > 0 and not answer.position_size:
        yield "/position_size", "a buy needs a size"
    if not side and (answer.stop_loss or answer.take_profit):
        yield "/stop_loss", "a hold has neither stop nor target"
    if side and side * (price - answer.stop_loss) <= 0:
        yield "/stop_loss", f"does not lie {'below' if side > 0 else 'above'} the price of a {answer.recommendation}"
    if side and side * (answer.take_profit - price) <= 0:
        yield "/take_profit", f"does not lie {'above' if side > 0 else 'below'} the price of a {answer.recommendation}"
    if side and not (answer.stop_loss and answer.take_profit):
        yield "/stop_loss", "a side needs a stop and a target above 0"


def _quoted(answer: NewsAnswer, articles: Mapping[str, NewsItem]) -> dict[str, Any]:
    """Return the articles that the answer names, quoted by code: a model has no hand in what a headline says."""
    cited = {*answer.evidence_ids, *answer.key_events}
    quotes = {name: article_evidence(item, headline(item.text)) for name, item in articles.items() if name in cited}
    return {
        "evidence": tuple(Evidence.model_validate(quote) for quote in quotes.values()),
        "key_events": tuple(
            KeyEvent(
                headline=quotes[name]["value"],
                source=quotes[name]["source"],
                published_at=quotes[name]["event_time"],
                evidence_id=name,
            )
            for name in dict.fromkeys(answer.key_events)
        ),
    }


def _levels(answer: StrategistAnswer, price: float) -> dict[str, Any]:
    """Return the levels as prices, None for those of a hold, with the ratio that follows from them."""
    if not direction(answer.recommendation):
        return {"entry_target": None, "stop_loss": None, "take_profit": None, "risk_reward_ratio": None}
    ratio = round(abs(answer.take_profit - price) / abs(price - answer.stop_loss), 4)
    return {"entry_target": price, "risk_reward_ratio": ratio}
