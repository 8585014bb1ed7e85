"""Length balancing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import ConfigError
from rlaif.feedback.lengths import GRID, balance, words

pairs = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=25)


def test_words():
    assert words(" a  b\nc ") == 3 and words(" ") == 0


def test_the_grid():
    assert len(GRID) == 50 and GRID[:2] == (0, 0.02) and GRID[-1] == 0.98


def test_pairs_with_a_much_longer_rejected_answer_go():
    """(rejected - chosen) / rejected: .5, .1, -.05. Imbalance of all: 10 / 50, without the first: 0 / 30."""
    keep, found = balance([10, 9, 21], [20, 10, 20], "rejected")
    assert keep.tolist() == [False, True, True]
    assert found.ratio == 0.48 and found.longer == "rejected"  # the largest ratio below .5
    assert found.before.imbalance == pytest.approx(0.2) and found.after.imbalance == 0
    assert (found.after.pairs, found.after.chosen, found.after.rejected) == (2, 15, 15)
    assert found.before.chosen_longer == pytest.approx(1 / 3) and found.after.chosen_longer == 0.5


def test_a_ratio_that_is_reached_is_not_exceeded():
    keep, found = balance([49, 97], [50, 100], "rejected")  # .02 and .03
    assert keep.tolist() == [True, False] and found.ratio == 0.02
    keep, found = balance([49, 1], [50, 1000], "rejected")
    assert keep.tolist() == [True, False] and found.ratio == 0.98  # the largest that drops .999


def test_longer_chosen_answers():
    chosen, rejected = [20, 10, 20], [10, 9, 21]
    keep, found = balance(chosen, rejected, "rejected")
    assert keep.all() and found.ratio is None
    keep, found = balance(chosen, rejected, "symmetric")
    assert keep.tolist() == [False, True, True] and found.longer == "chosen"


def test_off_and_nothing():
    keep, found = balance([1, 1], [9, 9], "off")
    assert keep.all() and found.before == found.after and found.longer == ""
    assert balance([], [], "symmetric")[1].after.pairs == 0
    with pytest.raises(ConfigError):
        balance([1], [1], "short")


@settings(deadline=None)
@given(pairs, st.sampled_from(["rejected", "symmetric"]))
def test_no_ratio_of_the_grid_does_better(found, mode):
    chosen, rejected = np.array([w for w, _ in found], float), np.array([r for _, r in found], float)
    keep, result = balance(chosen, rejected, mode)
    assert result.after.pairs == keep.sum() and (keep.any() or not found)
    assert result.after.imbalance <= result.before.imbalance
    longer, shorter = (chosen, rejected) if result.longer == "chosen" else (rejected, chosen)
    for ratio in GRID:
        kept = (longer - shorter) / longer <= ratio + 1e-12
        if kept.any():
            gap = abs(chosen[kept].mean() - rejected[kept].mean()) / rejected[kept].mean()
            assert gap >= result.after.imbalance - 1e-9
            if result.ratio is not None and ratio > result.ratio:
                assert gap > result.after.imbalance - 1e-12
