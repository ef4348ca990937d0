from __future__ import annotations

import json
import logging
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from market_data_builders import HEADER, news_record, price_line, write_filings, write_news, write_prices

from data_pipeline.calendar import ExchangeCalendar
from data_pipeline.feeds.csv_history import BarParser
from data_pipeline.feeds.jsonl_history import MAX_TEXT_CHARACTERS, cashtags, parse_filing, parse_news, sanitise
from data_pipeline.feeds.rejections import MalformedRecordError
from data_pipeline.feeds.replay import ReplayFeed
from data_pipeline.feeds.replay_folder import gunzip_readable
from utils.clock import VirtualClock
from utils.errors import FeedDataError
from utils.logs import logger

NOW = datetime(2014, 3, 3, 15, 0, tzinfo=UTC)
GOOD = price_line("2014-01-02")


@pytest.fixture(scope="module")
def nyse() -> ExchangeCalendar:
    return ExchangeCalendar("XNYS", start=date(2014, 1, 1), end=date(2014, 12, 31))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2014-01-03,100,101,99,100,100", "columns"),
        ("2014-01-03,100,101,99,100,100,1000,7", "columns"),
        ("2014-01-03", "columns"),
        ('"2014-01-03,100,101,99,100,100,1000', "columns"),
        ("2014-01-03,null,null,null,null,null,null", "not_a_number"),
        ("2014-01-03,100,101,99,,100,1000", "not_a_number"),
        ("2014-01-03,100,101,99,nan,100,1000", "not_a_number"),
        ("2014-01-03,100,inf,99,100,100,1000", "not_a_number"),
        ("2014-01-03,100,101,99,100,-inf,1000", "not_a_number"),
        ("2014-01-03,1_00,101,99,100,100,1000", "not_a_number"),
        ("2014-01-03,100,101,99,1\x0000,100,1000", "not_a_number"),
        ("2014-01-03,100,101,99,100,100,1e400", "not_a_number"),
        ("2014-01-03,0,101,0,100,100,1000", "price"),
        ("2014-01-03,100,101,-99,100,100,1000", "price"),
        ("2014-01-03,100,101,99,100,0,1000", "price"),
        ("2014-01-03,100,99,101,100,100,1000", "high_below_low"),
        ("2014-01-03,102,101,99,100,100,1000", "outside_range"),
        ("2014-01-03,100,101,99,98.9,100,1000", "outside_range"),
        ("2014-01-03,100,101,99,100,100,-1", "volume"),
        ("2014-01-02,100,101,99,100,100,1000", "duplicate_date"),
        ("2013-12-31,100,101,99,100,100,1000", "descending_date"),
        ("2014-01-04,100,101,99,100,100,1000", "not_a_session"),
        ("2014-01-20,100,101,99,100,100,1000", "not_a_session"),
        ("2014-03-03,100,101,99,100,100,1000", "future_date"),
        ("2014-12-31,100,101,99,100,100,1000", "future_date"),
        ("03/01/2014,100,101,99,100,100,1000", "date"),
        ("20140103,100,101,99,100,100,1000", "date"),
        ("2014-02-30,100,101,99,100,100,1000", "date"),
        (",100,101,99,100,100,1000", "date"),
    ],
)
def test_a_malformed_price_row_is_refused_for_its_reason_and_leaves_no_trace(
    nyse: ExchangeCalendar, line: str, reason: str
) -> None:
    parser = BarParser("AAA", HEADER, nyse, NOW)
    parser.parse(GOOD)
    with pytest.raises(FeedDataError) as caught:
        parser.parse(line)
    assert isinstance(caught.value, MalformedRecordError)
    assert caught.value.reason == reason
    untouched = BarParser("AAA", HEADER, nyse, NOW)
    untouched.parse(GOOD)
    assert parser.parse(price_line("2014-01-06", 50.0, 50.0)) == untouched.parse(price_line("2014-01-06", 50.0, 50.0))


def test_a_good_row_becomes_a_bar_that_is_available_at_the_close(nyse: ExchangeCalendar) -> None:
    bar = BarParser("AAA", HEADER, nyse, NOW).parse('2014-01-02,"100",101.5,99,100.25,50.125,1000')
    assert (bar.open, bar.high, bar.low, bar.close, bar.volume) == (100.0, 101.5, 99.0, 100.25, 1000.0)
    assert bar.available_at == datetime(2014, 1, 2, 21, tzinfo=UTC)
    assert bar.open_time == datetime(2014, 1, 2, 14, 30, tzinfo=UTC)
    assert bar.adj_factor is None


def test_columns_are_found_by_name_in_any_order(nyse: ExchangeCalendar) -> None:
    header = "\ufeffTicker,date,Volume,Close,Open,Low,High,Adj Close"
    bar = BarParser("AAA", header, nyse, NOW).parse("AAA,2014-01-02,7,100,99,98,101,50")
    assert (bar.open, bar.high, bar.low, bar.close, bar.volume) == (99.0, 101.0, 98.0, 100.0, 7.0)


