"""Templates and token budgets."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.models.templates import fill, within_budget


def test_slots_are_filled_once_and_unknown_ones_stay():
    assert fill("{a} {b} {c}", a="{b}", b="{a}") == "{b} {a} {c}"


def test_only_what_decides_is_counted():
    counted = []
    kept, left_out = within_budget(["aa", "bbb", "c", "d"], lambda text: counted.append(text) or len(text), 4)
    assert (kept, left_out) == (["aa"], ["bbb", "c", "d"]) and counted == ["aa", "bbb"]


@settings(deadline=None)
@given(st.lists(st.text(max_size=6)), st.integers(0, 20))
def test_whole_captions_in_order_within_the_budget(captions, budget):
    kept, left_out = within_budget(captions, len, budget)
    assert kept + left_out == captions
    assert sum(map(len, kept)) <= budget
    assert not left_out or sum(map(len, kept)) + len(left_out[0]) > budget
