"""Where answers are cut, against a search written out for padded rows."""

import random

from rlaif.config.schema import Terms
from rlaif.objectives.rewards import shaped_score
from rlaif.objectives.truncation import truncated_length

EOS, PAD = 1, 0


def padded_search(row, stops):
    """(what is left without padding, whether it ends by itself), looking for each token in turn as the seed system does."""
    end = None
    for token in [EOS, *stops]:
        for place, found in enumerate(row):
            if found == token:
                end = place
                break
    left = row if end is None else row[: end + 1]
    left = [token for token in left if token != PAD]
    return left, EOS in left


def test_the_same_as_the_search_over_padded_rows():
    rng, cuts, overruled = random.Random(0), 0, 0
    for _ in range(2000):
        ids = [rng.randrange(2, 12) for _ in range(rng.randrange(1, 12))]
        ended = rng.random() < 0.5
        ids += [EOS] if ended else []
        kept = truncated_length(ids, (10, 11))
        wanted, stopped = padded_search(ids + [PAD] * (14 - len(ids)), [10, 11])
        assert (ids if kept is None else ids[:kept]) == wanted
        assert (ended and kept is None) == stopped
        cuts += kept is not None
        overruled += 10 in ids and 11 in ids and ids.index(10) < ids.index(11)
    assert cuts > 500 and overruled > 50


def test_by_hand():
    assert truncated_length([5, 6, 10, 7, EOS], (10, 11)) == 3  # the end of sequence is lost
    assert truncated_length([5, 10, 10], (10,)) == 2  # the first one
    assert truncated_length([5, 10, 6, 11, 7], (10, 11)) == 4  # the one listed last, though another stands before it
    assert truncated_length([5, 10, 6, 11, 7], (11, 10)) == 2
    assert truncated_length([10], (10,)) == 1
    assert (
        truncated_length([5, 6, EOS], (10, 11)) is None
        and truncated_length([], (10,)) is None
        and truncated_length([5], ()) is None
    )


def test_a_cut_answer_counts_as_one_that_did_not_end():
    terms = Terms(no_eos=-8.0, length=-10.0)
    cut = shaped_score(2.0, {"model": 2.0}, "cut", 90, 896, terms)
    assert cut.parts["no_eos"] == -8.0 and abs(cut.value - (2.0 - 8.0 - 10.0 * 90 / 896)) < 1e-12
