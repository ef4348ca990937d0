"""No decision knows what came after it: the future is cut off, poisoned, and shuffled, on generated history.

The whole daemon once (four runs, about 25 s); the rest drives feed, store and coordinator in one process and without a
database, since none of them needs one: what they decide does not depend on what is stored (about 15 s).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon_runner import run_to_end
from generated_history import Article, DayBar, History, generate, poisoned, truncated, with_shuffled_news

from data_pipeline.asof_store import AsOfStore
from data_pipeline.feeds.replay import ReplayFeed
from evaluation.bootstrap import Interval, mean_interval
from orchestration.analysis import Analysis
from orchestration.coordinator import Coordinator
from orchestration.execution.portfolio import Portfolio
from utils.schema import direction
from utils.setting_sections import AgentSettings
from utils.settings import OrchestratorConfig

pytestmark = pytest.mark.timeout(120)

SYMBOLS = ("AAA", "BBB", "CCC", "DDD")
FIRST, LAST = date(2012, 6, 1), date(2012, 9, 28)
CUT = datetime(2012, 8, 10, 20, tzinfo=UTC)  # the close of a Friday
HORIZON = 5


@pytest.fixture(scope="module")
def history() -> History:
    return generate(11, SYMBOLS, date(2011, 12, 1), LAST)


class Market:
    """A feed with its store and a coordinator, driven by hand."""

    def __init__(
        self, folder: Path, start: date = FIRST, end: date | None = None, config: OrchestratorConfig | None = None
    ):
        self.feed = ReplayFeed(folder, start=start, end=end)
        self.store = AsOfStore(self.feed.calendar)
        self.coordinator = Coordinator(config or OrchestratorConfig(), run_id="test")
        self.portfolio = Portfolio(cash=100_000.0)
        self.instants = []
        for update in self.feed.history():
            self.store.add(update)

    def decide_step_by_step(self) -> Iterator[list[Analysis]]:
        """Give the store each instant's updates and decide on it, as the daemon does."""
        for instant in self.feed.instants():
            for update in instant.updates:
                self.store.add(update)
            view = self.store.as_of(instant.at)
            yield self.coordinator.analyze(view, instant.session, self.feed.symbols, self.portfolio)

    def decide_with_everything_loaded(self) -> Iterator[list[Analysis]]:
        """Give the store the whole history first, then decide as of each instant."""
        instants = list(self.feed.instants())
        for instant in instants:
            for update in instant.updates:
                self.store.add(update)
        for instant in instants:
            view = self.store.as_of(instant.at)
            yield self.coordinator.analyze(view, instant.session, self.feed.symbols, self.portfolio)


def content(analyses: list[Analysis]) -> list[dict[str, Any]]:
    """Everything that a decision says and the hash of everything that it saw."""
    return [
        {
            **a.decision.canonical(),
            "saw": a.snapshot.content_hash,
            "strategist": a.decision.strategist.model_dump(mode="json"),
            "outputs": {name: out.model_dump(mode="json") for name, out in a.decision.agents.items()},
        }
        for a in analyses
    ]


