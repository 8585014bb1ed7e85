"""Verdicts of a pairwise judge, and how much it follows the position of an answer."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.feedback.pairwise import OrderOdds, Verdict, decide, judge_pair, read_order
from rlaif.feedback.position import position_bias
from rlaif.records import Masked

odds = st.floats(-30, 30)


def tokens(p_a: float, p_b: float) -> list[tuple[str, float]]:
    return [("A", math.log(p_a)), ("B", math.log(p_b)), (" the", math.log(1e-4))]


def test_a_verdict_combines_both_orders():
    verdict = judge_pair(tokens(0.6, 0.2), tokens(0.1, 0.4))
    assert (verdict.winner, verdict.flipped) == (1, False)
    assert verdict.p == pytest.approx((0.75 + 0.8) / 2)
    assert [order.p_first for order in verdict.orders] == pytest.approx([0.75, 0.2])
    assert [order.mass for order in verdict.orders] == pytest.approx([0.8, 0.5])
    assert judge_pair(tokens(0.1, 0.4), tokens(0.6, 0.2)).winner == -1


@pytest.mark.parametrize(("policy", "p", "winner"), [("tie", 0.5, 0), ("average", 0.65, 1)])
def test_a_flipped_verdict_follows_the_policy(policy, p, winner):
    verdict = judge_pair(tokens(0.9, 0.1), tokens(0.6, 0.4), policy=policy)
    assert verdict.flipped and verdict.winner == winner and verdict.p == pytest.approx(p)


def test_an_order_that_prefers_nothing_flips_nothing():
    verdict = judge_pair(tokens(0.4, 0.4), tokens(0.2, 0.6))
    assert not verdict.flipped and verdict.winner == 1 and verdict.p == pytest.approx(0.625)


def test_variants_of_a_choice_are_summed():
    listed = [
        ("A", 0.2),
        (" A", 0.1),
        ("▁a", 0.05),
        ("Ġa", 0.05),
        ("b", 0.05),
        (" B ", 0.05),
        ("AB", 0.3),
        ("Answer", 0.2),
    ]
    order = read_order([(text, math.log(p)) for text, p in listed], ("A", "B"))
    assert order.p_first == pytest.approx(0.8) and order.mass == pytest.approx(0.5)


def test_choices_other_than_a_and_b_are_read():
    order = read_order([("1", math.log(0.3)), ("2", math.log(0.1)), ("A", math.log(0.5))], ("1", "2"))
    assert order.p_first == pytest.approx(0.75)


def test_an_unlisted_choice_counts_as_the_least_likely_listed_token():
    order = read_order([("A", math.log(0.8)), ("The", math.log(0.1)), ("x", math.log(0.05))], ("A", "B"))
    assert order.log_odds == pytest.approx(math.log(0.8 / 0.05)) and order.mass == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ([("the", -0.1), ("C", -3.0)], "none of 'A', 'B'"),
        ([], "none of 'A', 'B'"),
        ([("A", math.nan), ("B", -1.0)], "'A' is not finite"),
        ([("A", -1.0), ("B", math.inf)], "'B' is not finite"),
        ([("A", -1.0), ("B", None)], "'B' is not finite"),
        ([("A", -1.0), ("B", -math.inf)], "'B' is not finite"),
        ([("A", -1.0)], "one token listed"),
    ],
)
def test_an_unreadable_order_is_masked_with_its_reason(listed, reason):
    good = tokens(0.6, 0.2)
    for pair, place in (((listed, good), "a first"), ((good, listed), "b first")):
        outcome = judge_pair(*pair)
        assert isinstance(outcome, Masked) and reason in outcome.reason and outcome.reason.startswith(place)


def test_a_variant_with_probability_zero_has_no_effect():
    order = read_order([("A", math.log(0.6)), ("a", -math.inf), ("B", math.log(0.2))], ("A", "B"))
    assert order.p_first == pytest.approx(0.75)


@settings(deadline=None)
@given(odds, odds, st.sampled_from(["tie", "average"]))
def test_exchanging_the_answers_exchanges_the_verdict(first, second, policy):
    one = decide(OrderOdds(first, 1.0), OrderOdds(second, 1.0), policy)
    other = decide(OrderOdds(second, 1.0), OrderOdds(first, 1.0), policy)
    assert one.winner == -other.winner and one.p == pytest.approx(1 - other.p) and one.flipped == other.flipped
    assert 0 <= one.p <= 1 and (one.p > 0.5) - (one.p < 0.5) == one.winner


@settings(deadline=None)
@given(odds, st.floats(-1e3, 1e3))
def test_a_shift_of_all_logprobs_changes_nothing(gap, shift):
    listed = [("A", shift + gap), ("B", shift)]
    assert read_order(listed, ("A", "B")).log_odds == pytest.approx(gap, abs=1e-6)


def verdicts(*orders: tuple[float, float], policy="tie") -> list[Verdict]:
    return [decide(OrderOdds(a, 0.9), OrderOdds(b, 0.7), policy) for a, b in orders]


@pytest.mark.parametrize(("place", "lean"), [("first", 4.0), ("second", -4.0)])
@pytest.mark.parametrize("policy", ["tie", "average"])
def test_a_judge_that_always_names_the_same_place_is_detected(place, lean, policy):
    outcomes = verdicts(*[(lean, lean)] * 8, policy=policy)
    assert {(verdict.winner, verdict.p) for verdict in outcomes} == {(0, 0.5)}
    report = position_bias(outcomes)
    assert report["one_sided"] == place and f"names the {place} answer in 100%" in report["warning"]
    assert report["flip_rate"] == 1.0 and report["ties"] == 8
    assert report["first_share"] == (place == "first") and report["log_odds_first"] == pytest.approx(lean)


def test_statistics_of_a_judge_with_a_lean():
    """Two pairs are decided by 2 nats and one by 0.5; every order leans one nat to the first place."""
    report = position_bias(
        [*verdicts((3.0, -1.0), (-1.0, 3.0), (1.5, 0.5)), Masked("a first: x"), Masked("a first: x")]
    )
    assert report["verdicts"] == 3 and report["masked"] == {"a first: x": 2} and report["ties"] == 1
    assert report["flip_rate"] == pytest.approx(1 / 3) and report["flip_rate_debiased"] == 0
    assert report["first_share"] == pytest.approx(4 / 6) and report["log_odds_first"] == pytest.approx(1.0)
    p = [1 / (1 + math.exp(-x)) for x in (3, -1, -1, 3, 1.5, 0.5)]
    assert report["mean_p_first"] == pytest.approx(sum(p) / 6) and report["mean_mass"] == pytest.approx(0.8)
    assert report["one_sided"] == report["warning"] == ""


def test_the_lean_is_one_number_for_all_pairs():
    """Answers differ by 3 nats, with a lean of 1 and half a nat of noise: without the lean nothing flips."""
    report = position_bias(verdicts((4.5, -1.5), (3.5, -2.5), (0.9, 0.9)))
    assert report["log_odds_first"] == pytest.approx(5.8 / 6)
    assert report["flip_rate"] == report["flip_rate_debiased"] == pytest.approx(1 / 3)
    assert position_bias(verdicts((4.5, -1.5), (3.5, -2.5)))["flip_rate_debiased"] == 0


def test_few_verdicts_do_not_make_a_judge_one_sided():
    assert position_bias(verdicts((4.0, 4.0)))["one_sided"] == ""


def test_position_bias_without_verdicts_has_no_rates():
    report = position_bias([Masked("x")])
    assert report["verdicts"] == 0 and report["flip_rate"] is None and report["masked"] == {"x": 1}


def test_an_undecided_judge_is_at_one_half():
    report = position_bias(verdicts(*[(0.0, 0.0)] * 6))
    assert report["first_share"] == 0.5 and report["flip_rate"] == 0 and report["ties"] == 6
