"""Pairs from scored answers, and the counts of all pairs that are dropped."""

import math
import random
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import ConfigError, ContractError
from rlaif.feedback.pair_report import pair_report
from rlaif.feedback.pairing import Candidate, PairOptions, build_pairs, win_scores
from rlaif.feedback.pairwise import OrderOdds, decide
from rlaif.io.rundir import dumps
from rlaif.records import Masked

ALL = PairOptions("all", margin=1.0, per_prompt=None, min_words=1, lengths="off")


def answers(*scored: tuple[str, float], prompt="p", video=None) -> list[Candidate]:
    """Return candidates of one prompt from (text, score)."""
    video = video or f"{prompt}.mp4"
    return [Candidate(prompt, index, video, "what ?", text, score) for index, (text, score) in enumerate(scored)]


def texts(pairing) -> list[tuple[str, str]]:
    """Return (chosen, rejected) of every pair."""
    return [(pair.chosen.answer, pair.rejected.answer) for pair in pairing.pairs]


def test_all_pairs_at_or_above_the_margin():
    pairing = build_pairs(answers(("a", -2), ("b", 0), ("c", -1), ("d", -1)), ALL, seed=0)
    assert texts(pairing) == [("b", "a"), ("b", "c"), ("b", "d"), ("c", "a"), ("d", "a")]
    assert [pair.margin for pair in pairing.pairs] == [2, 1, 1, 1, 1]
    assert pairing.considered == 6 and pairing.dropped == {"tied": 1}
    wide = build_pairs(answers(("a", -2), ("b", 0), ("c", -1), ("d", -1)), replace(ALL, margin=1.5), seed=0)
    assert texts(wide) == [("b", "a")] and wide.dropped == {"below the margin": 4, "tied": 1}


def test_a_margin_is_reached_despite_rounding():
    assert len(build_pairs(answers(("a", 0.3), ("b", 0.2)), replace(ALL, margin=0.1), 0).pairs) == 1


def test_equal_scores_never_pair():
    pairing = build_pairs(answers(("a", 1), ("b", 1)), replace(ALL, margin=0), 0)
    assert not pairing.pairs and pairing.dropped == {"tied": 1}


def test_best_worst_pairs_the_two_extremes_only():
    pairing = build_pairs(
        answers(("a", 0.1), ("b", 0.9), ("c", 0.5), ("d", -3)), replace(ALL, choose="best_worst", margin=0.5), 0
    )
    assert texts(pairing) == [("b", "d")] and pairing.dropped == {"not best and worst": 5}


def test_ties_for_the_best_are_broken_by_seed():
    winners = set()
    for number in range(40):
        pairing = build_pairs(
            answers(("a", 1), ("b", 1), ("c", 0), prompt=f"p{number}"), replace(ALL, choose="best_worst"), 0
        )
        winners |= {pair.chosen.answer for pair in pairing.pairs}
    assert winners == {"a", "b"}


def test_unusable_answers_are_counted_by_reason():
    rows = answers(("a b", 1), (" \n", 5), ("a", 3), ("a c", Masked("no verdict")), ("a d", float("nan")), ("a e", 0))
    pairing = build_pairs(rows, replace(ALL, min_words=2), 0)
    assert texts(pairing) == [("a b", "a e")] and pairing.candidates == 6 and pairing.considered == 1
    assert pairing.candidates_dropped == {
        "empty answer": 1, "masked score": 1, "score not finite": 1, "short answer": 1,
    }  # fmt: skip


def test_equal_answers_make_no_pair():
    pairing = build_pairs(answers(("A  cat", 1), ("a cat ", 0)), ALL, 0)
    assert not pairing.pairs and pairing.dropped == {"equal answers": 1}


def test_repeats_within_and_across_prompts_are_dropped():
    rows = [
        *answers(("a", 1), ("b", 0), ("A", 1), prompt="p", video="v"),
        *answers(("a", 1), ("b", 0), prompt="q", video="v"),
    ]
    pairing = build_pairs(rows, ALL, 0)
    assert [pair.key for pair in pairing.pairs] == [("p", 0, 1)] and pairing.dropped == {
        "duplicate": 2,
        "equal answers": 1,
    }
    other = [*rows[:3], *answers(("a", 1), ("b", 0), prompt="q", video="w")]
    assert [pair.key for pair in build_pairs(other, ALL, 0).pairs] == [("p", 0, 1), ("q", 0, 1)]


def test_pairs_that_contradict_each_other_are_dropped():
    pairing = build_pairs(answers(("a", 2), ("b", 1), ("a", 0), ("c", 4)), ALL, 0)
    assert texts(pairing) == [("c", "a"), ("c", "b")]
    assert pairing.dropped == {"contradicted": 2, "duplicate": 1, "equal answers": 1}


def test_the_limit_per_prompt_is_drawn_by_seed():
    scored = [(f"x{i}", i) for i in range(6)]
    rows = []
    for number in range(6):
        rows += answers(*scored, prompt=f"p{number}")
    some = [build_pairs(rows, replace(ALL, per_prompt=2), seed) for seed in (1, 1, 2)]
    assert texts(some[0]) == texts(some[1]) != texts(some[2])
    assert len(some[0].pairs) == 12 and some[0].dropped == {"over the limit per prompt": 6 * 13}
    drawn = defaultdict(list)
    for pair in some[0].pairs:
        drawn[pair.key[0]].append(pair.key[1:])
    assert len(set(map(tuple, drawn.values()))) > 1  # not the same for every prompt
    alone = build_pairs([row for row in rows if row.prompt_id == "p3"], replace(ALL, per_prompt=2), 1)
    assert [pair.key for pair in alone.pairs] == [pair.key for pair in some[0].pairs if pair.key[0] == "p3"]


