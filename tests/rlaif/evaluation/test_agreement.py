"""Agreement with reference preferences."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.evaluation.agreement import ComparedPair, agreement_rates, named_groups, prompt_type_of
from rlaif.evaluation.intervals import wilson


def test_wilson_vectors():
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
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


def test_overall_and_by_group():
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
    found = agreement_rates(pairs)
    whole = found["overall"]
    assert whole["agreement"] == 2.5 / 4 and (whole["low"], whole["high"]) == wilson(2.5, 4)
    assert (whole["pairs"], whole["ties"], whole["no_verdict"], whole["no_reference"]) == (4, 1, 2, 2)
    assert list(found["dimension"]) == ["harmlessness", "helpfulness"]
    assert found["dimension"]["helpfulness"]["agreement"] == 0.5
    assert found["dimension"]["harmlessness"]["agreement"] == 1.0
    assert {name: rate["agreement"] for name, rate in found["prompt_type"].items()} == {"critical": 0, "neutral": 0.75}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"safety": {"prompt_type": "a"}, "provenance": {"prompt_type": "b"}, "prompt_type": "c", "kind": "d"}, "a"),
        ({"safety": {}, "provenance": {"prompt_type": "b"}, "prompt_type": "c", "kind": "d"}, "b"),
        ({"safety": "no fields", "provenance": None, "prompt_type": "c", "kind": "d"}, "c"),
        ({"prompt_type": "", "kind": "d"}, "d"),
        ({"kind": 3}, ""),
        ({}, ""),
    ],
)
def test_what_a_row_says_its_prompt_is(row, told):
    assert prompt_type_of(row) == told


def test_groups_are_named_for_a_reader():
    found = {"overall": 0, "dimension": {"x": 1, "y": 2}, "prompt_type": {"x": 3}}
    assert list(named_groups(found)) == [("dimension: x", 1), ("dimension: y", 2), ("prompt_type: x", 3)]


def test_nothing_to_compare():
    found = agreement_rates([ComparedPair(None, 1)])
    assert found["overall"]["agreement"] is None and found["overall"]["no_verdict"] == 1
    assert agreement_rates([])["dimension"] == {}


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([None, -1.5, 0.0, 2.0]), st.sampled_from([None, -1, 0, 1]), st.sampled_from("xy"))
    )
)
def test_every_pair_is_counted_once(rows):
    pairs = [ComparedPair(*row) for row in rows]
    found = agreement_rates(pairs)
    for rate in [found["overall"]]:
        assert rate["pairs"] + rate["no_verdict"] + rate["no_reference"] == len(rows)
    for name in ("pairs", "ties", "no_verdict", "no_reference"):
        assert sum(rate[name] for rate in found["dimension"].values()) == found["overall"][name]
    assert agreement_rates(pairs[::-1]) == found
    turned = agreement_rates([ComparedPair(p.judged and -p.judged, p.reference and -p.reference, p.dimension) for p in pairs])
    assert turned == found
