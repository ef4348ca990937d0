"""The portfolio is the fold of its log: exact on replay, and money is neither made nor lost on the way."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.library.portfolio_log import GENESIS, PortfolioEvent
from orchestration.execution.paper_broker import PaperBroker
from orchestration.execution.portfolio import Ledger, Portfolio
from utils.hashing import canonical_json
from utils.schema import Bar, CorporateAction, Order
from utils.setting_sections import ExecutionSettings

T0 = datetime(2014, 1, 2, 21, tzinfo=UTC)
SYMBOLS = ("AAA", "BBB", "CCC")


def funded(cash: float = 100_000.0) -> Ledger:
    ledger = Ledger("run")
    ledger.record("cash", T0, amount=cash, reason="initial")
    return ledger


def fill(ledger: Ledger, side: str, quantity: float, price: float, *, commission: float = 0.0, **more: Any) -> None:
    payload = {
        "fill_id": "f", "order_id": None, "symbol": "AAA", "side": side, "quantity": quantity, "price": price,
        "commission": commission, "spread": 0.0, "slippage": 0.0, "reason": "open", **more,
    }  # fmt: skip
    ledger.record("fill", T0, **payload)


def test_the_first_cash_sets_equity_peak_and_start() -> None:
    portfolio = funded().portfolio
    assert (portfolio.cash, portfolio.equity, portfolio.peak_equity, portfolio.session_start_equity) == (100_000.0,) * 4


def test_a_purchase_averages_the_price_with_its_commission() -> None:
    ledger = funded()
    fill(ledger, "buy", 10, 100.0, commission=1.0)
    fill(ledger, "buy", 30, 110.0, commission=3.0)
    position = ledger.portfolio.positions["AAA"]
    assert position.quantity == 40
    assert position.avg_price == pytest.approx((1001 + 3303) / 40)
    assert ledger.portfolio.cash == pytest.approx(100_000 - 1001 - 3303)


def test_a_sale_realises_against_the_average_and_keeps_it_for_the_rest() -> None:
    ledger = funded()
    fill(ledger, "buy", 10, 100.0)
    fill(ledger, "sell", 4, 125.0, commission=2.0)
    position = ledger.portfolio.positions["AAA"]
    assert (position.quantity, position.avg_price, position.realised_pnl) == (6, 100.0, 98.0)
    assert ledger.portfolio.trades[-1].net_return == pytest.approx(98 / 400)


def test_a_closed_position_keeps_its_profit_and_nothing_else() -> None:
    ledger = funded()
    fill(ledger, "buy", 10, 100.0)
    fill(ledger, "sell", 10, 90.0)
    position = ledger.portfolio.positions["AAA"]
    assert (position.quantity, position.avg_price, position.stop_loss, position.take_profit) == (0.0, 0.0, None, None)
    assert position.realised_pnl == -100.0
    assert ledger.portfolio.weights() == {}


def test_an_order_hands_its_stop_and_target_to_the_position_and_leaves_the_book() -> None:
    ledger = funded()
    ledger.record("order", T0, order_id="o", symbol="AAA", side="buy", quantity=5.0, stop_loss=90.0, take_profit=120.0)
    assert list(ledger.portfolio.orders) == ["o"]
    fill(ledger, "buy", 5, 100.0, order_id="o")
    assert ledger.portfolio.orders == {}
    position = ledger.portfolio.positions["AAA"]
    assert (position.stop_loss, position.take_profit) == (90.0, 120.0)


def test_a_split_leaves_the_value_of_holding_price_and_waiting_orders_as_it_was() -> None:
    ledger = funded()
    ledger.record("order", T0, order_id="o", symbol="AAA", side="buy", quantity=10.0, stop_loss=80.0, take_profit=160.0)
    fill(ledger, "buy", 10, 100.0, order_id="o")
    ledger.record("mark", T0, equity=100_000.0, cash=99_000.0, prices={"AAA": 100.0})
    ledger.record("order", T0, order_id="p", symbol="AAA", side="sell", quantity=10.0, stop_loss=None, take_profit=None)
    ledger.record("order", T0, order_id="q", symbol="BBB", side="buy", quantity=10.0, stop_loss=8.0, take_profit=None)
    before = ledger.portfolio.value()
    ledger.record("split", T0, symbol="AAA", ratio=4.0)
    portfolio = ledger.portfolio
    position = portfolio.positions["AAA"]
    assert (position.quantity, position.avg_price, position.stop_loss, position.take_profit) == (40.0, 25.0, 20.0, 40.0)
    assert portfolio.value() == before
    assert portfolio.orders["p"].quantity == 40.0
    assert (portfolio.orders["q"].quantity, portfolio.orders["q"].stop_loss) == (10.0, 8.0)


def test_marks_remember_the_peak_and_the_start_of_the_session() -> None:
    ledger = funded()
    for equity in (100_000.0, 110_000.0, 104_000.0):
        ledger.record("mark", T0, equity=equity, cash=equity, prices={})
    portfolio = ledger.portfolio
    assert (portfolio.peak_equity, portfolio.session_start_equity, portfolio.equity) == (110_000, 110_000, 104_000)
    assert [value for _, value in portfolio.equity_curve] == [100_000.0, 110_000.0, 104_000.0]


def test_a_resume_resets_the_peak_to_what_is_left() -> None:
    ledger = funded()
    ledger.record("mark", T0, equity=80_000.0, cash=80_000.0, prices={})
    ledger.record("halt", T0, reason="drawdown")
    assert ledger.portfolio.halted
    ledger.record("resume", T0, reason="deleted")
    assert not ledger.portfolio.halted
    assert ledger.portfolio.peak_equity == 80_000.0


def test_clamps_and_rejections_are_records_without_effect() -> None:
    ledger = funded()
    before = state_of(ledger.portfolio)
    ledger.record("clamp", T0, gate="position_size", before=0.3, after=0.1, reason="x")
    ledger.record("reject", T0, gate="halt", before=0.3, after=0.0, reason="x")
    after = state_of(ledger.portfolio)
    assert {k: v for k, v in after.items() if k != "counts"} == {k: v for k, v in before.items() if k != "counts"}
    assert ledger.portfolio.counts == {"cash": 1, "clamp": 1, "reject": 1}


def test_events_are_chained_and_pending_ones_are_handed_over_once() -> None:
    ledger = funded()
    fill(ledger, "buy", 1, 10.0)
    events, rows = ledger.take_pending()
    assert [event.prev_hash for event in events] == [GENESIS, events[0].hash]
    assert [row.symbol for row in rows] == ["AAA"]
    assert ledger.take_pending() == ([], [])
    assert len({event.event_id for event in events}) == 2


def test_an_unknown_kind_of_event_is_not_swallowed() -> None:
    event = PortfolioEvent.chained(uuid.uuid4(), "gift", T0, {}, GENESIS)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        Portfolio().apply(event)


# --- properties of whatever the broker does to a portfolio

PRICE = st.floats(1.0, 500.0)
SESSION = st.fixed_dictionaries(
    {
        symbol: st.none()
        | st.tuples(PRICE, st.floats(0.7, 1.3), st.floats(0.0, 0.3), st.floats(0.0, 0.3), st.integers(0, 10**6))
        for symbol in SYMBOLS
    }
)
INTENT = st.tuples(
    st.sampled_from(SYMBOLS),
    st.sampled_from(("buy", "sell")),
    st.integers(1, 3000),
    st.floats(0.5, 0.99),
    st.booleans(),
)
ACTION = st.none() | st.tuples(
    st.sampled_from(SYMBOLS), st.sampled_from(("split", "dividend")), st.sampled_from((0.5, 2.0, 7.0, 1.37))
)
DAYS = st.lists(st.tuples(SESSION, st.lists(INTENT, max_size=3), ACTION), min_size=1, max_size=6)
COSTS = st.builds(
    ExecutionSettings,
    initial_cash=st.floats(100, 1e5),
    commission_bps=st.floats(0, 30),
    half_spread_bps=st.floats(0, 30),
    slippage_bps=st.floats(0, 30),
    participation=st.floats(0.001, 1),
)


def bar_of(symbol: str, day: int, drawn: tuple[float, float, float, float, int]) -> Bar:
    opened, move, up, down, volume = drawn
    close = opened * move
    at = T0 + timedelta(days=day)
    high, low = max(opened, close) * (1 + up), min(opened, close) * (1 - down)
    return Bar(symbol, at.date(), at - timedelta(hours=6), at, at, opened, high, low, close, float(volume))


def simulate(days: Any, costs: ExecutionSettings, symbols: tuple[str, ...] = SYMBOLS) -> Ledger:
    """Work days of orders, bars and actions through a broker, symbols in the order given."""
    ledger = Ledger("run")
    broker = PaperBroker(ledger, costs, "run")
    broker.open_account(T0)
    for number, (drawn, intents, action) in enumerate(days):
        at = T0 + timedelta(days=number + 1)
        for place, (symbol, side, quantity, stop, targeted) in enumerate(intents):
            limits = (100 * stop, 100 / stop if targeted else None)
            broker.submit(Order(f"{number}-{place}", symbol, side, float(quantity), at, *limits))
        bars = {symbol: bar_of(symbol, number, drawn[symbol]) for symbol in symbols if drawn[symbol] is not None}
        actions = {}
        if action is not None and action[0] in bars:
            actions = {action[0]: [CorporateAction(action[0], at.date(), action[1], action[2], at)]}
        broker.process_session(bars, actions, at)
        broker.mark({symbol: bar.close for symbol, bar in bars.items()}, at)
    return ledger


def state_of(portfolio: Portfolio) -> dict[str, Any]:
    return {name: getattr(portfolio, name) for name in Portfolio.__dataclass_fields__}


def stored(events: list[PortfolioEvent]) -> list[PortfolioEvent]:
    """Return the events as a database would give them back: payloads through JSON text."""
    return [
        PortfolioEvent(e.event_id, e.kind, e.as_of, json.loads(canonical_json(e.payload)), e.prev_hash, e.hash)
        for e in events
    ]


@settings(max_examples=60)
@given(DAYS, COSTS)
def test_folding_the_stored_log_gives_the_same_portfolio_to_the_last_bit(days, costs) -> None:
    ledger = simulate(days, costs)
    events, _ = ledger.take_pending()
    again = Ledger("run", stored(events))
    assert state_of(again.portfolio) == state_of(ledger.portfolio)


@settings(max_examples=60)
@given(DAYS, COSTS, st.integers(1, 30))
def test_a_log_cut_anywhere_and_gone_on_with_gives_the_same_next_event(days, costs, cut) -> None:
    ledger = simulate(days, costs)
    events, _ = ledger.take_pending()
    at = min(cut, len(events) - 1)
    resumed = Ledger("run", events[:at])
    following = events[at]
    assert resumed.record(following.kind, following.as_of, **following.payload) == following


@settings(max_examples=60)
@given(DAYS, COSTS)
def test_no_position_is_ever_negative_and_no_share_is_bought_on_credit(days, costs) -> None:
    ledger = simulate(days, costs)
    events, _ = ledger.take_pending()
    portfolio = Portfolio()
    for event in events:
        portfolio.apply(event)
        assert portfolio.cash >= -1e-6
        assert all(position.quantity >= 0 for position in portfolio.positions.values())
        assert portfolio.costs_usd >= 0


@settings(max_examples=60)
@given(DAYS, COSTS)
def test_a_fill_moves_value_between_cash_and_shares_and_loses_its_costs_only(days, costs) -> None:
    ledger = simulate(days, costs)
    events, _ = ledger.take_pending()
    portfolio = Portfolio()
    for event in events:
        cash, held = portfolio.cash, portfolio.held(event.payload.get("symbol", ""))
        portfolio.apply(event)
        p = event.payload
        if event.kind != "fill":
            continue
        sign = 1 if p["side"] == "buy" else -1
        quoted = p["price"] - sign * (p["spread"] + p["slippage"]) / p["quantity"]
        change = portfolio.cash - cash + (portfolio.held(p["symbol"]) - held) * quoted
        assert change == pytest.approx(-(p["commission"] + p["spread"] + p["slippage"]), abs=1e-6, rel=1e-6)


@settings(max_examples=60)
@given(DAYS, COSTS)
def test_realised_and_unrealised_profit_and_dividends_are_the_change_of_equity(days, costs) -> None:
    ledger = simulate(days, costs)
    events, _ = ledger.take_pending()
    portfolio = ledger.portfolio
    realised = sum(position.realised_pnl for position in portfolio.positions.values())
    unrealised = sum(
        position.quantity * (portfolio.prices[position.symbol] - position.avg_price)
        for position in portfolio.positions.values()
        if position.quantity
    )
    dividends = sum(event.payload["amount"] for event in events if event.kind == "dividend")
    change = portfolio.equity - costs.initial_cash
    assert change == pytest.approx(realised + unrealised + dividends, abs=1e-4, rel=1e-9)
    assert portfolio.equity == pytest.approx(portfolio.value(), abs=1e-6)


@settings(max_examples=40)
@given(DAYS, COSTS, st.permutations(SYMBOLS))
def test_the_order_in_which_symbols_arrive_changes_nothing(days, costs, order) -> None:
    assert state_of(simulate(days, costs, tuple(order)).portfolio) == state_of(simulate(days, costs).portfolio)
