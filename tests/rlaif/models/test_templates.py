"""Templates and token budgets."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.models.templates import fill, within_budget


def test_slots_are_filled_once_and_unknown_ones_stay():
    assert fill("{a} {b} {c}", a="{b}", b="{a}") == "{b} {a} {c}"


def test_captions_after_the_first_that_does_not_fit_are_not_counted():
    counted = []
    fitting, rest = within_budget(["aa", "bbb", "c", "d"], lambda text: counted.append(text) or len(text), 4)
    assert (fitting, rest) == (["aa"], ["bbb", "c", "d"]) and counted == ["aa", "bbb"]


@settings(deadline=None)
@given(st.lists(st.text(max_size=6)), st.integers(0, 20))
def test_whole_captions_in_order_within_the_budget(captions, budget):
    fitting, rest = within_budget(captions, len, budget)
    assert fitting + rest == captions
    assert sum(map(len, fitting)) <= budget
    assert not rest or sum(map(len, fitting)) + len(rest[0]) > budget