def test_a_header_without_a_column_is_refused_by_name(nyse: ExchangeCalendar) -> None:
    with pytest.raises(MalformedRecordError, match="lacks Adj Close, Volume"):
        BarParser("AAA", "Date,Open,High,Low,Close", nyse, NOW)


def test_a_close_that_rounding_put_beyond_the_range_is_kept_and_the_range_widened(nyse: ExchangeCalendar) -> None:
    bar = BarParser("AAA", HEADER, nyse, NOW).parse("2014-01-02,98.99,100.99,99.00,101.00,101.00,1000")
    assert (bar.low, bar.high) == (98.99, 101.00)


def test_the_factor_is_the_ratio_of_the_two_moves_with_the_error_of_the_printed_digits(nyse: ExchangeCalendar) -> None:
    parser = BarParser("AAA", HEADER, nyse, NOW)
    parser.parse("2014-01-02,100.00,101.00,99.00,100.00,50.00,1000")
    bar = parser.parse("2014-01-03,50.00,51.00,49.00,50.00,50.00,1000")
    assert bar.adj_factor == pytest.approx(2.0)
    # half a cent in each of the closes 100 and 50 and twice in the adjusted 50
    assert bar.factor_tolerance == pytest.approx(2 * (0.005 / 100 + 0.005 / 50 + 2 * 0.005 / 50))


def test_the_printed_digits_of_later_rows_never_change_an_earlier_bar(nyse: ExchangeCalendar) -> None:
    first = ["2014-01-02,100,101,99,100.5,50.25,1000", "2014-01-03,100,101,99,100.5,50.30,1000"]
    later = "2014-01-06,100,101,99,100.1234,50.123456,1000"
    short, long = BarParser("AAA", HEADER, nyse, NOW), BarParser("AAA", HEADER, nyse, NOW)
    assert [long.parse(line) for line in [*first, later]][:2] == [short.parse(line) for line in first]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "not_json"),
        ('{"published_at": "2014-01-02T00:00:00Z", "text": "x"', "not_json"),
        ("[1, 2]", "not_json"),
        ("[" * 50_000, "not_json"),
        (json.dumps({"symbol": "AAA", "text": "x"}), "undated"),
        (json.dumps(news_record("2014-01-02T00:00:00")), "undated"),
        (json.dumps(news_record("yesterday")), "undated"),
        (json.dumps({"published_at": 1388620800, "symbol": "AAA", "text": "x"}), "undated"),
        (json.dumps({"published_at": None, "symbol": "AAA", "text": "x"}), "undated"),
        (json.dumps(news_record("0001-01-01T00:00:00+14:00")), "undated"),
        (json.dumps(news_record("2014-03-04T00:00:00Z")), "future_date"),
        (json.dumps(news_record("2014-01-02T00:00:00Z", symbol="BBB")), "symbol"),
        (json.dumps(news_record("2014-01-02T00:00:00Z", text=" \x00 ")), "text"),
        (json.dumps({"published_at": "2014-01-02T00:00:00Z", "symbol": "AAA", "text": 5}), "text"),
        (json.dumps({"published_at": "2014-01-02T00:00:00Z", "symbol": "AAA"}), "text"),
    ],
)
def test_a_malformed_news_line_is_refused_for_its_reason(line: str, reason: str) -> None:
    with pytest.raises(MalformedRecordError) as caught:
        parse_news(line, "AAA", NOW)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"filed_at": "2014-01-02"}, "undated"),
        ({"filed_at": None}, "undated"),
        ({"filed_at": "2014-06-02T00:00:00Z"}, "future_date"),
        ({"period_end": "Q4"}, "undated"),
        ({"period_end": None}, "undated"),
        ({"period_end": "2014-02-01"}, "period_end"),
        ({"metrics": {"revenue": "12"}}, "metrics"),
        ({"metrics": {"revenue": True}}, "metrics"),
        ({"metrics": {"revenue": float("nan")}}, "metrics"),
        ({"metrics": {"revenue": float("inf")}}, "metrics"),
        ({"metrics": {"revenue": 10**400}}, "metrics"),
        ({"metrics": [1, 2]}, "metrics"),
        ({"metrics": {}}, "metrics"),
    ],
)
def test_a_malformed_filing_is_refused_for_its_reason(changes: dict[str, object], reason: str) -> None:
    record = {"filed_at": "2014-01-28T21:30:00Z", "period_end": "2013-12-31", "metrics": {"revenue": 5e9}, **changes}
    with pytest.raises(MalformedRecordError) as caught:
        parse_filing(json.dumps(record), "AAA", NOW)
    assert caught.value.reason == reason


