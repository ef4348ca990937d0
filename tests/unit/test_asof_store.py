from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_data_builders import bar_update, make_bar, news_update

from data_pipeline.asof_store import AsOfStore
from data_pipeline.calendar import ExchangeCalendar
from utils.errors import FeedDataError
from utils.schema import Bar, Filing, MarketUpdate

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def nyse() -> ExchangeCalendar:
    return ExchangeCalendar(start=date(2014, 1, 1), end=date(2015, 12, 31))


def random_walk(count: int, seed: int = 42, symbol: str = "AAA") -> list[Bar]:
    prices = 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.02, count)))
    return [make_bar(number, float(price), symbol=symbol) for number, price in enumerate(prices)]


def filing_update(at: datetime, value: float = 1.0) -> MarketUpdate:
    filing = Filing(f"{at.timestamp():.0f}:{value}", "AAA", at.date() - DAY, at, at, {"pe_ratio": value}, "test")
    return MarketUpdate("AAA", "filing", filing, at, at, "test")


def everything(seed: int = 42, count: int = 120) -> list[MarketUpdate]:
    """Return bars with a split and a dividend, news and filings of one symbol, in order."""
    bars = random_walk(count, seed)
    bars[40] = replace(bars[40], adj_factor=2.0)
    bars[60] = replace(bars[60], adj_factor=1.01)
    rng = np.random.default_rng(seed)
    updates = [bar_update(bar) for bar in bars]
    for number in range(count):
        for item in range(int(rng.poisson(2))):
            at = bars[number].available_at - timedelta(minutes=int(rng.integers(1, 1400)))
            word = ("beats estimates", "lawsuit", "quiet day")[int(rng.integers(3))]
            updates.append(news_update(at, word, item_id=f"{number}-{item}"))
    updates += [filing_update(bars[number].available_at - timedelta(hours=5)) for number in (10, 70)]
    return sorted(updates, key=lambda update: update.available_at)


def store_of(nyse: ExchangeCalendar, updates: list[MarketUpdate], lookback: int = 300) -> AsOfStore:
    store = AsOfStore(nyse, lookback)
    for update in updates:
        store.add(update)
    return store


@settings(max_examples=30)
@given(cut=st.integers(1, 119), minutes=st.integers(-1400, 0))
def test_data_added_later_never_changes_a_snapshot(nyse: ExchangeCalendar, cut: int, minutes: int) -> None:
    t = make_bar(cut, 1.0).available_at + timedelta(minutes=minutes)
    updates = everything()
    whole = store_of(nyse, updates)
    known = store_of(nyse, [update for update in updates if update.available_at <= t])
    poisoned = store_of(
        nyse,
        [update for update in updates if update.available_at <= t]
        + [update for update in everything(seed=7) if update.available_at > t],
    )
    session = make_bar(cut, 1.0).session
    hashes = {store.as_of(t).snapshot("AAA", session).content_hash for store in (whole, known, poisoned)}
    assert len(hashes) == 1


def test_every_reader_is_cut_at_t(nyse: ExchangeCalendar) -> None:
    updates = everything()
    view = store_of(nyse, updates).as_of(make_bar(50, 1.0).available_at - timedelta(seconds=1))
    last = view.last_bar("AAA")
    assert last is not None
    assert last.session == make_bar(49, 1.0).session
    assert view.bar("AAA", last.session) == last
    assert view.bar("AAA", make_bar(50, 1.0).session) is None
    assert view.bars("AAA", 300).sessions[-1] == np.datetime64(last.session)
    assert max(item.available_at for item in view.news("AAA")) <= view.at
    assert len(view.filings("AAA")) == 1
    assert [action.kind for action in view.actions("AAA", date(2014, 1, 1))] == ["split"]
    assert view.latest_instant == max(update.available_at for update in updates if update.available_at <= view.at)


def test_the_bar_of_a_session_is_known_at_its_close_and_not_before(nyse: ExchangeCalendar) -> None:
    bar = make_bar(0, 100.0)
    store = store_of(nyse, [bar_update(bar)])
    assert store.as_of(bar.available_at).last_bar("AAA") == bar
    assert store.as_of(bar.available_at - timedelta(microseconds=1)).last_bar("AAA") is None


def test_bars_before_a_split_come_in_the_share_units_of_the_newest(nyse: ExchangeCalendar) -> None:
    bars = [make_bar(0, 80.0), make_bar(1, 100.0), make_bar(2, 51.0, factor=2.0), make_bar(3, 52.0)]
    store = store_of(nyse, [bar_update(bar) for bar in bars])
    window = store.as_of(bars[3].available_at).bars("AAA", 10)
    assert window.close.tolist() == [40.0, 50.0, 51.0, 52.0]
    assert window.volume.tolist() == [2000.0, 2000.0, 1000.0, 1000.0]
    assert window.high.tolist() == pytest.approx([40.8, 51.0, 52.02, 53.04])
    before = store.as_of(bars[1].available_at).bars("AAA", 10)
    assert before.close.tolist() == [80.0, 100.0]
    assert store.as_of(bars[3].available_at).last_bar("AAA") == bars[3]
    assert store.as_of(bars[3].available_at).bar("AAA", bars[0].session) == bars[0]


