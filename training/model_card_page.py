"""A model card as Markdown and as one HTML page that needs nothing beside it. Formats what the card holds, computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from evaluation.report.verdict_charts import verdict_charts
from training.model_card import ModelCard
from utils.clock import isoformat

TEMPLATE = Path(__file__).with_name("model_card.html.j2")
NOT_KNOWN = "-"

_KINDS = {"sft": "fine-tuning (SFT)", "rl": "reinforcement learning (GRPO)"}
_SHOWN_ELSEWHERE = {"algorithm", "code_version", "parent_version", "job_id", "agent_type", "base_model"}
_OF_THE_VERDICT = {"verdict", "reasons", "by_regime", "criteria"}
_MET = {True: "met", False: "NOT MET", None: "not to be judged"}

Row = tuple[str, str]


def render_markdown(card: ModelCard) -> str:
    """Return the card as Markdown, which is text enough for a terminal."""
    lines = [f"# {card.model.version}", "", _summary(card), ""]
    for title, rows in _sections(card):
        lines += [f"## {title}", "", *_table(("", ""), rows), ""]
    lines += [f"## Verdict: {_verdict(card)}", "", *(f"- {reason}" for reason in _reasons(card)), ""]
    if criteria := _criteria(card):
        lines += ["## What the gate asked for", ""]
        lines += [
            f"- {name}: {met}. {text}{f' ({figures})' if figures else ''}" for name, met, text, figures in criteria
        ]
        lines += [""]
    if regimes := _regimes(card):
        lines += ["## By regime", "", *_table(_REGIME_HEAD, regimes), ""]
    if numbers := _numbers(card):
        lines += ["## Every figure of the gate", "", *_table(("", ""), numbers), ""]
    lines += ["## Aliases", "", *(_table(_EVENT_HEAD, events) if (events := _events(card)) else ["It never held one."])]
    return "\n".join(lines).rstrip() + "\n"


def render_html(card: ModelCard) -> str:
    """Return the card as HTML text with the verdict's charts; whatever the card holds is escaped."""
    from jinja2 import Environment, StrictUndefined  # only cards and reports need it

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        version=card.model.version,
        summary=_summary(card),
        verdict=_verdict(card),
        reasons=_reasons(card),
        criteria=_criteria(card),
        charts=verdict_charts(card.model.gate or {}),
        sections=_sections(card),
        numbers=_numbers(card),
        regime_head=_REGIME_HEAD,
        regimes=_regimes(card),
        event_head=_EVENT_HEAD,
        events=_events(card),
    )


_REGIME_HEAD = ("regime", "decisions", "sessions", "mean difference", "lower bound")
_EVENT_HEAD = ("as of", "run", "alias", "from", "to", "reason")


def _summary(card: ModelCard) -> str:
    gone = "" if card.has_bytes else " Its adapter is no longer stored: row, verdict and this card are what is left."
    kind = _KINDS.get(card.kind, card.kind or "unknown")
    return f"Model of the {card.model.agent_type} agent by {kind}; state: {card.model.state}.{gone}"


def _verdict(card: ModelCard) -> str:
    return str((card.model.gate or {}).get("verdict", "none")).replace("_", " ")


def _reasons(card: ModelCard) -> list[str]:
    return [str(reason) for reason in (card.model.gate or {}).get("reasons", ())]


def _sections(card: ModelCard) -> list[tuple[str, list[Row]]]:
    model, config, metrics = card.model, card.config, card.metrics
    lineage = [
        ("data set", _text(card.dataset_id)),
        ("rows", _text(card.dataset_rows)),
        ("data from", _text(card.dataset_from)),
        ("data to", _text(card.dataset_to)),
        ("nothing known after", _text(card.data_cutoff)),
        ("base model", model.base_model),
        ("base revision (SHA-256)", model.base_revision),
        ("parent", card.parent or "none: training began with the base model"),
        ("code version", _text(config.get("code_version"))),
        ("training run", str(model.training_run_id)),
        ("run", _text(card.run_id)),
        ("began", _text(card.started_at)),
        ("ended", _text(card.ended_at)),
        ("adapter (SHA-256)", model.sha256),
        ("adapter folder", str(model.path)),
        *((f"trigger: {name}", _text(value)) for name, value in _flat(card.trigger)),
    ]
    training = [("algorithm", _text(config.get("algorithm"))), *_first_and_last(metrics)]
    settings = [(name, _text(value)) for name, value in _flat(config) if name.partition(".")[0] not in _SHOWN_ELSEWHERE]
    error = [
        ("error spent", _text(metrics.get("error_spent"))),
        ("one-sided level of the bounds", _text(metrics.get("level"))),
    ]
    return [
        ("Lineage", lineage),
        ("Training", training),
        ("Error budget", error),
        *([("Configuration", settings)] if settings else []),
    ]


def _first_and_last(metrics: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the metrics, those of the beginning and the end of training in one row."""
    pairs = {
        name.removesuffix("_first"): (name, f"{name.removesuffix('_first')}_last")
        for name in metrics
        if name.endswith("_first")
    }
    if "first_loss" in metrics:
        pairs["loss"] = ("first_loss", "final_loss")
    told = {"error_spent", "level"}  # in a section of their own
    paired = told | {name for pair in pairs.values() for name in pair}
    for name, (first, last) in pairs.items():
        yield f"{name}, first and last", f"{_text(metrics.get(first))} to {_text(metrics.get(last))}"
    for name, value in _flat({k: v for k, v in metrics.items() if k not in paired}):
        yield name.replace("_", " "), _text(value)


def _numbers(card: ModelCard) -> list[Row]:
    gate = {name: value for name, value in (card.model.gate or {}).items() if name not in _OF_THE_VERDICT}
    return [(name, _text(value)) for name, value in _flat(gate)]


def _criteria(card: ModelCard) -> list[tuple[str, str, str, str]]:
    """Return name, whether it is met, words and figures of everything that the gate asked for."""
    return [
        (
            str(item["name"]).replace("_", " "),
            _MET[item["met"]],
            str(item["text"]),
            ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in _flat(item.get("figures") or {})),
        )
        for item in (card.model.gate or {}).get("criteria", ())
    ]


def _regimes(card: ModelCard) -> list[tuple[str, ...]]:
    names = ("regime", "decisions", "sessions", "mean_difference", "lower_bound")
    return [tuple(_text(item.get(name)) for name in names) for item in (card.model.gate or {}).get("by_regime", ())]


def _events(card: ModelCard) -> list[tuple[str, ...]]:
    def named(version: str | None, alias: str) -> str:
        return version or ("the rules" if alias == "champion" else NOT_KNOWN)

    return [
        (
            isoformat(event.as_of), run_id[:12], event.alias, named(event.old_version, event.alias),
            named(event.new_version, event.alias), event.reason or NOT_KNOWN,
        )
        for run_id, event in card.events
    ]  # fmt: skip


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested JSON objects under dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    if value is None:
        return NOT_KNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return isoformat(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    return str(value)


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(head, *cells, strict=True)]

    def line(row: Any) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    return [line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, cells)]
