from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from market_data_builders import news_record, price_line, write_news, write_prices

import data_pipeline.feeds.sample_history as sample_history
from data_pipeline.feeds.factory import build_feed
from data_pipeline.feeds.replay import ReplayFeed
from data_pipeline.realtime_streaming import FeedPump
from utils.errors import ConfigError
from utils.hashing import file_sha256
from utils.logs import logger
from utils.schema import Instant
from utils.settings import OrchestratorConfig

DAYS = ["2014-01-02", "2014-01-03", "2014-01-06", "2014-01-07", "2014-01-08"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_prices(tmp_path, "AAA", [price_line(day, 100.0 + number) for number, day in enumerate(DAYS)])
    write_prices(tmp_path, "BBB", [price_line(day) for day in (DAYS[0], DAYS[3])])
    write_news(
        tmp_path,
        "AAA",
        [
            news_record("2014-01-02T20:59:59Z", "before the close"),
            news_record("2014-01-02T21:00:00Z", "at the close"),
            news_record("2014-01-02T21:00:01Z", "after the close"),
            news_record("2014-01-04T12:00:00Z", "on the weekend"),
            news_record("2014-01-08T21:00:01Z", "after the last close"),
        ],
    )
    return tmp_path


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FINNHUB_API_KEY", "POLYGON_API_KEY", "FINNHUB_API_KEY_FILE", "POLYGON_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def texts(instant: Instant) -> list[str]:
    return [update.data.text for update in instant.updates if update.update_type == "news"]


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        threading.Event().wait(0.005)


def test_every_session_is_an_instant_at_its_close(folder: Path) -> None:
    feed = ReplayFeed(folder)
    instants = list(feed.instants())
    assert [instant.session.isoformat() for instant in instants] == DAYS
    assert all(instant.at == feed.calendar.close_time(instant.session) and instant.decide for instant in instants)
    assert feed.total_instants == 5
    assert feed.symbols == ("AAA", "BBB")


def test_news_come_with_the_first_close_at_which_they_are_known(folder: Path) -> None:
    first, second, third, *_, last = ReplayFeed(folder).instants()
    assert texts(first) == ["before the close", "at the close"]
    assert texts(second) == ["after the close"]
    assert texts(third) == ["on the weekend"]
    assert texts(last) == []


def test_nothing_is_delivered_before_it_was_available_and_all_in_order(folder: Path) -> None:
    feed = ReplayFeed(folder, start=date(2014, 1, 6))
    previous = feed.calendar.close_time(date(2014, 1, 3))
    assert all(update.available_at <= previous for update in feed.history())
    for instant in feed.instants():
        times = [update.available_at for update in instant.updates]
        assert times == sorted(times)
        assert all(previous < at <= instant.at for at in times)
        previous = instant.at


def test_history_and_instants_together_are_all_the_data_of_the_period(folder: Path) -> None:
    whole = [update for instant in ReplayFeed(folder).instants() for update in instant.updates]
    feed = ReplayFeed(folder, start=date(2014, 1, 6), end=date(2014, 1, 7))
    split = [*feed.history(), *(update for instant in feed.instants() for update in instant.updates)]
    end = feed.calendar.close_time(date(2014, 1, 7))
    assert [update.data for update in split] == [update.data for update in whole if update.available_at <= end]
    assert len(list(feed.history())) == 6


def test_a_session_without_any_bar_is_an_instant_all_the_same(folder: Path) -> None:
    instants = list(ReplayFeed(folder, ["BBB"]).instants())
    assert [len(instant.updates) for instant in instants] == [1, 0, 0, 1]
    assert all(instant.decide for instant in instants)


def test_a_start_between_sessions_moves_to_the_next_one(folder: Path) -> None:
    assert next(ReplayFeed(folder, start=date(2014, 1, 4)).instants()).session == date(2014, 1, 6)


def test_a_period_beyond_the_data_is_cut_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    feed = ReplayFeed(folder, start=date(2013, 1, 1), end=date(2014, 6, 30))
    assert feed.identity()["period"] == ["2014-01-02", "2014-01-08"]
    assert "cut from 2013-01-01..2014-06-30" in caplog.text


def test_a_second_pass_and_a_second_feed_yield_the_same(folder: Path) -> None:
    feed = ReplayFeed(folder)
    assert list(feed.instants()) == list(feed.instants()) == list(ReplayFeed(folder).instants())


def test_identity_holds_the_hash_of_every_file_used_and_of_no_other(folder: Path) -> None:
    identity = ReplayFeed(folder, ["AAA"]).identity()
    assert identity["data_hashes"] == {
        "news/AAA.jsonl": file_sha256(folder / "news" / "AAA.jsonl"),
        "prices/AAA.csv": file_sha256(folder / "prices" / "AAA.csv"),
    }
    assert identity["symbols"] == ["AAA"]
    assert identity["feed"] == "replay"


def test_a_copy_of_the_data_elsewhere_has_the_same_identity(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert ReplayFeed(copy).identity() == ReplayFeed(folder).identity()


def test_a_changed_file_changes_the_identity(folder: Path) -> None:
    before = ReplayFeed(folder).identity()
    write_prices(folder, "BBB", [price_line(day) for day in DAYS])
    assert ReplayFeed(folder).identity() != before


def test_an_unknown_symbol_is_refused_with_folder_and_nearest(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"AAB: folder .*did you mean 'AAA'.*available: AAA, BBB") as caught:
        ReplayFeed(folder, ["AAB"])
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: folder / "nowhere", "there is no folder"),
        (lambda folder: folder / "news", "has no subfolder prices"),
        (lambda folder: folder / "prices" / "AAA.csv", "there is no folder"),
    ],
)
def test_a_folder_that_cannot_work_is_refused_by_name(
    folder: Path, break_it: Callable[[Path], Path], message: str
) -> None:
    path = break_it(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        ReplayFeed(path)
    assert str(path) in str(caught.value)


def test_a_prices_folder_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prices").mkdir()
    with pytest.raises(ConfigError, match=r"holds no SYMBOL\.csv"):
        ReplayFeed(tmp_path)


def test_an_unreadable_price_file_is_refused(folder: Path) -> None:
    (folder / "prices" / "CCC.csv").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*CCC\.csv"):
        ReplayFeed(folder)


def test_a_period_without_data_is_refused_and_says_what_there_is(folder: Path) -> None:
    with pytest.raises(ConfigError, match="the data span 2014-01-02 to 2014-01-08"):
        ReplayFeed(folder, start=date(2014, 2, 1), end=date(2014, 3, 1))
    with pytest.raises(ConfigError, match="holds no session with data"):
        ReplayFeed(folder, start=date(2014, 1, 4), end=date(2014, 1, 5))


def test_a_symbol_with_an_empty_file_or_a_late_start_stays_with_one_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_prices(folder, "EMPTY", [])
    write_prices(folder, "LATE", [price_line("2014-01-07")])
    (folder / "prices" / "ZERO.csv").write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger=logger.name):
        feed = ReplayFeed(folder)
    assert {"EMPTY", "LATE", "ZERO"} < set(feed.symbols)
    assert caplog.text.count("EMPTY: no valid bar") == 1
    assert caplog.text.count("LATE: bars start on 2014-01-07") == 1
    assert caplog.text.count("ZERO: no valid bar") == 1


