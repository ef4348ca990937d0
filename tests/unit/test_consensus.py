"""The panel: who is heard, who is left out, and what becomes of many grades."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from output_factory import news_output, technical_output

from judge.base import Judge, JudgeRequest, JudgeScore
from judge.calibration import fit_calibration
from judge.combining import Combined, Vote, combine
from judge.multi_judge_consensus import MultiJudgeConsensus
from judge.reliability import effective_votes, krippendorff_alpha
from utils.errors import ConfigError, JudgeError, LookAheadError


class FixedJudge:
    """Gives one score, or fails."""

    def __init__(self, judge_id: str, score: float = 80.0, confidence: float = 0.9, fault: str | None = None) -> None:
        self.judge_id = judge_id
        self.score, self.confidence, self.fault = score, confidence, fault
        self.threads: list[str] = []

    def grade(self, request: JudgeRequest) -> JudgeScore:
        self.threads.append(threading.current_thread().name)
        if self.fault:
            raise JudgeError(self.fault)
        criteria = dict.fromkeys(request.rubric.weights, self.score)
        return JudgeScore(self.judge_id, self.score, self.confidence, "fixed", criteria)


class HangingJudge(FixedJudge):
    """Waits until it is let go."""

    def __init__(self, judge_id: str) -> None:
        super().__init__(judge_id)
        self.release = threading.Event()

    def grade(self, request: JudgeRequest) -> JudgeScore:
        self.release.wait(20)
        return super().grade(request)


@pytest.fixture
def panels() -> Iterator[Any]:
    made: list[MultiJudgeConsensus] = []

    def make(*judges: Judge, configs: list[dict[str, Any]] | None = None, **options: Any) -> MultiJudgeConsensus:
        made.append(MultiJudgeConsensus(configs or [], judges=judges, **options))
        return made[-1]

    yield make
    for panel in made:
        panel.close()


def votes(*scores: float, confidence: float = 0.5) -> list[Vote]:
    return [Vote(score, confidence, 1.0) for score in scores]


def test_the_weighted_average_weighs_by_weight_and_confidence() -> None:
    combined = combine([Vote(80, 0.9, 1.0), Vote(70, 0.5, 0.8)], "weighted_average", 20)
    assert combined.score == pytest.approx((0.9 * 80 + 0.4 * 70) / 1.3)
    assert combined.confidence == pytest.approx((0.9 + 0.4) / 1.8)
    assert combined.agreement_level == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("method", "scores", "expected"),
    [
        ("median", (60, 62, 70), 62),
        ("min", (60, 62, 70), 60),
        ("max", (60, 62, 70), 70),
        ("majority_vote", (68, 72, 80), 76),
        ("majority_vote", (60, 66, 75), 63),
        ("majority_vote", (65, 66, 72, 76), 69),
    ],
)
def test_methods_follow_their_definitions(method: str, scores: tuple[float, ...], expected: float) -> None:
    assert combine(votes(*scores), method, 20).score == expected


@pytest.mark.parametrize("method", ["weighted_average", "majority_vote", "min", "max", "median"])
def test_disagreement_beyond_the_threshold_gives_the_median_and_less_confidence(method: str) -> None:
    assert combine(votes(30, 80, 90), method, 20) == Combined(
        80, pytest.approx(0.4), pytest.approx(0.4), True, "median"
    )


def test_a_range_of_exactly_the_threshold_is_no_disagreement() -> None:
    assert not combine(votes(60, 80), "min", 20).disagreement


def test_one_vote_has_no_agreement_level() -> None:
    assert combine(votes(77), "median", 20).agreement_level is None


def test_judges_without_any_confidence_leave_only_their_weights() -> None:
    combined = combine([Vote(60, 0, 3), Vote(70, 0, 1)], "weighted_average", 20)
    assert (combined.score, combined.confidence) == (62.5, 0)


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 1), st.floats(0.01, 10)).map(lambda t: Vote(*t)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["weighted_average", "majority_vote", "median", "min", "max"]),
)
def test_the_consensus_lies_between_its_votes(given_votes: list[Vote], method: str) -> None:
    combined = combine(given_votes, method, 20)
    scores = [vote.score for vote in given_votes]
    assert min(scores) <= combined.score <= max(scores)
    assert 0 <= combined.confidence <= 1


def test_alpha_is_one_for_agreement_and_near_zero_for_chance() -> None:
    rng = np.random.default_rng(7)
    same = np.repeat(rng.uniform(0, 100, 50)[:, None], 3, axis=1)
    assert krippendorff_alpha(same) == pytest.approx(1.0)
    assert krippendorff_alpha(rng.uniform(0, 100, (400, 3))) == pytest.approx(0.0, abs=0.1)


def test_alpha_matches_the_published_example_with_missing_grades() -> None:
    # Krippendorff (2011), example C: interval alpha .849
    nan = np.nan
    table = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
            [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
        ]
    ).T
    assert krippendorff_alpha(table) == pytest.approx(0.849, abs=5e-4)


def test_alpha_is_undefined_without_two_grades_or_variation() -> None:
    assert krippendorff_alpha(np.array([[50.0, np.nan], [np.nan, 60.0]])) is None
    assert krippendorff_alpha(np.full((5, 2), 50.0)) is None


def test_copies_of_a_judge_are_worth_one_vote_and_strangers_all() -> None:
    rng = np.random.default_rng(3)
    one = rng.uniform(0, 100, 200)
    assert effective_votes(np.column_stack((one, one, one))) == pytest.approx(1.0)
    assert effective_votes(rng.uniform(0, 100, (200, 3))) == pytest.approx(3.0, abs=0.5)
    assert effective_votes(np.column_stack((one, 100 - one))) == 2.0
    assert effective_votes(np.column_stack((one, one))[:5]) is None


def test_a_single_local_judge_is_its_own_quorum_and_runs_in_the_calling_thread(panels: Any) -> None:
    judge = FixedJudge("only", 66)
    result = panels(judge).evaluate("news", news_output(), "news_rubric")
    assert (result.status, result.final_score, result.agreement_level) == ("ok", 66, None)
    assert (result.alpha, result.effective_votes) == (None, 1.0)
    assert judge.threads == [threading.current_thread().name]


def test_a_configured_local_judge_grades_a_real_output(panels: Any) -> None:
    panel = panels(configs=[{"id": "local", "model": "local"}])
    good = panel.evaluate("technical", technical_output(), "technical")
    bad = panel.evaluate("technical", technical_output(trend="downtrend", reasoning="buy it now"), "technical")
    assert good.final_score > 90 > bad.final_score


def test_an_output_may_come_as_json(panels: Any) -> None:
    panel = panels(configs=[{"id": "local", "model": "local-v1"}])
    text = news_output().model_dump_json()
    assert panel.evaluate("news", text, "news") == panel.evaluate("news", news_output(), "news")


def test_a_judge_that_fails_is_left_out_with_its_reason_and_weights_follow_ids(panels: Any) -> None:
    panel = panels(
        FixedJudge("c", 90),
        FixedJudge("a", fault="refused: will not grade"),
        FixedJudge("b", 80),
        configs=[{"id": "a", "model": "local", "weight": 5}, {"id": "b", "model": "gpt-4", "weight": 3}],
    )
    result = panel.evaluate("news", news_output(), "news")
    assert result.excluded == ({"judge_id": "a", "reason": "refused: will not grade"},)
    assert [score.judge_id for score in result.individual_scores] == ["b", "c"]
    assert result.final_score == pytest.approx((3 * 80 + 90) / 4)


def test_below_quorum_there_is_no_score(panels: Any) -> None:
    result = panels(FixedJudge("a", 90), FixedJudge("b", fault="down")).evaluate("news", news_output(), "news")
    assert (result.status, result.final_score, result.confidence) == ("pending", None, 0)
    assert [score.score for score in result.individual_scores] == [90]


def test_a_judge_that_hangs_is_left_out_and_blocks_nobody_else(panels: Any) -> None:
    hanging = HangingJudge("slow")
    panel = panels(hanging, FixedJudge("a", 70), FixedJudge("b", 72), deadline_s=0.1)
    for _ in range(4):
        result = panel.evaluate("news", news_output(), "news")
        assert result.final_score == pytest.approx(71)
        assert result.excluded == ({"judge_id": "slow", "reason": "timeout: no grade within 0.1 s"},)
    hanging.release.set()


def test_a_grade_that_misses_dimensions_is_malformed(panels: Any) -> None:
    class Partial(FixedJudge):
        def grade(self, request: JudgeRequest) -> JudgeScore:
            return JudgeScore(self.judge_id, 100, 1, "", {"Sentiment Accuracy": 100})

    result = panels(Partial("p"), FixedJudge("a"), FixedJudge("b")).evaluate("news", news_output(), "news")
    assert result.excluded[0]["reason"].startswith("malformed")


def test_alpha_and_votes_look_back_on_earlier_items(panels: Any) -> None:
    first, second = FixedJudge("a"), FixedJudge("b")
    panel = panels(first, second, disagreement_threshold=100)
    rng = np.random.default_rng(1)
    for value in rng.uniform(20, 90, 30):
        first.score = second.score = value
        result = panel.evaluate("news", news_output(), "news")
    assert result.alpha == pytest.approx(1.0)
    assert result.effective_votes == pytest.approx(1.0)


def test_calibrated_falls_back_below_two_hundred_labels_and_says_so(panels: Any) -> None:
    assert fit_calibration([50.0] * 199, [True] * 199) is None
    panel = panels(FixedJudge("a", 80), FixedJudge("b", 70), consensus_method="calibrated")
    result = panel.evaluate("news", news_output(), "news")
    assert (result.final_score, result.resolution_applied) == (75, "weighted_average")


def test_calibration_gives_what_a_score_has_meant(panels: Any) -> None:
    rng = np.random.default_rng(5)
    scores = rng.uniform(0, 100, 4000)
    curve = fit_calibration(scores.tolist(), (rng.uniform(size=4000) < 0.2 + 0.004 * scores).tolist())
    assert curve is not None
    assert list(curve.rates) == sorted(curve.rates)
    assert [curve.calibrated(s) for s in (25, 50, 75)] == pytest.approx([30, 40, 50], abs=6)
    panel = panels(FixedJudge("a", 75), consensus_method="calibrated", calibrations={"a": curve})
    assert panel.evaluate("news", news_output(), "news").final_score == pytest.approx(curve.calibrated(75))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id": "claude", "model": "claude-sonnet-5-5"}, "cannot judge in this version; use model 'local'"),
        ({"id": "x", "model": "llama"}, "names no known provider"),
        ({"id": "x", "model": "m", "provider": "antropic"}, "did you mean 'anthropic'"),
        ({"id": "x", "model": "local", "wieght": 2}, "unknown key 'wieght'; did you mean 'weight'"),
        ({"id": "x", "model": "local", "weight": 0}, "must be a positive number"),
        ({"model": "local"}, "no id"),
    ],
)
def test_an_impossible_judge_is_a_configuration_error_of_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        MultiJudgeConsensus([config])
    assert "\n" not in str(caught.value)


def test_an_empty_panel_a_doubled_id_and_an_impossible_quorum_are_configuration_errors() -> None:
    local = {"id": "local", "model": "local"}
    with pytest.raises(ConfigError, match="empty"):
        MultiJudgeConsensus([])
    with pytest.raises(ConfigError, match="twice"):
        MultiJudgeConsensus([local, local])
    with pytest.raises(ConfigError, match="3 grades cannot come from 2 judges"):
        MultiJudgeConsensus([local], judges=[FixedJudge("b")], quorum=3)


def test_an_unknown_method_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="none of"):
        MultiJudgeConsensus([{"id": "local", "model": "local"}], "mode")


def test_what_no_judge_could_ever_grade_is_an_error_and_not_pending(panels: Any) -> None:
    panel = panels(FixedJudge("a"))
    with pytest.raises(JudgeError, match="abstained"):
        panel.evaluate("news", news_output(abstained=True), "news")
    with pytest.raises(JudgeError, match="invalid"):
        panel.evaluate("news", {"symbol": "AAPL"}, "news")
    with pytest.raises(JudgeError, match="not a news agent's"):
        panel.evaluate("news", technical_output(), "news")


def test_a_rubric_of_another_agent_is_refused(panels: Any) -> None:
    with pytest.raises(ConfigError, match="name news_rubric"):
        panels(FixedJudge("a")).evaluate("news", news_output(), "technical")


def test_the_outcome_cannot_be_told_to_the_panel(panels: Any) -> None:
    with pytest.raises(LookAheadError):
        panels(FixedJudge("a")).evaluate("news", news_output(), "news", {"actual_return": 0.1})


def test_a_closed_panel_refuses_and_leaves_no_thread(panels: Any) -> None:
    panel = panels(FixedJudge("closing-a"), FixedJudge("closing-b"))
    panel.evaluate("news", news_output(), "news")
    mine = [thread for thread in threading.enumerate() if thread.name.startswith("judge-closing")]
    panel.close()
    panel.close()
    for thread in mine:
        thread.join(5)
    assert [thread.name for thread in mine if thread.is_alive()] == []
    with pytest.raises(JudgeError, match="closed"):
        panel.evaluate("news", news_output(), "news")
