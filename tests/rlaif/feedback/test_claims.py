"""Answers are split into claims and scored by rejected claims."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.feedback.claims import (
    ClaimScore,
    ClaimVerdict,
    Evidence,
    claim_score,
    count_claims,
    judge_claim,
    parse_list,
    split_claims,
)
from rlaif.feedback.sentences import sentences
from rlaif.records import Masked

YES, NO = ClaimVerdict(0.9, 0.1, True), ClaimVerdict(0.1, 0.9, False)
WORDS = ("yes", "no")


@pytest.mark.parametrize(
    ("answer", "claims"),
    [
        ("A cat sits. It sleeps!  Is it red? No.", ["A cat sits.", "It sleeps!", "Is it red?", "No."]),
        ("two objects . a red circle moves left .", ["two objects .", "a red circle moves left ."]),
        ("Dr. Lee walks 3.5 m, e.g. slowly. J. Doe runs.", ["Dr. Lee walks 3.5 m, e.g. slowly.", "J. Doe runs."]),
        ("He eats at 5 p.m. Then he sleeps.", ["He eats at 5 p.m.", "Then he sleeps."]),
        ("He eats at 5 p.m. and sleeps etc. in bed.", ["He eats at 5 p.m. and sleeps etc. in bed."]),
        ("A U.S. Army man. It is no. 5.", ["A U.S. Army man.", "It is no. 5."]),
        ('He says "stop!" and goes. "Fine." He went.', ['He says "stop!" and goes.', '"Fine."', "He went."]),
        ("They wait... then leave. (A bird.) It sings.", ["They wait... then leave.", "(A bird.)", "It sings."]),
        (
            "I see:\n- a cat\n* a dog. It runs\n\n1. A ball\n2) A bat",
            ["I see:", "a cat", "a dog.", "It runs", "A ball", "A bat"],
        ),
        ("1. A red ball. 2. A blue one.", ["A red ball.", "A blue one."]),
        ("one sentence\non two lines. -5 degrees", ["one sentence on two lines.", "-5 degrees"]),
        ("猫がいる。犬もいる。", ["猫がいる。", "犬もいる。"]),
        (" ... \n - \n", []),
        ("", []),
    ],
)
def test_answers_are_split_into_sentences_and_list_items(answer, claims):
    assert split_claims(answer) == claims


@settings(deadline=None)
@given(st.text(alphabet="abAB éµ.!?,;:-*()\n\"'", max_size=80))
def test_every_word_is_in_a_sentence(text):
    assert re.findall(r"\w+", " ".join(sentences(text))) == re.findall(r"\w+", text)


def test_a_long_answer_is_never_cut():
    answer = " ".join(f"object {number} is here ." for number in range(400))
    assert len(split_claims(answer)) == 400


def test_repeats_are_one_claim_and_counted():
    assert count_claims(sentences("A cat. a  CAT! A dog. A cat.")) == {"A cat.": 3, "A dog.": 1}
    assert split_claims("A cat. a  CAT! A dog.") == ["A cat.", "A dog."]


def test_claims_are_parsed_from_a_models_list():
    reply = "Here are the facts:\n- A cat sits.\n -The cat is\n   not black\n• A dog\n3. It runs\n---\n-\nThat is all.\n  end"
    assert parse_list(reply) == ["A cat sits.", "The cat is not black", "A dog", "It runs"]
    assert parse_list("no list here") == []


def tokens(**probabilities) -> list[tuple[str, float]]:
    return [(text.replace("_", " "), math.log(p)) for text, p in probabilities.items()]


@pytest.mark.parametrize(
    ("listed", "accepted"),
    [
        ({"yes": 0.2, "Yes": 0.2, "_Yes": 0.1, "No": 0.4}, True),
        ({"yes": 0.2, "Yes": 0.15, "No": 0.2, "no": 0.1, "_no": 0.1}, False),
        ({"Yes": 0.3, "No": 0.3}, False),
        ({"Yes": 0.01, "The": 0.9}, True),
        ({"NO": 0.01, "The": 0.9}, False),
    ],
)
def test_a_claim_is_accepted_if_yes_is_likelier(listed, accepted):
    assert judge_claim(tokens(**listed), *WORDS).accepted is accepted


@pytest.mark.parametrize(("no", "accepted"), [(0.30, True), (0.69, True), (0.71, False), (1.0, False)])
def test_a_claim_is_rejected_from_the_configured_share_of_no_on(no, accepted):
    """The share is among yes and no alone; other tokens do not count."""
    listed = {"yes": (1 - no) / 2, "no": no / 2}
    possible = {word: p for word, p in listed.items() if p}
    assert judge_claim(tokens(**possible), *WORDS, 0.7).accepted is accepted


def test_a_verdict_holds_the_summed_probabilities():
    judged = judge_claim(tokens(yes=0.2, Yes=0.3, _no=0.1), *WORDS)
    assert (judged.p_yes, judged.p_no) == pytest.approx((0.5, 0.1))


def test_very_small_probabilities_still_compare():
    assert judge_claim([("yes", -900.0), ("no", -901.0)], *WORDS).accepted


def test_a_claim_that_cannot_be_judged_is_masked():
    assert "none of 'yes', 'no'" in judge_claim(tokens(The=0.9), *WORDS).reason
    assert "not finite" in judge_claim([("yes", math.nan), ("no", -1.0)], *WORDS).reason


def test_the_score_is_minus_the_rejected_claims():
    """Compute RLAIF-V's score, accepted - claims."""
    result = claim_score({"a": 1, "b": 2, "c": 1}, [YES, NO, NO])
    assert (result.score, result.empty) == (-2, False)
    assert result.evidence == (Evidence("a", 1, YES), Evidence("b", 2, NO), Evidence("c", 1, NO))
    assert claim_score({"a": 1}, [YES]).score == 0


def test_an_answer_without_claims_is_empty():
    result = claim_score({}, [])
    assert result.score == 0 and result.empty


@pytest.mark.parametrize(
    ("judgements", "reason"),
    [([YES], "2 claims, but 1 judgements"), ([YES] * 3, "2 claims, but 3"), ([YES, Masked("x")], "not judged: x")],
)
def test_a_score_that_cannot_be_computed_is_masked(judgements, reason):
    result = claim_score({"a": 1, "b": 1}, judgements)
    assert isinstance(result, Masked) and reason in result.reason


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=12))
def test_the_score_never_exceeds_zero_and_counts_rejections(accepted):
    claims = {str(number): 1 for number in range(len(accepted))}
    result = claim_score(claims, [YES if yes else NO for yes in accepted])
    assert isinstance(result, ClaimScore)
    assert result.score == sum(accepted) - len(accepted) <= 0
