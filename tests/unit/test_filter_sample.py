"""The planner's estimate of how many experiences pass a filter."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from data_pipeline.library.filter_sample import FilterSample
from data_pipeline.library.similarity import SearchFilter

START = datetime(2015, 1, 1, tzinfo=UTC)
END = START + timedelta(days=1_000)
ROWS = 4_000


def _rows() -> list[tuple[Any, ...]]:
    """Agent and regime hang together: news only ever in a crash."""
    rng = np.random.default_rng(5)
    rows = []
    for i in range(ROWS):
        agent = "news" if rng.random() < 0.1 else "technical"
        regime = "crash" if agent == "news" else ("neutral", "bull_market")[rng.integers(2)]
        matured = None if i % 10 == 0 else START + timedelta(days=float(rng.uniform(0, 1_000)))
        rows.append(
            ("run", agent, f"S{i % 50}", regime, "buy", None if matured is None else bool(i % 2), i / ROWS, matured)
        )
    return rows


@pytest.fixture(scope="module")
def sample() -> FilterSample:
    return FilterSample(1_000_000, _rows())


def _share(sample: FilterSample, **wanted: Any) -> float:
    return sample.estimate(SearchFilter(**{"run_ids": ("run",), "as_of": END, **wanted})) / sample.total


@pytest.mark.parametrize(
    ("wanted", "share"),
    [
        ({}, 0.9),
        ({"agent_type": "technical"}, 0.81),
        ({"symbol": "S7"}, 0.02),
        ({"agent_type": "news", "market_regime": "crash"}, 0.09),
        ({"agent_type": "technical", "market_regime": "crash"}, 0.0),
        ({"success": True}, 0.5),
        ({"min_reward": 0.75}, 0.225),
        ({"as_of": START + timedelta(days=500)}, 0.45),
        ({"agent_type": "nobody"}, 0.0),
        ({"run_ids": ("another",)}, 0.0),
        ({"run_ids": ("another", "run")}, 0.9),
    ],
)
def test_a_filter_is_estimated_with_what_hangs_together(
    sample: FilterSample, wanted: dict[str, Any], share: float
) -> None:
    assert _share(sample, **wanted) == pytest.approx(share, abs=0.015)


def test_an_empty_sample_lets_nothing_through() -> None:
    assert FilterSample(0, []).estimate(SearchFilter(("run",), END)) == 0
