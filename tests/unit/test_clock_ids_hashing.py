"""Time never goes back, identities are made of what they name, equal content gives equal bytes."""

from __future__ import annotations

import json
import math
import threading
import uuid
from collections import namedtuple
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils import clock as clock_module
from utils import ids
from utils.clock import VirtualClock, WallClock, ensure_utc, isoformat
from utils.errors import nearest
from utils.hashing import canonical_json, content_hash, file_sha256, sha256_hex
from utils.ids import derived_id, derived_uuid, run_identity, uuid7

T0 = datetime(2014, 1, 2, 21, tzinfo=UTC)


def test_a_virtual_clock_stands_still_until_it_is_moved() -> None:
    clock = VirtualClock(T0)
    assert clock.now() == clock.now() == T0
    clock.advance_to(T0 + timedelta(days=1))
    assert clock.now() == T0 + timedelta(days=1)


def test_a_virtual_clock_may_be_moved_to_where_it_stands_but_never_back() -> None:
    clock = VirtualClock(T0)
    clock.advance_to(T0)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance_to(T0 - timedelta(microseconds=1))
    assert clock.now() == T0


@pytest.mark.parametrize("act", [lambda c, t: c.advance_to(t), lambda c, t: VirtualClock(t)])
def test_a_naive_time_is_refused(act) -> None:
    with pytest.raises(ValueError, match="time zone"):
        act(VirtualClock(T0), datetime(2015, 1, 1))


def test_the_wall_clock_is_in_utc_and_near_the_present() -> None:
    before = datetime.now(UTC)
    now = WallClock().now()
    assert now.tzinfo == UTC
    assert before <= now <= datetime.now(UTC)


def test_the_wall_clock_holds_while_the_system_is_set_back(monkeypatch) -> None:
    times = iter([T0, T0 + timedelta(hours=1), T0 - timedelta(hours=5), T0 + timedelta(hours=2)])

    class Fake(datetime):
        @classmethod
        def now(cls, tz=None):
            return next(times)

    monkeypatch.setattr(clock_module, "datetime", Fake)
    clock = WallClock()
    assert [clock.now() for _ in range(3)] == [T0 + timedelta(hours=1)] * 2 + [T0 + timedelta(hours=2)]


def test_instants_are_written_in_one_form_whatever_their_zone() -> None:
    eastern = T0.astimezone(timezone(timedelta(hours=-5)))
    assert isoformat(eastern) == isoformat(T0) == "2014-01-02T21:00:00Z"
    assert isoformat(T0 + timedelta(microseconds=5)) == "2014-01-02T21:00:00.000005Z"
    assert ensure_utc(eastern) == T0
    assert ensure_utc(eastern).utcoffset() == timedelta(0)


def test_uuid7_has_its_version_and_orders_by_time() -> None:
    made = [uuid7() for _ in range(200)]
    assert {value.version for value in made} == {7}
    assert {value.variant for value in made} == {uuid.RFC_4122}
    assert len(set(made)) == 200
    milliseconds = [value.int >> 80 for value in made]
    assert milliseconds == sorted(milliseconds)
    assert abs(milliseconds[-1] / 1000 - datetime.now(UTC).timestamp()) < 60


def test_uuid7_does_not_repeat_across_threads() -> None:
    made: list[uuid.UUID] = []
    threads = [threading.Thread(target=lambda: made.extend(uuid7() for _ in range(500))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 2000


def test_derived_ids_depend_on_the_run_and_on_every_part() -> None:
    base = derived_uuid("run", "decision", "AAPL")
    assert base == derived_uuid("run", "decision", "AAPL")
    assert base.version == 5
    others = {
        derived_uuid("other", "decision", "AAPL"),
        derived_uuid("run", "decision", "MSFT"),
        derived_uuid("run", "decisionAAPL"),
        derived_uuid("run", "decision", "AAPL", ""),
    }
    assert base not in others
    assert len(others) == 4


def test_a_run_identity_does_not_depend_on_the_order_of_its_keys() -> None:
    one = run_identity({"mode": "replay", "symbols": ["A", "B"]})
    assert one == run_identity({"symbols": ["A", "B"], "mode": "replay"})
    assert one != run_identity({"mode": "replay", "symbols": ["B", "A"]})
    assert len(one) == 32


def test_canonical_json_sorts_at_every_depth_and_keeps_unicode() -> None:
    assert canonical_json({"b": 1, "a": {"d": "é", "c": [2, 1]}}) == '{"a":{"c":[2,1],"d":"é"},"b":1}'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_has_no_json_form_is_refused(value) -> None:
    with pytest.raises(ValueError):
        canonical_json({"x": [value]})
    with pytest.raises(TypeError):
        canonical_json({"x": T0})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_canonical_json_says_the_same_after_a_round_trip(value) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


def test_hashes_of_text_bytes_values_and_files_agree(tmp_path) -> None:
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256_hex("abc") == sha256_hex(b"abc") == file_sha256(path) == known
    assert content_hash({"a": 1}) == sha256_hex('{"a":1}')


def test_the_nearest_word_is_named_only_when_it_is_near() -> None:
    assert nearest("metrics_prot", ["metrics_port", "db_host"]) == "; did you mean 'metrics_port'?"
    assert nearest("zzz", ["metrics_port"]) == ""


@given(st.text(), st.lists(st.one_of(st.text(), st.integers())))
def test_derived_identities_are_version_five_uuids_of_the_library(run_id: str, parts: list[object]) -> None:
    expected = uuid.uuid5(ids._NAMESPACE, "\x1f".join((run_id, *map(str, parts))))
    assert derived_uuid(run_id, *parts) == expected
    assert derived_id(run_id, *parts) == str(expected)


@given(
    st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.text(),
            st.integers(-(2**53), 2**53),
            st.floats(allow_nan=False, allow_infinity=False),
        ),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    )
)
def test_canonical_json_is_what_the_standard_library_reads_back(value: object) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_wherever_it_hides(value: float) -> None:
    for hidden in (value, [value], {"a": {"b": (1.0, [None, value])}}):
        with pytest.raises(ValueError, match="finite"):
            canonical_json(hidden)


def test_null_is_no_number_that_is_not_finite() -> None:
    assert canonical_json({"b": None, "a": [1.0, None]}) == '{"a":[1.0,null],"b":null}'


def test_the_bytes_of_numbers_are_these_and_no_others() -> None:
    numbers = [1e16, 1e-5, 1e-7, 5e-324, -0.0, 100.0, 0.1, 123456789.123, 2**63 - 1]
    assert canonical_json(numbers) == "[1e+16,0.00001,1e-7,5e-324,-0.0,100.0,0.1,123456789.123,9223372036854775807]"


def test_numpy_floats_and_named_tuples_count_as_what_they_are_derived_from() -> None:
    point = namedtuple("point", "x y")
    assert canonical_json({"v": np.float64(0.5), "p": point(1, 2)}) == '{"p":[1,2],"v":0.5}'
    with pytest.raises(ValueError, match="finite"):
        canonical_json({"v": np.float64("nan")})


@pytest.mark.parametrize("value", [{1: 2}, {"a": object()}, {"a": 2**70}, {"a": datetime.now(UTC)}, {"a": {1, 2}}])
def test_what_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


def test_the_hour_that_an_autumn_night_has_twice_is_told_apart() -> None:
    first = datetime(2012, 11, 4, 1, 30, tzinfo=ZoneInfo("America/New_York"))
    assert isoformat(first) == "2012-11-04T05:30:00Z"
    assert isoformat(first.replace(fold=1)) == "2012-11-04T06:30:00Z"