@settings(max_examples=60)
@given(
    closes=st.lists(st.floats(5, 500), min_size=2, max_size=40),
    splits=st.dictionaries(st.integers(1, 39), st.sampled_from([2.0, 3.0, 1.5, 0.5, 0.1, 7.0]), max_size=4),
    n=st.integers(1, 45),
    cut=st.integers(1, 40),
)
def test_split_adjustment_keeps_traded_value_and_true_returns(
    nyse: ExchangeCalendar, closes: list[float], splits: dict[int, float], n: int, cut: int
) -> None:
    """`closes` are in constant share units; what is quoted is higher by all splits still to come."""
    bars = []
    for number, close in enumerate(closes):
        shares = float(np.prod([ratio for at, ratio in splits.items() if at <= number]))
        bars.append(make_bar(number, close / shares, volume=1000 * shares, factor=splits.get(number, 1.0)))
    store = store_of(nyse, [bar_update(bar) for bar in bars])
    count = min(cut, len(bars))
    window = store.as_of(bars[count - 1].available_at).bars("AAA", n)
    raw = bars[max(0, count - n) : count]
    assert len(window) == len(raw)
    assert window.close * window.volume == pytest.approx([bar.close * bar.volume for bar in raw])
    expected = np.array(closes[max(0, count - n) : count])
    assert window.close / window.close[-1] == pytest.approx(expected / expected[-1])
    assert window.close[-1] == raw[-1].close
    assert np.all(window.low <= window.close)
    assert np.all(window.close <= window.high)


def test_a_window_without_a_split_is_a_view_and_every_window_is_read_only(nyse: ExchangeCalendar) -> None:
    updates = [bar_update(bar) for bar in random_walk(50)]
    store = store_of(nyse, updates)
    view = store.as_of(updates[-1].available_at)
    first, second = view.bars("AAA", 20), view.bars("AAA", 30)
    assert np.shares_memory(first.close, second.close)
    split = store_of(nyse, everything())
    copied = split.as_of(make_bar(41, 1.0).available_at).bars("AAA", 20)
    for window in (first, copied):
        for values in (window.sessions, window.open, window.high, window.low, window.close, window.volume):
            with pytest.raises(ValueError, match="read-only"):
                values[0] = values[1]


def test_a_window_taken_earlier_survives_the_growth_of_the_store(nyse: ExchangeCalendar) -> None:
    bars = random_walk(1500)
    store = store_of(nyse, [bar_update(bar) for bar in bars[:200]])
    window = store.as_of(bars[199].available_at).bars("AAA", 200)
    kept = window.close.copy()
    for bar in bars[200:]:
        store.add(bar_update(bar))
    assert np.array_equal(window.close, kept)
    assert store.as_of(bars[-1].available_at).bars("AAA", 1500).close.tolist() == [bar.close for bar in bars]


@pytest.mark.parametrize(
    "late",
    [
        bar_update(make_bar(4, 100.0)),
        bar_update(make_bar(5, 100.0)),
        news_update(make_bar(5, 1.0).available_at - timedelta(seconds=1)),
        filing_update(make_bar(3, 1.0).available_at),
        MarketUpdate(
            "AAA", "aggregate", make_bar(9, 1.0), make_bar(9, 1.0).event_time, make_bar(9, 1.0).available_at, "x"
        ),
    ],
)
def test_what_would_change_the_known_past_is_refused_and_changes_nothing(
    nyse: ExchangeCalendar, late: MarketUpdate
) -> None:
    updates = [bar_update(bar) for bar in random_walk(6)]
    store = store_of(nyse, updates)
    before = store.as_of(updates[-1].available_at).snapshot("AAA", updates[-1].data.session)  # type: ignore[union-attr]
    with pytest.raises(FeedDataError, match="AAA"):
        store.add(late)
    after = store.as_of(updates[-1].available_at).snapshot("AAA", updates[-1].data.session)  # type: ignore[union-attr]
    assert before.content_hash == after.content_hash


def test_symbols_are_ordered_each_for_itself(nyse: ExchangeCalendar) -> None:
    one, two = random_walk(5), random_walk(5, symbol="BBB")
    store = store_of(nyse, [bar_update(bar) for bar in [*one, *two]])
    assert store.symbols == ("AAA", "BBB")
    assert store.latest_instant == one[-1].available_at
    assert store.as_of(one[0].available_at - DAY).symbols == ()


