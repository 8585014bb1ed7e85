"""Length of truncated answers, compared with a search over padded rows."""

import random

from rlaif.config.schema import Terms
from rlaif.objectives.rewards import shaped_score
from rlaif.objectives.truncation import truncated_length

EOS, PAD = 1, 0


def padded_search(row, stops):
    """Return the row without padding and whether it ends by itself, searching for each token in turn as VLM-RLAIF does."""
    end = None
    for token in [EOS, *stops]:
        for place, item in enumerate(row):
            if item == token:
                end = place
                break
    rest = row if end is None else row[: end + 1]
    rest = [token for token in rest if token != PAD]
    return rest, EOS in rest


def test_truncated_length_matches_a_search_over_padded_rows():
    rng, cuts, overruled = random.Random(0), 0, 0
    for _ in range(2000):
        ids = [rng.randrange(2, 12) for _ in range(rng.randrange(1, 12))]
        ended = rng.random() < 0.5
        ids += [EOS] if ended else []
        length = truncated_length(ids, (10, 11))
        expected, stopped = padded_search(ids + [PAD] * (14 - len(ids)), [10, 11])
        assert (ids if length is None else ids[:length]) == expected
        assert (ended and length is None) == stopped
        cuts += length is not None
        overruled += 10 in ids and 11 in ids and ids.index(10) < ids.index(11)
    assert cuts > 500 and overruled > 50


def test_truncated_length_by_hand():
    assert truncated_length([5, 6, 10, 7, EOS], (10, 11)) == 3  # the end of sequence is lost
    assert truncated_length([5, 10, 10], (10,)) == 2  # the first one
    assert truncated_length([5, 10, 6, 11, 7], (10, 11)) == 4  # the one listed last, though another stands before it
    assert truncated_length([5, 10, 6, 11, 7], (11, 10)) == 2
    assert truncated_length([10], (10,)) == 1
    assert truncated_length([5, 6, EOS], (10, 11)) is None
    assert truncated_length([], (10,)) is None
    assert truncated_length([5], ()) is None


def test_cut_answer_gets_the_no_eos_term():
    terms = Terms(no_eos=-8.0, length=-10.0)
    cut = shaped_score(2.0, {"model": 2.0}, "cut", 90, 896, terms)
    assert cut.parts["no_eos"] == -8.0 and abs(cut.value - (2.0 - 8.0 - 10.0 * 90 / 896)) < 1e-12