def test_a_folder_of_empty_files_has_no_default_period(tmp_path: Path) -> None:
    write_prices(tmp_path, "EMPTY", [])
    with pytest.raises(ConfigError, match="holds no valid bar of EMPTY"):
        ReplayFeed(tmp_path)
    given = ReplayFeed(tmp_path, start=date(2014, 1, 2), end=date(2014, 1, 3))
    assert [instant.updates for instant in given.instants()] == [(), ()]


@pytest.mark.parametrize("speed", ["fast", "0", "-1", "nan", "inf"])
def test_a_speed_that_is_none_is_refused(folder: Path, speed: str) -> None:
    with pytest.raises(ConfigError, match="replay_speed"):
        ReplayFeed(folder, speed=speed)


def test_speed_waits_in_proportion_to_the_gap(folder: Path) -> None:
    feed = ReplayFeed(folder, end=date(2014, 1, 3), speed=864_000)
    started = time.monotonic()
    assert len(list(feed.instants())) == 2
    assert 0.09 <= time.monotonic() - started < 2.0


def test_a_resumed_replay_does_not_wait_for_what_was_lived_before(folder: Path) -> None:
    feed = ReplayFeed(folder, speed=1)
    *_, last = [feed.calendar.close_time(date.fromisoformat(day)) for day in DAYS]
    started = time.monotonic()
    assert [instant.session.isoformat() for instant in feed.instants(after=last)] == DAYS
    assert time.monotonic() - started < 5.0
    again = ReplayFeed(folder, speed=1)
    pump = FeedPump(again, after=last - timedelta(seconds=1))
    pump.start()
    done = [pump.get(timeout=10) for _ in DAYS[:-1]]
    assert [instant.session.isoformat() for instant in done if instant] == DAYS[:-1]
    assert pump.get(timeout=0.1) is None, "the first one that is new is waited for"
    pump.stop()


