"""Fills to the cent: next open with costs, caps, stops and targets inside the bar, splits, dividends, missing bars."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from data_pipeline.library.portfolio_log import PortfolioEvent
from orchestration.execution.paper_broker import PaperBroker
from orchestration.execution.portfolio import Ledger
from utils.schema import Bar, CorporateAction, Order
from utils.setting_sections import ExecutionSettings

CLOSE_BEFORE = datetime(2014, 1, 2, 21, tzinfo=UTC)
OPEN = datetime(2014, 1, 3, 14, 30, tzinfo=UTC)
CLOSE = datetime(2014, 1, 3, 21, tzinfo=UTC)
FREE = ExecutionSettings(commission_bps=0, half_spread_bps=0, slippage_bps=0)


class Desk:
    """A broker with its ledger, one session after another."""

    def __init__(self, settings: ExecutionSettings | None = None) -> None:
        self.ledger = Ledger("run")
        self.broker = PaperBroker(self.ledger, settings or ExecutionSettings(), "run")
        self.broker.open_account(CLOSE_BEFORE)
        self.day = 0

    def order(self, side: str = "buy", quantity: float = 100.0, symbol: str = "AAA", **more: Any) -> str:
        name = more.pop("order_id", f"order-{self.day}-{symbol}-{side}")
        self.broker.submit(Order(name, symbol, side, quantity, CLOSE_BEFORE, **more))
        return name

    def session(self, *bars: Bar, actions: tuple[CorporateAction, ...] = ()) -> list[PortfolioEvent]:
        self.day += 1
        self.ledger.take_pending()
        grouped: dict[str, list[CorporateAction]] = {}
        for action in actions:
            grouped.setdefault(action.symbol, []).append(action)
        self.broker.process_session({bar.symbol: bar for bar in bars}, grouped, CLOSE)
        self.broker.mark({bar.symbol: bar.close for bar in bars}, CLOSE)
        return self.ledger.take_pending()[0]

    @property
    def portfolio(self):
        return self.ledger.portfolio


def bar(
    open: float = 100.0,
    high: float | None = None,
    low: float | None = None,
    close: float | None = None,
    volume: float = 1e6,
    symbol: str = "AAA",
    day: int = 0,
) -> Bar:
    close = open if close is None else close
    shift = timedelta(days=day)
    return Bar(
        symbol, (CLOSE + shift).date(), OPEN + shift, CLOSE + shift, CLOSE + shift, open,
        max(open, close) if high is None else high, min(open, close) if low is None else low, close, volume,
    )  # fmt: skip


def of_kind(events: list[PortfolioEvent], kind: str) -> list[dict[str, Any]]:
    return [event.payload for event in events if event.kind == kind]


def held_at(price: float, settings: ExecutionSettings = FREE, quantity: float = 100.0, **limits: Any) -> Desk:
    desk = Desk(settings)
    desk.order(quantity=quantity, **limits)
    desk.session(bar(price))
    return desk


def test_a_buy_fills_at_the_next_open_plus_half_spread_and_slippage_and_pays_commission() -> None:
    desk = Desk()
    desk.order(quantity=100)
    [fill] = of_kind(desk.session(bar(100.0, 105, 99, 104)), "fill")
    assert fill["price"] == pytest.approx(100.07)  # 2 bp half-spread and 5 bp slippage
    assert fill["commission"] == pytest.approx(1.0007)  # 1 bp of 10,007
    assert (fill["spread"], fill["slippage"]) == (pytest.approx(2.0), pytest.approx(5.0))
    assert desk.portfolio.cash == pytest.approx(100_000 - 10_007 - 1.0007)
    assert desk.portfolio.equity == pytest.approx(100_000 - 10_008.0007 + 10_400)
    assert desk.portfolio.costs_usd == pytest.approx(8.0007)


def test_a_sale_fills_at_the_next_open_less_half_spread_and_slippage() -> None:
    desk = held_at(100.0, ExecutionSettings())
    cash = desk.portfolio.cash
    desk.order("sell", 100)
    [fill] = of_kind(desk.session(bar(110.0)), "fill")
    assert fill["price"] == pytest.approx(110 * (1 - 7e-4))
    assert desk.portfolio.cash - cash == pytest.approx(11_000 * (1 - 7e-4) * (1 - 1e-4))
    assert desk.portfolio.held("AAA") == 0


def test_a_fill_happens_at_the_open_and_not_at_the_decision() -> None:
    desk = Desk()
    desk.order()
    events = desk.session(bar())
    assert [event.as_of for event in events if event.kind == "fill"] == [OPEN]


def test_the_rest_beyond_the_participation_cap_is_cancelled() -> None:
    desk = Desk(FREE)
    name = desk.order(quantity=100)
    events = desk.session(bar(volume=1_999))
    assert [fill["quantity"] for fill in of_kind(events, "fill")] == [49.0]  # 2.5 % of 1,999 in whole shares
    [cancel] = of_kind(events, "cancel")
    assert (cancel["order_id"], cancel["quantity"]) == (name, 51.0)
    assert "participation" in cancel["reason"]
    assert desk.portfolio.orders == {}


def test_a_bar_without_volume_fills_nothing_and_cancels_all() -> None:
    desk = Desk()
    desk.order()
    events = desk.session(bar(volume=0))
    assert of_kind(events, "fill") == []
    assert [cancel["quantity"] for cancel in of_kind(events, "cancel")] == [100.0]


def test_two_orders_on_a_symbol_share_the_participation_cap() -> None:
    desk = held_at(100.0)
    desk.order("sell", 100, order_id="a")
    desk.order("sell", 100, order_id="b")
    events = desk.session(bar(volume=4_000))
    assert sum(fill["quantity"] for fill in of_kind(events, "fill")) == 100.0
    assert desk.portfolio.held("AAA") == 0


def test_an_order_that_finds_no_bar_is_cancelled_and_does_not_wait() -> None:
    desk = Desk()
    desk.order()
    events = desk.session()
    assert "no bar" in of_kind(events, "cancel")[0]["reason"]
    assert of_kind(desk.session(bar()), "fill") == []


def test_an_order_is_accepted_once() -> None:
    desk = Desk()
    desk.order(order_id="same")
    desk.order(order_id="same", quantity=500)
    assert desk.portfolio.orders["same"].quantity == 100


def test_an_order_that_was_filled_is_not_traded_again() -> None:
    desk = Desk()
    desk.order(order_id="same")
    desk.session(bar())
    desk.order(order_id="same")
    assert of_kind(desk.session(bar(day=1)), "fill") == []
    assert desk.portfolio.held("AAA") == 100


def test_an_account_is_opened_once() -> None:
    desk = Desk()
    desk.broker.open_account(CLOSE)
    assert desk.portfolio.cash == 100_000.0


def test_where_a_bar_touches_both_the_stop_comes_first() -> None:
    desk = held_at(100.0, stop_loss=95.0, take_profit=110.0)
    [fill] = of_kind(desk.session(bar(100, 112, 94, 108, day=1)), "fill")
    assert (fill["reason"], fill["price"], fill["quantity"]) == ("stop_loss", 95.0, 100.0)


def test_a_gap_through_the_stop_fills_at_the_open() -> None:
    desk = held_at(100.0, stop_loss=95.0)
    [fill] = of_kind(desk.session(bar(80, 85, 79, 82, day=1)), "fill")
    assert (fill["reason"], fill["price"]) == ("stop_loss", 80.0)


def test_a_stop_pays_spread_slippage_and_commission() -> None:
    desk = held_at(100.0, ExecutionSettings(), stop_loss=95.0)
    [fill] = of_kind(desk.session(bar(100, 100, 94, 94, day=1)), "fill")
    assert fill["price"] == pytest.approx(95 * (1 - 7e-4))
    assert fill["commission"] > 0


def test_a_stop_is_touched_at_its_exact_price() -> None:
    desk = held_at(100.0, stop_loss=95.0)
    assert of_kind(desk.session(bar(100, 101, 95.01, 100, day=1)), "fill") == []
    assert len(of_kind(desk.session(bar(100, 101, 95.0, 100, day=2)), "fill")) == 1


def test_a_target_fills_at_its_price_and_a_gap_above_it_at_the_open() -> None:
    reached = held_at(100.0, take_profit=110.0)
    [fill] = of_kind(reached.session(bar(105, 111, 104, 106, day=1)), "fill")
    assert (fill["reason"], fill["price"]) == ("take_profit", 110.0)
    gapped = held_at(100.0, take_profit=110.0)
    [fill] = of_kind(gapped.session(bar(120, 121, 118, 119, day=1)), "fill")
    assert fill["price"] == 120.0


def test_a_position_can_be_stopped_in_the_session_that_opened_it() -> None:
    desk = Desk(FREE)
    desk.order(stop_loss=95.0)
    events = desk.session(bar(100, 101, 90, 92))
    assert [fill["reason"] for fill in of_kind(events, "fill")] == ["open", "stop_loss"]


def test_a_stop_beyond_the_participation_cap_goes_on_in_the_next_session() -> None:
    desk = held_at(100.0, stop_loss=95.0)
    first = of_kind(desk.session(bar(90, volume=2_400, day=1)), "fill")
    second = of_kind(desk.session(bar(88, day=2)), "fill")
    assert [fill["quantity"] for fill in (*first, *second)] == [60.0, 40.0]
    assert first[0]["fill_id"] != second[0]["fill_id"]
    assert desk.portfolio.held("AAA") == 0


def test_a_sale_at_the_open_leaves_nothing_for_the_stop() -> None:
    desk = held_at(100.0, stop_loss=95.0)
    desk.order("sell", 100)
    fills = of_kind(desk.session(bar(100, 101, 90, 91, day=1)), "fill")
    assert [fill["reason"] for fill in fills] == ["open"]


def test_a_sale_never_sells_more_than_is_held() -> None:
    desk = held_at(100.0)
    desk.order("sell", 250)
    events = desk.session(bar(day=1))
    assert [fill["quantity"] for fill in of_kind(events, "fill")] == [100.0]
    assert desk.portfolio.held("AAA") == 0


def test_a_gap_up_overnight_buys_only_what_the_cash_pays_for() -> None:
    desk = Desk()
    desk.order(quantity=1000)  # 100,000 USD at 100, but it opens at 200
    events = desk.session(bar(200.0))
    [fill] = of_kind(events, "fill")
    assert fill["quantity"] == 499.0
    assert "cash" in of_kind(events, "cancel")[0]["reason"]
    assert desk.portfolio.cash >= 0


def test_costs_upon_costs_do_not_overdraw_the_account() -> None:
    desk = Desk(ExecutionSettings(initial_cash=100_080.0))
    desk.order(quantity=2000)
    desk.session(bar(100.0))
    assert desk.portfolio.cash >= 0


def test_a_split_rescales_holding_stop_target_and_waiting_orders_before_the_open() -> None:
    desk = held_at(100.0, stop_loss=80.0, take_profit=160.0)
    desk.order("sell", 40)
    split = CorporateAction("AAA", date(2014, 1, 4), "split", 4.0, CLOSE)
    events = desk.session(bar(25.0, day=1), actions=(split,))
    assert of_kind(events, "split") == [{"symbol": "AAA", "ratio": 4.0}]
    assert [fill["quantity"] for fill in of_kind(events, "fill")] == [160.0]
    position = desk.portfolio.positions["AAA"]
    assert (position.quantity, position.stop_loss, position.take_profit) == (240.0, 20.0, 40.0)
    assert desk.portfolio.equity == pytest.approx(100_000.0)


def test_a_dividend_pays_cash_on_what_was_held_and_no_more() -> None:
    desk = held_at(100.0)
    cash = desk.portfolio.cash
    desk.order("buy", 50)
    dividend = CorporateAction("AAA", date(2014, 1, 4), "dividend", 0.75, CLOSE)
    events = desk.session(bar(100.0, day=1), actions=(dividend,))
    assert of_kind(events, "dividend") == [{"symbol": "AAA", "per_share": 0.75, "amount": 75.0}]
    assert desk.portfolio.cash == pytest.approx(cash + 75 - 5_000)


def test_actions_of_a_symbol_that_is_not_held_leave_no_event() -> None:
    desk = Desk()
    actions = tuple(CorporateAction("AAA", date(2014, 1, 3), kind, 2.0, CLOSE) for kind in ("split", "dividend"))
    events = desk.session(bar(), actions=actions)
    assert [event.kind for event in events] == ["mark"]


def test_the_mark_values_a_symbol_without_a_bar_at_its_last_price() -> None:
    desk = held_at(100.0)
    desk.session(bar(110.0, day=1))
    events = desk.session(bar(50.0, symbol="BBB", day=2))
    assert of_kind(events, "mark")[0]["equity"] == pytest.approx(101_000.0)


def test_the_mark_is_the_last_event_of_a_session() -> None:
    desk = held_at(100.0, stop_loss=95.0)
    events = desk.session(bar(90, day=1))
    assert events[-1].kind == "mark"
    assert of_kind(events, "mark")[0]["equity"] == desk.portfolio.equity
