from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.sentiment import score_text, tokenise
from data_pipeline.sentiment_lexicon import INTENSIFIERS, NEGATORS, PHRASE_WEIGHTS, WORD_WEIGHTS


@pytest.mark.parametrize(
    "text",
    [
        "Apple beats estimates and raises guidance",
        "$ msft upgraded to outperform on strong growth",
        "stock hits an all-time high",
        "board approves $10 billion share repurchase",
    ],
)
def test_good_news_score_above_zero(text: str) -> None:
    assert score_text(text) > 0.3


@pytest.mark.parametrize(
    "text",
    [
        "shares plunge after profit warning",
        "$ gm recalls cars , faces lawsuit",
        "Company files for bankruptcy amid accounting fraud",
        "revenue fell short , misses estimates , cuts guidance",
    ],
)
def test_bad_news_score_below_zero(text: str) -> None:
    assert score_text(text) < -0.3


@pytest.mark.parametrize(
    "text", ["", "   ", "$ aapl URL", "the meeting is on tuesday", "🚀", "日本語", "$ up $ low $BEAT"]
)
def test_text_without_direction_scores_zero(text: str) -> None:
    assert score_text(text) == 0.0


@pytest.mark.parametrize(
    ("plain", "negated"),
    [
        ("a good quarter", "not a good quarter"),
        ("strong growth", "no strong growth"),
        ("i would buy it", "i wouldn't buy it"),
        ("buy it", "do n't buy it"),
        ("they beat estimates", "they didn\u2019t beat estimates"),
        ("a profit", "without a profit"),
    ],
)
def test_negation_turns_the_direction(plain: str, negated: str) -> None:
    assert score_text(plain) > 0 > score_text(negated)


def test_negated_bad_news_are_good_but_less_than_the_bad_are_bad() -> None:
    assert 0 < score_text("not a disaster") < -score_text("a disaster")


def test_negation_reaches_three_words_and_ends_with_the_sentence() -> None:
    assert score_text("not in any way good") == score_text("good")
    assert score_text("not in a good") < 0
    assert score_text("why not . good") == score_text("good")


def test_intensifiers_scale_the_next_word_up_and_down() -> None:
    assert score_text("very weak") < score_text("weak") < score_text("slightly weak") < 0


def test_phrases_win_over_their_words() -> None:
    assert score_text("record high") > score_text("high")
    assert score_text("profit warning") < score_text("warning") + score_text("profit")
    assert score_text("a long term view") == 0.0
    assert score_text("a long position") > 0


def test_tokenised_and_plain_text_score_alike() -> None:
    assert score_text("$ msft is not cheap , sell it .") == score_text("$MSFT is not cheap, sell it.")


def test_a_cashtag_is_never_a_word() -> None:
    assert tokenise("$ low falls, $BEAT.") == ["$ low", "falls", "$beat."]


@given(st.text(max_size=300))
def test_any_text_scores_within_bounds_and_always_the_same(text: str) -> None:
    score = score_text(text)
    assert -1 <= score <= 1
    score_text.cache_clear()
    assert score_text(text) == score


def test_the_lexicon_is_large_and_its_tables_agree_with_each_other() -> None:
    assert len(WORD_WEIGHTS) + len(PHRASE_WEIGHTS) >= 250
    assert all(-1 <= weight <= 1 for weight in [*WORD_WEIGHTS.values(), *PHRASE_WEIGHTS.values()])
    assert not NEGATORS & set(WORD_WEIGHTS)
    assert not set(INTENSIFIERS) & set(WORD_WEIGHTS)
    for phrase in PHRASE_WEIGHTS:
        assert tuple(tokenise(" ".join(phrase))) == phrase


def test_an_uncached_tweet_takes_microseconds_not_milliseconds() -> None:
    text = "rt AT_USER $ aapl beats estimates but shares fall on weak guidance , analysts not worried URL "
    started = time.perf_counter()
    for number in range(500):
        score_text(text + str(number))
    assert (time.perf_counter() - started) / 500 < 300e-6