def test_a_snapshot_holds_seven_days_of_news_oldest_first(nyse: ExchangeCalendar) -> None:
    t = datetime(2014, 2, 1, 21, tzinfo=UTC)
    ages = [8 * DAY, 7 * DAY, 7 * DAY - timedelta(seconds=1), 2 * DAY, timedelta(0)]
    store = store_of(nyse, [news_update(t - age) for age in ages])
    snapshot = store.as_of(t).snapshot("AAA", t.date())
    assert [t - item.available_at for item in snapshot.news] == ages[2:]
    newest = store.as_of(t).news("AAA", 30 * DAY, limit=2)
    assert [t - item.available_at for item in newest] == ages[3:]


def test_a_snapshot_is_stale_unless_its_newest_bar_is_of_the_session(nyse: ExchangeCalendar) -> None:
    bar = make_bar(0, 100.0)
    view = store_of(nyse, [bar_update(bar)]).as_of(bar.available_at + DAY)
    assert not view.snapshot("AAA", bar.session).stale
    assert view.snapshot("AAA", bar.session + DAY).stale


def test_a_symbol_of_which_nothing_is_known_gives_an_empty_stale_snapshot(nyse: ExchangeCalendar) -> None:
    t = datetime(2014, 2, 1, 21, tzinfo=UTC)
    view = AsOfStore(nyse).as_of(t)
    snapshot = view.snapshot("NONE", t.date())
    assert len(snapshot.bars) == 0
    assert snapshot.price is None
    assert snapshot.stale
    assert set(snapshot.inputs.flags) == {"volatility", "trend_strength", "news_impact"}
    assert view.last_bar("NONE") is view.bar("NONE", t.date()) is view.latest_instant is None
    assert view.news("NONE") == view.filings("NONE") == view.actions("NONE", t.date()) == ()


def test_actions_are_those_of_sessions_after_a_day_and_known_at_t(nyse: ExchangeCalendar) -> None:
    store = store_of(nyse, everything())
    late = store.as_of(make_bar(119, 1.0).available_at)
    assert [action.kind for action in late.actions("AAA", make_bar(39, 1.0).session)] == ["split", "dividend"]
    assert [action.kind for action in late.actions("AAA", make_bar(40, 1.0).session)] == ["dividend"]
    early = store.as_of(make_bar(59, 1.0).available_at)
    assert [action.value for action in early.actions("AAA", date(2014, 1, 1))] == [2.0]


def test_any_difference_in_what_is_known_changes_the_hash(nyse: ExchangeCalendar) -> None:
    updates = everything()
    t = updates[-1].available_at
    session = t.date()

    def digest(changed: list[MarketUpdate], lookback: int = 300, at: datetime = t, of: date = session) -> str:
        return store_of(nyse, changed, lookback).as_of(at).snapshot("AAA", of).content_hash

    last_bar = max(number for number, update in enumerate(updates) if update.update_type == "bar")
    last_news = max(number for number, update in enumerate(updates) if update.update_type == "news")
    bar = updates[last_bar].data
    assert isinstance(bar, Bar)
    louder = [*updates[:last_bar], bar_update(replace(bar, volume=bar.volume + 1)), *updates[last_bar + 1 :]]
    quieter = [update for number, update in enumerate(updates) if number != last_news]
    filed = [*updates, filing_update(t)]
    hashes = {
        digest(updates), digest(louder), digest(quieter), digest(filed), digest(updates, lookback=50),
        digest(updates, at=t + timedelta(seconds=1)), digest(updates, of=session + DAY),
    }  # fmt: skip
    assert len(hashes) == 7
    assert digest(updates) == digest(everything())


def test_a_time_without_a_zone_is_refused(nyse: ExchangeCalendar) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        AsOfStore(nyse).as_of(datetime(2014, 1, 1))


def test_readers_beside_the_writer_see_whole_rows_of_the_past(nyse: ExchangeCalendar) -> None:
    bars = random_walk(3000)
    store = AsOfStore(nyse)
    expected = [bar.close for bar in bars]
    faults: list[str] = []
    reads = [0, 0]
    done = threading.Event()

    def read(reader: int) -> None:
        while not done.is_set() or reads[reader] == 0:
            window = store.as_of(bars[-1].available_at).bars("AAA", 5000)
            if window.close.tolist() != expected[: len(window)] or len(window.sessions) != len(window):
                faults.append(f"torn window of {len(window)} bars")
            reads[reader] += 1

    readers = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for reader in readers:
        reader.start()
    for bar in bars:
        store.add(bar_update(bar))
    done.set()
    for reader in readers:
        reader.join(30)
    assert faults == []
    assert min(reads) > 0