def until(t: datetime, decided: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [one for instant in decided for one in instant if datetime.fromisoformat(one["as_of"]) <= t]


def test_a_store_that_holds_the_future_decides_as_one_that_does_not(tmp_path: Path, history: History) -> None:
    folder = history.write(tmp_path / "whole")
    step_by_step = [content(analyses) for analyses in Market(folder).decide_step_by_step()]
    loaded = [content(analyses) for analyses in Market(folder).decide_with_everything_loaded()]
    assert step_by_step == loaded
    sides = {one["recommendation"] for instant in loaded for one in instant}
    assert len(sides) >= 2


@pytest.mark.parametrize("seed", [1, 2])
def test_a_poisoned_future_changes_no_decision_before_it(tmp_path: Path, history: History, seed: int) -> None:
    clean = [content(a) for a in Market(history.write(tmp_path / "clean")).decide_step_by_step()]
    folder = poisoned(history, CUT, seed).write(tmp_path / "poisoned")
    dirty = [content(a) for a in Market(folder).decide_with_everything_loaded()]
    assert until(CUT, dirty) == until(CUT, clean)
    assert len(until(CUT, clean)) == len(SYMBOLS) * len(history.calendar.sessions(FIRST, CUT.date()))
    assert dirty != clean  # the poison is strong enough to be seen where it may be


def test_documented_answers_as_of_a_time_do_not_know_what_came_later(tmp_path: Path, history: History) -> None:
    answers = []
    for name, form in (("whole", history), ("cut", truncated(history, CUT)), ("poison", poisoned(history, CUT, 3))):
        config = OrchestratorConfig(feed="replay", replay_dir=str(form.write(tmp_path / name)))
        coordinator = Coordinator(config)
        answers.append(json.dumps([coordinator.analyze_symbol(s, as_of=CUT) for s in SYMBOLS], sort_keys=True))
    assert answers[1] == answers[0]
    assert answers[2] == answers[0]


def test_the_daemon_writes_the_same_bytes_up_to_t_whatever_comes_after(home: Path, history: History) -> None:
    forms = {"whole": history, "cut": truncated(history, CUT), "poison": poisoned(history, CUT, 4)}
    files = {}
    for name, form in forms.items():
        folder, decisions = form.write(home / name), home / f"{name}.jsonl"
        flags = (
            "--enable_streaming",
            "--replay_dir",
            str(folder),
            "--replay_start",
            FIRST.isoformat(),
            "--exit_when_done",
        )
        ended = run_to_end(home, *flags, "--decisions_jsonl", str(decisions), data_dir=home / f"data-{name}")
        assert ended.exit_code == 0, ended.stderr
        files[name] = decisions.read_bytes()
    known = len(SYMBOLS) * len(history.calendar.sessions(FIRST, CUT.date()))
    assert files["cut"].count(b"\n") == known
    assert files["whole"][: len(files["cut"])] == files["cut"]
    assert files["poison"][: len(files["cut"])] == files["cut"]
    assert files["poison"] != files["whole"]


@pytest.mark.parametrize(
    ("published", "first_known"),
    [
        ("2012-07-02T20:00:00+00:00", "2012-07-02"),  # at the very close
        ("2012-07-02T20:00:00.000001+00:00", "2012-07-03"),
        ("2012-07-03T16:59:59+00:00", "2012-07-03"),  # the exchange closed at 17:00 UTC that day
        ("2012-07-03T17:00:01+00:00", "2012-07-05"),  # and did not open on the 4th
        ("2012-07-07T12:00:00+02:00", "2012-07-09"),  # a Saturday
    ],
)
def test_news_after_the_close_is_first_known_at_the_next_one(
    tmp_path: Path, history: History, published: str, first_known: str
) -> None:
    quiet = replace(history, news={symbol: [] for symbol in SYMBOLS})
    quiet.news["AAA"].append(Article(datetime.fromisoformat(published), "profits surge to a record, a great win"))
    market = Market(quiet.write(tmp_path / "folder"), date(2012, 6, 28), date(2012, 7, 12))
    spoken = {
        a.decision.as_of.date().isoformat()
        for analyses in market.decide_with_everything_loaded()
        for a in analyses
        if not a.decision.agents["news"].abstained
    }
    assert min(spoken) == first_known


def edge_of(folder: Path, start: date, end: date) -> tuple[Interval, int]:
    """Return the mean market-relative return of sided news calls, by day, and the number of calls."""
    only_news = {"technical": AgentSettings(enabled=False), "fundamental": AgentSettings(enabled=False)}
    market = Market(folder, start, end, OrchestratorConfig(agent_settings=only_news))
    decided = list(market.decide_step_by_step())
    days = [analyses[0].snapshot.session for analyses in decided]
    view = market.store.as_of(decided[-1][0].decision.as_of)
    found: list[float] = []
    calls = 0
    for number, analyses in enumerate(decided[:-HORIZON]):
        opened, closed = days[number + 1], days[number + HORIZON]
        returns = {}
        for symbol in market.feed.symbols:
            entry, end_bar = view.bar(symbol, opened), view.bar(symbol, closed)
            assert entry is not None and end_bar is not None
            returns[symbol] = end_bar.close / entry.open - 1
        universe = float(np.mean(list(returns.values())))
        signed = [
            side * (returns[a.decision.symbol] - universe)
            for a in analyses
            if (side := direction(a.decision.agents["news"].recommendation))
        ]
        calls += len(signed)
        if signed:
            found.append(float(np.mean(signed)))
    return mean_interval(found, block=20), calls


def test_a_planted_edge_is_found_and_vanishes_when_the_news_are_shuffled(tmp_path: Path) -> None:
    """A good article is worth 0.2 % on each of the five sessions after it; symbols move 1.2 % a day of their own.

    The intervals are those of day blocks at 95 %: each shuffle alone would fail in one of twenty seeds, so one of five
    may exclude zero (two or more: 2 % of seeds), and none may come near the edge.
    """
    symbols = tuple(f"S{number:02d}" for number in range(16))
    start, end = date(2012, 1, 3), date(2012, 12, 31)
    planted = generate(5, symbols, start - timedelta(days=20), end, edge=0.002)
    edge, calls = edge_of(planted.write(tmp_path / "planted"), start, end)
    assert calls > 1000
    assert edge.low > 0.002
    shuffled = []
    for seed in range(5):
        interval, _ = edge_of(with_shuffled_news(planted, seed).write(tmp_path / f"shuffled-{seed}"), start, end)
        shuffled.append(interval)
    assert sum(interval.low > 0 or interval.high < 0 for interval in shuffled) <= 1
    assert max(abs(interval.estimate) for interval in shuffled) < edge.estimate / 3


def test_an_edge_that_lies_in_the_past_of_the_news_is_not_earned(tmp_path: Path) -> None:
    """News that only tell what the five sessions before them brought are worth nothing to who trades after them."""
    symbols = tuple(f"S{number:02d}" for number in range(16))
    start, end = date(2012, 1, 3), date(2012, 12, 31)
    planted = generate(6, symbols, start - timedelta(days=20), end, edge=0.002)
    sessions = planted.calendar.sessions(start - timedelta(days=20), end + timedelta(days=14))
    place = {session: number for number, session in enumerate(sessions)}

    def later(_: str, article: Article) -> Article | None:
        moved = sessions[min(place[article.published_at.date()] + 6, len(sessions) - 1)]
        return replace(article, published_at=article.published_at + (moved - article.published_at.date()))

    def same(_: str, bar: DayBar) -> DayBar:
        return bar

    edge, calls = edge_of(planted.mapped(same, later).write(tmp_path / "late"), start, end)
    assert calls > 1000
    assert edge.low < 0 < edge.high