def test_pairs_dropped_by_length_balance_are_counted():
    rows = [
        *answers(("a", 1), ("b " * 10, 0), prompt="p"),
        *answers(("a b", 1), ("c d", 0), prompt="q"),
    ]
    pairing = build_pairs(rows, replace(ALL, lengths="rejected"), 0)
    assert [pair.key[0] for pair in pairing.pairs] == ["q"] and pairing.dropped == {"length balance": 1}


words = st.text(alphabet="ab ", max_size=6)
scores = st.one_of(st.integers(-3, 0), st.floats(0, 1, width=16), st.just(Masked("x")), st.just(float("nan")))
rows_of_prompts = st.lists(
    st.builds(lambda p, i, t, s: (p, i, t, s), st.sampled_from("pqr"), st.integers(0, 5), words, scores),
    max_size=18,
    unique_by=lambda row: row[:2],
)
options = st.builds(
    PairOptions,
    choose=st.sampled_from(["best_worst", "all"]),
    margin=st.sampled_from([0, 0.25, 1.0]),
    per_prompt=st.sampled_from([None, 1, 3]),
    min_words=st.integers(0, 2),
    lengths=st.sampled_from(["off", "rejected", "symmetric"]),
)


@settings(deadline=None)
@given(rows_of_prompts, options, st.integers(0, 3), st.randoms())
def test_pairs_do_not_depend_on_the_order_and_every_drop_is_counted(rows, options, seed, shuffle: random.Random):
    video = {"p": "v", "q": "v", "r": "w"}
    candidates = [Candidate(p, i, video[p], "what ?", text, score) for p, i, text, score in rows]
    pairing = build_pairs(candidates, options, seed)
    shuffle.shuffle(candidates)
    again = build_pairs(candidates, options, seed)
    assert again == pairing and dumps(pair_report(again)) == dumps(pair_report(pairing))
    assert pairing.considered == len(pairing.pairs) + sum(pairing.dropped.values())
    usable = pairing.candidates - sum(pairing.candidates_dropped.values())
    assert pairing.candidates == len(rows) and usable >= 0
    assert all(pair.margin > 0 and pair.texts[0] != pair.texts[1] for pair in pairing.pairs)
    assert len({(pair.chosen.video, frozenset(pair.texts)) for pair in pairing.pairs}) == len(pairing.pairs)
    if options.per_prompt:
        assert len(pairing.pairs) <= options.per_prompt * pairing.prompts


def test_a_key_that_comes_twice_is_an_error():
    with pytest.raises(ContractError, match="sample 0 twice"):
        build_pairs([*answers(("a", 1), ("c", 2)), *answers(("b", 0))], ALL, 0)
    with pytest.raises(ContractError, match="one video and question"):
        build_pairs([*answers(("a", 1)), replace(answers(("a", 1), ("b", 0))[1], question="who ?")], ALL, 0)


@pytest.mark.parametrize(
    "wrong", [{"margin": -1}, {"margin": float("nan")}, {"per_prompt": 0}, {"min_words": -1}, {"choose": "some"}]
)
def test_invalid_pair_options_are_refused(wrong):
    with pytest.raises(ConfigError):
        replace(ALL, **wrong)


def test_the_report_of_pairs_and_of_none():
    rows = [*answers(("a", 3), ("b c", 1), ("d", 0)), *answers(("z", 1), prompt="q")]
    report = pair_report(build_pairs(rows, ALL, 0))
    assert (report["pairs"], report["prompts"], report["prompts_with_pairs"]) == (3, 2, 1)
    assert report["chosen_is_earlier"] == 1.0
    assert report["lengths"]["after"] == report["lengths"]["before"]
    assert report["lengths"]["before"]["chosen"] == pytest.approx(4 / 3) and report["lengths"]["ratio"] is None
    assert report["margin"]["mean"] == 2.0 and sum(report["margin"]["counts"]) == 3
    assert report["margin"]["edges"][0] == 1 and report["margin"]["edges"][-1] == 3
    empty = pair_report(build_pairs([], ALL, 0))
    assert empty["pairs"] == 0 and empty["chosen_is_earlier"] is None and empty["margin"]["counts"] == []
    dumps(empty)


def verdict(p: float):
    """Return a verdict with probability `p` for the first answer."""
    gap = math.log(p / (1 - p))
    return decide(OrderOdds(gap, 1.0), OrderOdds(-gap, 1.0))


def test_win_scores_are_mean_probabilities_of_winning():
    outcomes = {(0, 1): verdict(0.9), (2, 0): verdict(0.4), (1, 2): Masked("x"), (3, 1): Masked("x")}
    scores = win_scores([3, 1, 2, 0], outcomes)
    assert {index: scores[index] for index in (0, 1, 2)} == pytest.approx({0: (0.9 + 0.6) / 2, 1: 0.1, 2: 0.4})
    assert isinstance(scores[3], Masked)
