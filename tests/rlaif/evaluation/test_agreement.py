"""Agreement with reference preferences."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.evaluation.agreement import ComparedPair, agreement_rates, named_groups, prompt_type_of
from rlaif.evaluation.intervals import wilson


def test_wilson_intervals_equal_published_ones():
    """Compare with Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(0, 0) == (None, None)
    with pytest.raises(ValueError):
        wilson(3, 2)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 60))
def test_an_interval_holds_its_rate_and_mirrors(successes, trials):
    successes = min(successes, trials)
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low))


def test_agreement_overall_and_by_group():
    pairs = [
        ComparedPair(0.3, 1, "helpfulness", "neutral"),
        ComparedPair(-2.0, 1, "helpfulness", "critical"),
        ComparedPair(0.0, -1, "helpfulness", "neutral"),
        ComparedPair(-0.1, -1, "harmlessness"),
        ComparedPair(None, 1, "harmlessness"),
        ComparedPair(float("nan"), 1, "harmlessness"),
        ComparedPair(1.0, None, "harmlessness"),
        ComparedPair(1.0, 0, "harmlessness"),
    ]
    rates = agreement_rates(pairs)
    whole = rates["overall"]
    assert whole["agreement"] == 2.5 / 4 and (whole["low"], whole["high"]) == wilson(2.5, 4)
    assert (whole["pairs"], whole["ties"], whole["no_verdict"], whole["no_reference"]) == (4, 1, 2, 2)
    assert list(rates["dimension"]) == ["harmlessness", "helpfulness"]
    assert rates["dimension"]["helpfulness"]["agreement"] == 0.5
    assert rates["dimension"]["harmlessness"]["agreement"] == 1.0
    assert {name: rate["agreement"] for name, rate in rates["prompt_type"].items()} == {"critical": 0, "neutral": 0.75}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"safety": {"prompt_type": "a"}, "provenance": {"prompt_type": "b"}, "prompt_type": "c", "kind": "d"}, "a"),
        ({"safety": {}, "provenance": {"prompt_type": "b"}, "prompt_type": "c", "kind": "d"}, "b"),
        ({"safety": "no fields", "provenance": None, "prompt_type": "c", "kind": "d"}, "c"),
        ({"prompt_type": "", "kind": "d"}, "d"),
        ({"kind": 3}, ""),
        ({}, ""),
    ],
)
def test_the_prompt_type_comes_from_the_first_field_that_names_one(row, expected):
    assert prompt_type_of(row) == expected


def test_groups_are_named_by_kind_and_name():
    rates = {"overall": 0, "dimension": {"x": 1, "y": 2}, "prompt_type": {"x": 3}}
    assert list(named_groups(rates)) == [("dimension: x", 1), ("dimension: y", 2), ("prompt_type: x", 3)]


def test_agreement_without_verdicts_is_none():
    rates = agreement_rates([ComparedPair(None, 1)])
    assert rates["overall"]["agreement"] is None and rates["overall"]["no_verdict"] == 1
    assert agreement_rates([])["dimension"] == {}


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([None, -1.5, 0.0, 2.0]), st.sampled_from([None, -1, 0, 1]), st.sampled_from("xy"))
    )
)
def test_every_pair_is_counted_once(rows):
    pairs = [ComparedPair(*row) for row in rows]
    rates = agreement_rates(pairs)
    overall = rates["overall"]
    assert overall["pairs"] + overall["no_verdict"] + overall["no_reference"] == len(rows)
    for name in ("pairs", "ties", "no_verdict", "no_reference"):
        assert sum(rate[name] for rate in rates["dimension"].values()) == overall[name]
    assert agreement_rates(pairs[::-1]) == rates
    mirrored = [ComparedPair(p.judged and -p.judged, p.reference and -p.reference, p.dimension) for p in pairs]
    assert agreement_rates(mirrored) == rates
