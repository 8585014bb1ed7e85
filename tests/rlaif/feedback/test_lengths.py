"""Length balancing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import ConfigError
from rlaif.feedback.lengths import GRID, balance, words

word_counts = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=25)


def test_words_are_counted_between_spaces():
    assert words(" a  b\nc ") == 3 and words(" ") == 0


def test_the_grid_has_50_ratios_below_1():
    assert len(GRID) == 50 and GRID[:2] == (0, 0.02) and GRID[-1] == 0.98


def test_pairs_with_a_much_longer_rejected_answer_are_dropped():
    """Compute (rejected - chosen) / rejected by hand: .5, .1, -.05. Imbalance of all: 10 / 50, without the first: 0 / 30."""
    keep, balanced = balance([10, 9, 21], [20, 10, 20], "rejected")
    assert keep.tolist() == [False, True, True]
    # .48 is the largest ratio of the grid below .5
    assert balanced.ratio == 0.48 and balanced.longer == "rejected"
    assert balanced.before.imbalance == pytest.approx(0.2) and balanced.after.imbalance == 0
    assert (balanced.after.pairs, balanced.after.chosen, balanced.after.rejected) == (2, 15, 15)
    assert balanced.before.chosen_longer == pytest.approx(1 / 3) and balanced.after.chosen_longer == 0.5


def test_a_pair_exactly_at_the_ratio_stays():
    keep, balanced = balance([49, 97], [50, 100], "rejected")  # .02 and .03
    assert keep.tolist() == [True, False] and balanced.ratio == 0.02
    keep, balanced = balance([49, 1], [50, 1000], "rejected")
    assert keep.tolist() == [True, False] and balanced.ratio == 0.98  # the largest that drops .999


def test_symmetric_mode_drops_pairs_with_longer_chosen_answers():
    chosen, rejected = [20, 10, 20], [10, 9, 21]
    keep, balanced = balance(chosen, rejected, "rejected")
    assert keep.all() and balanced.ratio is None
    keep, balanced = balance(chosen, rejected, "symmetric")
    assert keep.tolist() == [False, True, True] and balanced.longer == "chosen"


def test_off_mode_and_no_pairs_change_nothing():
    keep, balanced = balance([1, 1], [9, 9], "off")
    assert keep.all() and balanced.before == balanced.after and balanced.longer == ""
    assert balance([], [], "symmetric")[1].after.pairs == 0
    with pytest.raises(ConfigError):
        balance([1], [1], "short")


@settings(deadline=None)
@given(word_counts, st.sampled_from(["rejected", "symmetric"]))
def test_no_ratio_of_the_grid_does_better(pairs, mode):
    chosen, rejected = np.array(pairs, float).reshape(-1, 2).T
    keep, result = balance(chosen, rejected, mode)
    assert result.after.pairs == keep.sum() and (keep.any() or not pairs)
    assert result.after.imbalance <= result.before.imbalance
    longer, shorter = (chosen, rejected) if result.longer == "chosen" else (rejected, chosen)
    for ratio in GRID:
        stays = (longer - shorter) / longer <= ratio + 1e-12
        if stays.any():
            mean_rejected = rejected[stays].mean()
            gap = abs(chosen[stays].mean() - mean_rejected) / mean_rejected
            assert gap >= result.after.imbalance - 1e-9
            if result.ratio is not None and ratio > result.ratio:
                assert gap > result.after.imbalance - 1e-12