def test_close_interrupts_a_wait_of_a_day(folder: Path) -> None:
    feed = ReplayFeed(folder, speed=1)
    instants = feed.instants()
    next(instants)
    threading.Timer(0.05, feed.close).start()
    started = time.monotonic()
    assert list(instants) == []
    assert time.monotonic() - started < 5.0
    feed.close()
    assert list(feed.instants()) == []


def test_the_sample_maps_googl_to_the_rows_of_goog() -> None:
    feed = ReplayFeed("sample", ["GOOGL"])
    first = next(feed.instants())
    assert first.session == date(2004, 8, 19)
    assert first.updates[0].data.symbol == "GOOGL"
    assert first.updates[0].data.close == 100.335
    assert list(feed.identity()["data_hashes"]) == ["stocks.csv.gz#GOOG"]


def test_the_sample_covers_its_documented_period_without_a_rejection() -> None:
    feed = ReplayFeed("sample", ["AAPL", "MSFT", "IBM"])
    assert feed.identity()["period"] == ["2000-03-01", "2013-03-01"]
    assert feed.total_instants == 3270
    assert feed.rejected == {}


def test_the_sample_refuses_what_it_does_not_hold() -> None:
    with pytest.raises(ConfigError, match="TSLA: the sample history does not hold it"):
        ReplayFeed("sample", ["TSLA"])


def test_a_missing_sample_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_history, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install bokeh_sampledata"):
        ReplayFeed("sample", ["AAPL"])


@pytest.mark.usefixtures("clean_environment")
class TestBuildFeed:
    def test_a_folder_without_named_symbols_is_taken_whole(self, folder: Path) -> None:
        assert build_feed(OrchestratorConfig(replay_dir=str(folder))).symbols == ("AAA", "BBB")

    def test_named_symbols_win(self, folder: Path) -> None:
        config = OrchestratorConfig(replay_dir=str(folder), streaming_symbols=["bbb"], feed="replay")
        assert build_feed(config).symbols == ("BBB",)

    def test_the_default_is_the_sample_with_the_default_symbols(self) -> None:
        feed = build_feed(OrchestratorConfig(replay_start="2012-01-03", replay_end="2012-01-10"))
        assert feed.name == "replay:sample"
        assert feed.symbols == ("AAPL", "GOOGL", "MSFT")
        assert feed.total_instants == 6

    @pytest.mark.parametrize(
        "settings",
        [
            {"feed": "finnhub"},
            {"feed": "polygon"},
            {"finnhub_api_key": "k1"},
            {"polygon_api_key": "k2"},
        ],
    )
    def test_a_feed_that_cannot_be_streamed_is_refused_in_one_line(self, settings: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match="use --feed replay") as caught:
            build_feed(OrchestratorConfig(**settings))
        assert "\n" not in str(caught.value)

    def test_replay_asked_for_by_name_does_not_mind_a_key(self, folder: Path) -> None:
        config = OrchestratorConfig(replay_dir=str(folder), feed="replay", finnhub_api_key="k1")
        assert build_feed(config).mode == "replay"


