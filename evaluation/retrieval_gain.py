"""What retrieval of similar experiences is worth: who the neighbours are, and whether they foretell an outcome.

Pure functions over arrays, called by `retrieval_quality`. Walks forward in time: the neighbours of a decision are taken
from experiences whose outcome had matured before it, as the library's search takes them, and never from itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.library.matured_vectors import MaturedVectors
from evaluation.bootstrap import MIN_BLOCKS, Interval, lower_bound, mean_interval

MIN_HISTORY = 100
"""Matured experiences before the first decision that is looked at: among fewer, "nearest" means little."""

NEIGHBOURS = (5, 10, 20, 50, 100)
SMOOTHING = (10.0, 30.0, 100.0, 300.0, 1000.0)
"""What is chosen from: neighbours, and how many of them the base rate weighs as much as."""

PRIOR_WEIGHT = 20.0
"""Calls of an action that its trailing rate must have seen to count as much as the agent's rate over all actions."""

ERROR_RATE = 0.02
"""Probability that a gain is claimed of one run where there is none, over all its agents together."""

_LEVEL = 0.95
_DRAWS = 5_000
_CHUNK = 128
_SECONDS_A_DAY = 86_400
_SURE = 1e-6

Verdict = Literal["gain", "no gain", "loss", "too little data"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shared:
    """How often neighbours share something with the decision, and how often any earlier experience does."""

    neighbours: float | None
    chance: float | None


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Who the k nearest experiences are, over the reported decisions.

    Attributes
    ----------
    action, regime, symbol : Shared
    same_action_succeeded : Shared
        Share of successes among neighbours with the decision's action; chance is the trailing rate of the action.
    succeeded_where_right, succeeded_where_wrong : float or None
        The same share, for decisions that came true and for those that did not.
    """

    action: Shared
    regime: Shared
    symbol: Shared
    same_action_succeeded: Shared
    succeeded_where_right: float | None
    succeeded_where_wrong: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """A score of the base rate minus that of retrieval, above 0 where retrieval is better; bounds by day blocks.

    `low`, `high` hold the mean with 95 %; `claim_low` is the one-sided bound that a claim rests on.
    """

    base_rate: float
    retrieval: float
    mean: float
    low: float | None
    high: float | None
    claim_low: float | None


@dataclass(frozen=True, slots=True)
class AgentReport:
    """Retrieval for one agent. `neighbours`, `smoothing` were chosen on the decisions before `reported_from`."""

    agent_type: str
    experiences: int
    verdict: Verdict
    tuned_on: int = 0
    reported_on: int = 0
    sessions: int = 0
    block: int = 0
    reported_from: float | None = None
    neighbours: int | None = None
    smoothing: float | None = None
    neighbourhood: Neighbourhood | None = None
    brier: Difference | None = None
    log_loss: Difference | None = None


@dataclass(frozen=True, slots=True)
class Walk:
    """What was known at each of q decisions.

    Attributes
    ----------
    base : array of shape (q,)
        Probability of success by the trailing rates of agent and action.
    hits : array of shape (q, depth)
        Successes among the 1, 2, ... nearest experiences of the same action.
    found : array of shape (q,)
        How many such experiences there were, at most `depth`.
    nearest : array of shape (q, k)
        Places of the k nearest experiences of any action, -1 where there were fewer.
    """

    base: Floats
    hits: Floats
    found: Ints
    nearest: Ints


class History:
    """One agent's experiences in the order they matured, and what can be counted of them up to any of them."""

    def __init__(self, data: MaturedVectors) -> None:
        order = np.argsort(data.matured_at, kind="stable")
        self.data = data
        self.order = order
        self.vectors = data.vectors[order]
        self.success = data.success[order]
        self.codes = {
            name: np.unique(values, return_inverse=True)[1]
            for name, values in (
                ("action", data.recommendation),
                ("regime", data.market_regime),
                ("symbol", data.symbol),
                ("decision", data.decision_id),
            )
        }
        self.known = np.searchsorted(data.matured_at[order], data.as_of, side="left")  # matured strictly before
        self._wins = np.concatenate(([0], np.cumsum(self.success)))

    def counts(self, name: str, queries: Ints) -> Ints:
        """Return how many experiences known at each query share a label with it."""
        codes, known = self.codes[name], self.known
        matured = codes[self.order]
        result = np.zeros(len(queries), dtype=np.int64)
        for code in np.unique(codes[queries]):
            mine = codes[queries] == code
            result[mine] = np.searchsorted(np.flatnonzero(matured == code), known[queries[mine]], side="left")
        return result

    def base_rate(self, queries: Ints) -> Floats:
        """Return the trailing success rate of each query's action, drawn towards the agent's rate over all actions."""
        known = self.known[queries]
        overall = (self._wins[known] + 1) / (known + 2)
        codes = self.codes["action"]
        matured = codes[self.order]
        rates = np.zeros(len(queries))
        for code in np.unique(codes[queries]):
            mine = codes[queries] == code
            places = np.flatnonzero(matured == code)
            calls = np.searchsorted(places, known[mine], side="left")
            wins = np.concatenate(([0], np.cumsum(self.success[places])))[calls]
            rates[mine] = (wins + PRIOR_WEIGHT * overall[mine]) / (calls + PRIOR_WEIGHT)
        return rates


def walk(history: History, queries: Ints, k: int, depth: int = max(NEIGHBOURS)) -> Walk:
    """Look the neighbours of decisions up, as of each of them.

    Parameters
    ----------
    queries : array of shape (q,)
        Places of the decisions among the agent's experiences.
    k : int
        Neighbours of any action.
    depth : int
        Neighbours of the same action.
    """
    hits = np.zeros((len(queries), depth))
    found = np.zeros(len(queries), dtype=np.int64)
    nearest = np.full((len(queries), k), -1, dtype=np.int64)
    decision, action = history.codes["decision"], history.codes["action"]
    for start, chunk in _chunks(queries):
        width = int(history.known[chunk].max(initial=0))
        rows = slice(start, start + len(chunk))
        if width == 0:
            continue
        places = history.order[:width]
        likeness = history.data.vectors[chunk] @ history.vectors[:width].T
        hidden = np.arange(width) >= history.known[chunk][:, None]
        hidden |= (decision[places] == decision[chunk][:, None]) & (history.data.decision_id[chunk] != "")[:, None]
        likeness[hidden] = -np.inf
        top, there = _nearest(likeness, k)
        nearest[rows, : top.shape[1]] = np.where(there, places[top], -1)
        likeness[action[places] != action[chunk][:, None]] = -np.inf
        top, there = _nearest(likeness, depth)
        won = np.cumsum(history.success[:width][top] & there, axis=1)
        hits[rows, : won.shape[1]] = won
        hits[rows, won.shape[1] :] = won[:, -1:]
        found[rows] = there.sum(axis=1)
    return Walk(history.base_rate(queries), hits, found, nearest)


def probabilities(known: Walk, neighbours: int, smoothing: float) -> Floats:
    """Return the probability of success by the neighbours of the same action, drawn towards the base rate."""
    seen = np.minimum(known.found, neighbours)
    return np.asarray((known.hits[:, neighbours - 1] + smoothing * known.base) / (seen + smoothing))


def report_agent(
    agent_type: str, data: MaturedVectors, *, k: int, queries: int, block: int, agents: int, seed: int
) -> AgentReport:
    """Measure retrieval for one agent.

    Parameters
    ----------
    k : int
        Neighbours that the neighbourhood is described by.
    queries : int
        Most decisions looked at in each of the two periods; drawn from the seed where there are more.
    block : int
        Sessions a block of the bootstrap: longer than outcomes overlap.
    agents : int
        Agents of the run: the error rate is shared among them (Bonferroni).
    """
    history = History(data)
    eligible = np.flatnonzero(history.known >= MIN_HISTORY)
    days = np.unique(data.as_of[eligible] // _SECONDS_A_DAY)
    empty = AgentReport(agent_type, len(data.success), "too little data")
    if len(days) < 2:
        return empty
    split = float(days[len(days) // 2] * _SECONDS_A_DAY)
    rng = np.random.default_rng(seed)
    # a decision whose outcome falls into the reported period must not choose anything for it
    tuning = _sample(eligible[data.matured_at[eligible] < split], queries, rng)
    reported = _sample(eligible[data.as_of[eligible] >= split], queries, rng)
    if not len(tuning) or not len(reported):
        return empty
    neighbours, smoothing = _chosen(walk(history, tuning, 1), data.success[tuning])
    known = walk(history, reported, k)
    came_true = data.success[reported].astype(float)
    predicted = probabilities(known, neighbours, smoothing)
    session = data.as_of[reported] // _SECONDS_A_DAY
    claim_level = 1 - ERROR_RATE / agents
    brier, log_loss = (
        _difference(score(known.base, came_true), score(predicted, came_true), session, block, claim_level, seed)
        for score in (brier_scores, log_losses)
    )
    return AgentReport(
        agent_type,
        len(data.success),
        _verdict(brier, log_loss),
        len(tuning),
        len(reported),
        len(np.unique(session)),
        block,
        split,
        neighbours,
        smoothing,
        _neighbourhood(history, reported, known),
        brier,
        log_loss,
    )


def brier_scores(probability: Floats, came_true: Floats) -> Floats:
    """Return squared errors of probabilities (Brier 1950), 0 at best."""
    return np.asarray((probability - came_true) ** 2)


def log_losses(probability: Floats, came_true: Floats) -> Floats:
    """Return negative log-likelihoods in nats; probabilities are held off 0 and 1 by a millionth."""
    p = np.clip(probability, _SURE, 1 - _SURE)
    return np.asarray(-(came_true * np.log(p) + (1 - came_true) * np.log(1 - p)))


def _chosen(known: Walk, success: NDArray[np.bool_]) -> tuple[int, float]:
    """Return the neighbours and the smoothing with the best Brier score; among equals the fewest, then the least."""
    came_true = success.astype(float)
    scores = {
        (n, m): float(brier_scores(probabilities(known, n, m), came_true).mean()) for n in NEIGHBOURS for m in SMOOTHING
    }
    return min(scores, key=lambda pair: (scores[pair], pair))


def _difference(
    base: Floats, retrieval: Floats, session: Floats, block: int, claim_level: float, seed: int
) -> Difference:
    """Compare two scores a decision, averaged by session so that a busy day counts as one."""
    _, day = np.unique(session, return_inverse=True)
    size = np.bincount(day)
    series = np.bincount(day, base - retrieval) / size
    interval: Interval | None = None
    claim: Interval | None = None
    if len(series) >= MIN_BLOCKS * block:
        interval = mean_interval(series, block, _LEVEL, _DRAWS, seed)
        claim = lower_bound(series, block, claim_level, _DRAWS, seed)
    return Difference(
        float((np.bincount(day, base) / size).mean()),
        float((np.bincount(day, retrieval) / size).mean()),
        float(series.mean()),
        interval.low if interval else None,
        interval.high if interval else None,
        claim.low if claim else None,
    )


def _verdict(brier: Difference, log_loss: Difference) -> Verdict:
    """Return what both scores agree on."""
    bounds = [(d.claim_low, d.high) for d in (brier, log_loss)]
    if any(low is None or high is None for low, high in bounds):
        return "too little data"
    if all(low is not None and low > 0 for low, _ in bounds):
        return "gain"
    return "loss" if all(high is not None and high < 0 for _, high in bounds) else "no gain"


def _neighbourhood(history: History, queries: Ints, known: Walk) -> Neighbourhood:
    there = known.nearest >= 0
    total = int(there.sum())
    shared = {}
    for name in ("action", "regime", "symbol"):
        codes = history.codes[name]
        same = (codes[known.nearest] == codes[queries][:, None]) & there
        chance = history.counts(name, queries) / history.known[queries]
        shared[name] = Shared(float(same.sum() / total) if total else None, float(chance.mean()))
    codes, success = history.codes["action"], history.data.success
    like = (codes[known.nearest] == codes[queries][:, None]) & there
    won = like & success[known.nearest]
    right = success[queries]

    def share(rows: Any) -> float | None:
        number = int(like[rows].sum())
        return float(won[rows].sum() / number) if number else None

    weights = like.sum(axis=1)
    chance_of_success = float((weights * known.base).sum() / weights.sum()) if weights.sum() else None
    return Neighbourhood(
        shared["action"],
        shared["regime"],
        shared["symbol"],
        Shared(share(slice(None)), chance_of_success),
        share(right),
        share(~right),
    )


def _nearest(likeness: NDArray[np.float32], number: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Return the places of the highest values of each row, highest first, and which of them are finite."""
    number = min(number, likeness.shape[1])
    top = np.argpartition(-likeness, number - 1, axis=1)[:, :number]
    values = np.take_along_axis(likeness, top, axis=1)
    ranks = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(top, ranks, axis=1), np.isfinite(np.take_along_axis(values, ranks, axis=1))


def _chunks(queries: Ints) -> Iterator[tuple[int, Ints]]:
    for start in range(0, len(queries), _CHUNK):
        yield start, queries[start : start + _CHUNK]


def _sample(places: Ints, most: int, rng: np.random.Generator) -> Ints:
    return places if len(places) <= most else np.sort(rng.choice(places, most, replace=False))
