"""Reads what claims to be an output of an agent as far as it can be read, and reports how it breaks the schema.

First step of every examination: it turns the findings of `parse_output` into errors and what is left into an output that
the other rules can look at. A field that cannot be read is replaced by a placeholder and named as broken, so that no
rule judges the placeholder.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from evaluation.detectors.asof_facts import AsOfFacts
from evaluation.detectors.case import Case, shown
from evaluation.ground_truth import GroundTruth
from utils.json_pointer import is_index, tokens
from utils.schema import OUTPUT_MODELS, AgentOutput
from utils.schema.parsing import CONTROL_CHARACTERS, SchemaFinding, coerce_object, load_object, parse_output

_MAPS = frozenset(("signals", "indicators", "key_metrics"))
"""Fields of which one bad entry leaves the others readable."""

_EXPECTED: dict[str, tuple[str, ...]] = {
    "news": ("reasoning", "sentiment_score", "price_impact", "time_horizon", "key_events", "risk_factors"),
    "technical": (
        "reasoning", "signal", "trend", "momentum", "indicators", "support_levels", "resistance_levels", "patterns",
    ),
    "fundamental": (
        "reasoning", "valuation", "financial_health", "growth_quality", "key_metrics", "key_strengths", "key_risks",
    ),
    "strategist": (
        "reasoning", "position_size", "time_horizon", "expected_return", "key_factors", "risk_assessment",
    ),
    "validator": ("reasoning",),
}  # fmt: skip
"""Fields that an opinion states although the schema lets an abstention leave them out."""

_SPOKEN_FOR = frozenset(("reasoning", "indicators", "key_metrics", "key_factors", "risk_assessment", "key_events"))
"""Fields whose absence has a graver category of its own; that one is reported where its rule applies."""

_EVENT_SOURCE = ("key_events", "source")
_REPAIRS = 3
_NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)
_PLACEHOLDERS: dict[str, Any] = {
    "symbol": "?",
    "as_of": _NO_TIME,
    "recommendation": "hold",
    "confidence": 0.5,
    "current_price": 1.0,
}
_LONG_TEXTS = ("reasoning", "risk_assessment", "abstain_reason")
_TEXT_LISTS = ("risk_factors", "key_strengths", "key_risks", "key_factors", "patterns")


def read_output(agent_type: str, given: Any, truth: GroundTruth, facts: AsOfFacts | None) -> Case:
    """Return the case of an output, with what is wrong with its form already reported.

    Parameters
    ----------
    agent_type : str
        Whose output it is meant to be.
    given : AgentOutput, dict, str or bytes
    truth, facts
        What it will be held against.
    """
    if type(given) is OUTPUT_MODELS[agent_type] and _is_valid(given):
        case = Case(agent_type, given, truth, facts)
        _of_its_snapshot(case)
        _texts(case)
        return case
    findings: list[SchemaFinding] = []
    raw = load_object(dict(given.__dict__) if isinstance(given, AgentOutput) else given, findings)
    case = Case(agent_type, None, truth, facts, raw)
    if raw is not None:
        stated = raw.get("agent_type", agent_type)
        if stated != agent_type:
            text = f"the output of a {agent_type} agent says it is of {shown(stated)}"
            case.report("invalid_value", "/agent_type", text, found=stated, expected=agent_type, corrected=agent_type)
        data = {**raw, "agent_type": agent_type}
        case.output, more = parse_output(data, agent_type)
        findings += more
        if case.output is None:
            _salvage(case, data, more)
        else:
            _leave_out_absent(case, data)
    for finding in findings:
        _report(case, finding)
    if case.output is not None:
        _of_its_snapshot(case)
        _texts(case)
    return case


def _of_its_snapshot(case: Case) -> None:
    """Report an output that claims another time or symbol than its snapshot's, and examine it as of the snapshot.

    Otherwise an output could make the future its past by stating a later time.
    """
    snapshot = case.truth.snapshot
    if snapshot is None:
        return
    right: dict[str, Any] = {"as_of": snapshot.as_of, "symbol": snapshot.symbol}
    wrong = {name: value for name, value in right.items() if getattr(case.output, name) != value}
    for name, value in wrong.items():
        stated = getattr(case.output, name)
        if name not in case.broken:
            text = f"{name} is {shown(value)}, not {shown(stated)}"
            corrected = value.isoformat() if isinstance(value, datetime) else value
            case.report("invalid_value", f"/{name}", text, found=stated, expected=value, corrected=corrected)
    if wrong:
        case.output = case.output.model_copy(update=wrong)


def report_absent(case: Case) -> None:
    """Report the fields that were not given, after the rules have spoken for some of them."""
    for name in case.absent:
        if not case.found_at(f"/{name}"):
            case.report("missing_field", f"/{name}", f"{name} is absent", expected=f"a value for {name}")


def _is_valid(output: AgentOutput) -> bool:
    """Return whether a model still obeys its schema: copies made with changes are not validated."""
    try:
        type(output).__pydantic_validator__.validate_python(dict(output.__dict__))
    except ValidationError:
        return False
    return True


def _salvage(case: Case, data: dict[str, Any], findings: list[SchemaFinding]) -> None:
    """Fill `case.output` from what can be read, and `case.broken` with what cannot."""
    data = coerce_object(dict(data), [])
    for _ in range(_REPAIRS):
        for finding in findings:
            if finding.category != "formatting_error":
                _cut(case, data, finding)
        for name, value in _PLACEHOLDERS.items():
            if name in case.broken and (name != "current_price" or case.agent_type == "technical"):
                data[name] = value
        if "as_of" in case.broken and case.truth.snapshot is not None:
            data["as_of"] = case.truth.snapshot.as_of
            case.broken.discard("as_of")
        if "symbol" in case.broken and case.truth.snapshot is not None:
            data["symbol"] = case.truth.snapshot.symbol
        case.output, findings = parse_output(data, case.agent_type)
        if case.output is not None:
            break
    if case.output is not None:
        _leave_out_absent(case, data)


def _cut(case: Case, data: dict[str, Any], finding: SchemaFinding) -> None:
    """Take the value of a finding out of the data."""
    parts = tokens(finding.pointer)
    if not parts:
        return
    name = parts[0]
    if name in _MAPS and len(parts) == 2 and isinstance(data.get(name), dict):
        data[name] = {key: value for key, value in data[name].items() if str(key) != parts[1]}
    elif len(parts) == 3 and (name, parts[2]) == _EVENT_SOURCE and finding.category == "missing_field" and name in data:
        events = list(data[name])
        events[int(parts[1])] = {**events[int(parts[1])], "source": ""}
        data[name] = events
    else:
        data.pop(name, None)
        if not (finding.category == "missing_field" and len(parts) == 1 and name in _SPOKEN_FOR):
            case.broken.add(name)


def _leave_out_absent(case: Case, data: dict[str, Any]) -> None:
    """Note the fields of an opinion that were not given; those without a rule of their own count as broken."""
    if case.output.abstained:
        return
    case.absent = tuple(
        name
        for name in _EXPECTED[case.agent_type]
        if name not in data and name not in case.broken and name not in case.output.model_fields_set
    )
    case.broken.update(name for name in case.absent if name not in _SPOKEN_FOR)


def _report(case: Case, finding: SchemaFinding) -> None:
    parts = tokens(finding.pointer)
    if finding.category == "missing_field":
        if len(parts) == 3 and (parts[0], parts[2]) == _EVENT_SOURCE:
            return  # its rule sees the empty source
        if len(parts) == 1 and parts[0] in case.absent:
            return
    found = at(case.raw, parts)
    if finding.category == "formatting_error":
        right = at(case.output, parts)
        case.report(
            finding.category, finding.pointer, finding.description, found=found, expected=right, corrected=right
        )
    elif _is_impossible_target(case, finding, found):
        text = f"a price target of {shown(found)} is no price"
        case.report("valuation_calculation_error", finding.pointer, text, found=found, expected="a positive price")
    else:
        case.report(finding.category, finding.pointer, finding.description, found=found, expected=finding.description)


def _is_impossible_target(case: Case, finding: SchemaFinding, found: Any) -> bool:
    """Whether it is a target of zero or less, which has a category of its own."""
    numeric = isinstance(found, (int, float)) and not isinstance(found, bool)
    return case.agent_type == "fundamental" and finding.pointer == "/price_target" and numeric and found <= 0


def at(tree: Any, parts: list[str]) -> Any:
    """Return what stands along the tokens of a pointer in objects, lists and models; None where nothing does."""
    for key in parts:
        if isinstance(tree, dict):
            tree = tree.get(key)
        elif isinstance(tree, (list, tuple)):
            tree = tree[int(key)] if is_index(key) and int(key) < len(tree) else None
        else:
            tree = getattr(tree, key, None)
    return tree


def _texts(case: Case) -> None:
    """Report control characters that are left, and events whose time has no zone."""
    fields = case.output.__dict__
    texts = [text for name in _LONG_TEXTS if (text := fields.get(name))]
    for name in _TEXT_LISTS:
        texts += fields.get(name, ())
    for i, event in enumerate(fields.get("key_events", ())):
        texts += (event.headline, event.source)
        if event.published_at.tzinfo is None:
            where, right = f"/key_events/{i}/published_at", event.published_at.replace(tzinfo=UTC)
            if not case.found_at(where):
                text = "the time has no zone"
                case.report("formatting_error", where, text, found=event.published_at, expected=right, corrected=right)
    for i, item in enumerate(fields["evidence"]):
        if isinstance(item.value, str):
            texts.append(item.value)
        elif not -1e308 <= item.value <= 1e308:
            case.report(
                "invalid_value", f"/evidence/{i}/value", "the value is not finite",
                found=item.value, expected="a finite number",
            )  # fmt: skip
    if CONTROL_CHARACTERS.search("\n".join(texts)):
        _control_characters(case)


def _control_characters(case: Case) -> None:
    fields = case.output.__dict__
    texts = [(name, fields.get(name) or "") for name in _LONG_TEXTS]
    for name in _TEXT_LISTS:
        texts += [(f"{name}/{i}", text) for i, text in enumerate(fields.get(name, ()))]
    for i, event in enumerate(fields.get("key_events", ())):
        texts += [(f"key_events/{i}/headline", event.headline), (f"key_events/{i}/source", event.source)]
    texts += [(f"evidence/{i}/value", item.value) for i, item in enumerate(fields["evidence"])]
    for name, text in texts:
        if isinstance(text, str) and CONTROL_CHARACTERS.search(text):
            right = CONTROL_CHARACTERS.sub("", text)
            case.report(
                "formatting_error", f"/{name}", "a control character stands in the text",
                found=text.encode("unicode_escape").decode(), expected=right, corrected=right,
            )  # fmt: skip