class ScriptedFeed:
    """Yields given instants, then raises or ends; blocks where an item is an event."""

    def __init__(self, script: list[Any]) -> None:
        self._script = script
        self.closed = threading.Event()

    def instants(self, after: datetime | None = None) -> Iterator[Any]:
        for item in self._script:
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, threading.Event):
                self.closed.wait(30)
                return
            yield item

    def close(self) -> None:
        self.closed.set()


def an_instant(day: int) -> Instant:
    return Instant(datetime(2014, 1, day, 21, tzinfo=UTC), date(2014, 1, day), ())


def test_the_pump_loses_nothing_behind_a_queue_of_one(folder: Path) -> None:
    pump = FeedPump(ReplayFeed(folder), queue_size=1)
    pump.start()
    pump.start()
    wait_until(lambda: pump.depth == 1)
    taken = []
    while (instant := pump.get(timeout=10)) is not None:
        assert pump.depth <= 1
        taken.append(instant.session.isoformat())
    assert taken == DAYS
    assert pump.ended
    assert pump.get(timeout=0) is None
    pump.stop()
    pump.stop()


def test_an_exception_of_the_feed_reaches_the_consumer_after_the_instants_before_it() -> None:
    pump = FeedPump(ScriptedFeed([an_instant(2), KeyError("broken")]), queue_size=4)  # type: ignore[arg-type]
    pump.start()
    assert pump.get(timeout=10) == an_instant(2)
    with pytest.raises(KeyError, match="broken"):
        pump.get(timeout=10)
    assert pump.ended
    with pytest.raises(KeyError, match="broken"):
        pump.get(timeout=10)


def test_a_timeout_is_no_end() -> None:
    pump = FeedPump(ScriptedFeed([threading.Event()]), queue_size=1)  # type: ignore[arg-type]
    pump.start()
    assert pump.get(timeout=0.01) is None
    assert not pump.ended
    pump.stop()
    assert not pump.alive


def test_stop_frees_a_feed_that_waits_for_room() -> None:
    pump = FeedPump(ScriptedFeed([an_instant(day) for day in range(2, 20)]), queue_size=1)  # type: ignore[arg-type]
    pump.start()
    wait_until(lambda: pump.depth == 1)
    pump.stop()
    assert not pump.alive


def test_the_heartbeat_goes_on_while_the_feed_waits_and_stops_with_the_thread() -> None:
    pump = FeedPump(ScriptedFeed([an_instant(2), threading.Event()]), queue_size=4)  # type: ignore[arg-type]
    pump.start()
    assert pump.get(timeout=10) is not None
    before = time.monotonic()
    wait_until(lambda: pump.heartbeat >= before)
    pump.stop()
    stopped = pump.heartbeat
    assert pump.heartbeat == stopped


@pytest.mark.skipif("REPLAY_DATA_DIR" not in os.environ, reason="REPLAY_DATA_DIR names no folder of real history")
def test_real_history_loads_without_a_rejection() -> None:
    feed = ReplayFeed(Path(os.environ["REPLAY_DATA_DIR"]), ["AAPL", "AGFS", "SPLP", "BRK-A"])
    assert feed.rejected == {}
    assert feed.total_instants == 773
    cited = next(
        update.data
        for instant in feed.instants()
        for update in instant.updates
        if update.update_type == "news" and update.symbol == "AAPL"
    )
    assert cited.tickers == ("AAPL", "WYNN", "GOOG", "LGF")