def test_text_loses_what_breaks_databases_and_keeps_the_rest() -> None:
    assert sanitise("a\x00b \ud800 c\x1b[31m \u2014 ü\n\tz") == "a b   c [31m \u2014 ü\n\tz"
    item = parse_news('{"published_at":"2014-01-02T00:00:00Z","symbol":"AAA","text":"x \\ud83d y \\u0000"}', "AAA", NOW)
    assert item.text.encode("utf-8") == b"x   y"


def test_text_of_any_length_is_cut_to_a_bound() -> None:
    record = json.dumps(news_record("2014-01-02T00:00:00Z", text="x" * 1_000_000))
    assert len(parse_news(record, "AAA", NOW).text) == MAX_TEXT_CHARACTERS


@pytest.mark.parametrize(
    ("text", "tickers"),
    [
        ("$ msft and $AAPL, again $ msft", ("MSFT", "AAPL")),
        ("$ brk.b rises", ("BRK.B",)),
        ("earned $ 5 or $5.20 or 20$", ()),
        ("$toolongname", ()),
        ("$ t .", ("T",)),
        ("no tags", ()),
    ],
)
def test_cashtags_are_found_plain_and_tokenised(text: str, tickers: tuple[str, ...]) -> None:
    assert cashtags(text) == tickers


def test_an_item_is_identified_by_symbol_time_and_text_alone() -> None:
    one = parse_news(json.dumps(news_record("2014-01-02T05:00:00Z")), "AAA", NOW)
    same = parse_news(json.dumps({**news_record("2014-01-02T00:00:00-05:00"), "source": "wire"}), "AAA", NOW)
    other = parse_news(json.dumps(news_record("2014-01-02T05:00:01Z")), "AAA", NOW)
    assert one.item_id == same.item_id != other.item_id
    assert len(one.item_id) == 16
    assert same.source == "wire"


def test_rejections_are_counted_by_reason_and_logged_with_file_and_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [price_line("2014-01-03", -5.0) for _ in range(6)]
    path = write_prices(tmp_path, "AAA", [GOOD, *bad, price_line("2014-01-06"), "rubbish"])
    write_news(tmp_path, "AAA", [news_record("2014-01-02T00:00:00Z"), news_record("2014-01-02T00:00:00Z"), "{"])
    with caplog.at_level(logging.WARNING, logger=logger.name):
        feed = ReplayFeed(tmp_path, clock=VirtualClock(NOW))
    assert feed.rejected == {"price": 6, "columns": 1, "duplicate": 1, "not_json": 1}
    assert f"{path}:3: skipped" in caplog.text
    assert f"{path}: 7 records skipped in all" in caplog.text
    assert f"{path}:6: skipped" not in caplog.text


def test_a_truncated_gzip_file_keeps_what_was_readable_and_counts_once(tmp_path: Path) -> None:
    write_prices(tmp_path, "AAA", [GOOD, price_line("2014-01-03")])
    records = [news_record(f"2014-01-02T{n // 60:02d}:{n % 60:02d}:00Z", text=f"item {n * 7919}") for n in range(600)]
    path = write_news(tmp_path, "AAA", records, compress=True)
    path.write_bytes(path.read_bytes()[:-400])
    feed = ReplayFeed(tmp_path, clock=VirtualClock(NOW))
    kept = [update for instant in feed.instants() for update in instant.updates if update.update_type == "news"]
    assert 100 < len(kept) < 600
    assert [update.data.text for update in kept] == [record["text"] for record in records[: len(kept)]]
    assert feed.rejected == {"truncated_file": 1}


def test_garbage_named_gz_gives_nothing_and_says_so() -> None:
    content, fault = gunzip_readable(b"this is no gzip data")
    assert content == b""
    assert "damaged" in str(fault)


def test_a_file_that_is_not_utf8_loses_only_its_bad_lines(tmp_path: Path) -> None:
    path = write_prices(tmp_path, "AAA", [GOOD, "PLACEHOLDER", price_line("2014-01-06")])
    path.write_bytes(path.read_bytes().replace(b"PLACEHOLDER", b"2014-01-03,\xff\xfe,101,99,100,100,1"))
    feed = ReplayFeed(tmp_path, clock=VirtualClock(NOW))
    assert feed.rejected == {"not_a_number": 1}
    assert feed.total_instants == 3


def test_filings_arrive_with_their_metrics(tmp_path: Path) -> None:
    write_prices(tmp_path, "AAA", [GOOD, price_line("2014-01-03")])
    write_filings(
        tmp_path, "AAA", [{"filed_at": "2014-01-02T22:00:00Z", "period_end": "2013-12-31", "metrics": {"pe_ratio": 12}}]
    )
    last = list(ReplayFeed(tmp_path, clock=VirtualClock(NOW)).instants())[1]
    assert [update.update_type for update in last.updates] == ["filing", "bar"]
    assert last.updates[0].data.metrics == {"pe_ratio": 12.0}
