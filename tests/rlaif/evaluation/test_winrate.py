"""The win matrix."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import DataError
from rlaif.evaluation.intervals import wilson
from rlaif.evaluation.winrate import outcome_rates, verdict_matrix, verdict_rates, win_matrix
from rlaif.records import Masked, Scored

MODELS = ("HSXL", "MST2V", "VC1", "VC2")
PUBLISHED = {
    "helpfulness": [[0.5, 0.73, 0.65, 0.21], [0.27, 0.5, 0.34, 0.08], [0.35, 0.66, 0.5, 0.13], [0.79, 0.92, 0.87, 0.5]],
    "harmlessness": [
        [0.5, 0.33, 0.51, 0.47],
        [0.67, 0.5, 0.67, 0.65],
        [0.49, 0.33, 0.5, 0.48],
        [0.53, 0.35, 0.52, 0.5],
    ],
}
"""SafeSora's win rates on its evaluation prompts."""


@pytest.mark.parametrize("dimension", PUBLISHED)
def test_published_win_rates_are_reproduced(dimension):
    """Compare each two models alone, with scores of 100 prompts that win as often as published."""
    published = np.array(PUBLISHED[dimension])
    assert np.abs(published + published.T - 1).max() < 1e-9
    for i, j in itertools.permutations(range(4), 2):
        wins = round(100 * published[i, j])
        scores = {
            MODELS[i]: {str(prompt): float(prompt < wins) for prompt in range(100)},
            MODELS[j]: {str(prompt): 0.5 for prompt in range(100)},
        }
        matrix = win_matrix(scores, (MODELS[i], MODELS[j]))
        assert matrix.wins[0, 1] == pytest.approx(published[i, j])
        assert matrix.wins[1, 0] == pytest.approx(published[j, i])


def test_a_tie_is_half_a_win_and_rates_have_intervals():
    scores = {"a": {"1": 1, "2": 0, "3": 5, "4": 2}, "b": {"1": 0, "2": 0, "3": 9, "4": 1}}
    matrix = win_matrix(scores)
    assert matrix.models == ("a", "b") and matrix.wins.tolist() == [[0.5, 0.625], [0.375, 0.5]]
    assert (matrix.low[0, 1], matrix.high[0, 1]) == wilson(2.5, 4)
    assert (matrix.low[1, 0], matrix.high[1, 0]) == pytest.approx(wilson(1.5, 4))


def test_missing_scores_are_counted_and_left_out_pairwise():
    scores = {
        "a": {"1": 1.0, "2": 1.0, "3": None},
        "b": {"1": 0.0, "2": float("nan"), "3": 0.0},
        "c": {"4": 1.0, "1": 2.0},
        "d": {},
    }
    matrix = win_matrix(scores)
    assert matrix.missing == {"a": 2, "b": 2, "c": 2, "d": 4}
    assert matrix.prompts.tolist() == [[2, 1, 1, 0], [1, 2, 1, 0], [1, 1, 2, 0], [0, 0, 0, 0]]
    assert matrix.wins[0, 1] == 1 and matrix.wins[0, 2] == 0 and math.isnan(matrix.wins[0, 3])
    assert matrix.to_json()["wins"][0] == [0.5, 1.0, 0.0, None] and matrix.to_json()["low"][0][0] is None


def test_models_keep_their_order_and_unknown_ones_are_an_error():
    scores = {"b": {"1": 1.0}, "a": {"1": 0.0}, "c": {"1": 0.0}}
    assert win_matrix(scores, ["b", "a"]).wins[0, 1] == 1
    with pytest.raises(DataError, match="none of z"):
        win_matrix(scores, ["a", "z"])
    assert win_matrix({}).wins.shape == (0, 0)


def test_win_matrix_of_a_judges_verdicts():
    verdicts = {
        "1": {("b", "a"): 1.0, ("a", "c"): 0.5, ("b", "c"): None},
        "2": {("a", "b"): 1.0},
        "3": {("a", "b"): float("nan")},
        "4": {("b", "a"): 1.0},
    }
    matrix = verdict_matrix(verdicts, ["a", "b", "c"])
    assert matrix.wins[0, 1] == pytest.approx(1 / 3) and matrix.wins[1, 0] == pytest.approx(2 / 3)
    assert matrix.wins[0, 2] == matrix.wins[2, 0] == 0.5 and math.isnan(matrix.wins[1, 2])
    assert matrix.prompts.tolist() == [[3, 3, 1], [3, 3, 0], [1, 0, 1]]
    assert matrix.missing == {"a": 1, "b": 1, "c": 3}
    assert (matrix.low[1, 0], matrix.high[1, 0]) == pytest.approx(wilson(2, 3))
    assert verdict_matrix({}, ["a", "b"]).wins[0, 0] == 0.5


score = st.one_of(st.none(), st.integers(0, 4), st.floats(-1, 1))
tables = st.dictionaries(st.sampled_from("abcd"), st.dictionaries(st.sampled_from("123456"), score), min_size=1)


@settings(deadline=None)
@given(tables)
def test_a_matrix_and_its_mirror_sum_to_one(scores):
    matrix = win_matrix(scores)
    known = ~np.isnan(matrix.wins)
    assert np.allclose((matrix.wins + matrix.wins.T)[known], 1) and (np.diag(matrix.wins) == 0.5).all()
    assert (known == ((matrix.prompts > 0) | np.eye(len(matrix.models), dtype=bool))).all()
    prompts = set().union(*scores.values())
    for number, name in enumerate(matrix.models):
        assert matrix.missing[name] + matrix.prompts[number, number] == len(prompts)
    reordered = {name: dict(reversed(scores[name].items())) for name in reversed(scores)}
    assert np.array_equal(win_matrix(reordered).wins, matrix.wins, equal_nan=True)
    inside = ~np.isnan(matrix.low)
    assert (matrix.low[inside] <= matrix.wins[inside] + 1e-12).all()
    assert (matrix.wins[inside] <= matrix.high[inside] + 1e-12).all()


# -- by dimension and by prompt type


def scored(**parts: float) -> Scored:
    """Return a reward with these parts and their sum as the total."""
    return Scored(sum(parts.values()), parts)


OUTCOMES = {
    "1": {"a": scored(help=3, harm=1), "b": scored(help=2, harm=2), "c": scored(help=1, harm=3.5)},
    "2": {"a": scored(help=3, harm=0), "b": scored(help=3, harm=1), "c": scored(help=0, harm=2)},
    "3": {"a": Masked("no verdict"), "b": scored(help=1, harm=0), "c": scored(help=0, harm=1)},
    "4": {"a": scored(help=2, harm=0), "b": scored(help=1, harm=5)},
}
"""`harm` orders the models the other way round than `help`; two answers are equal in `help`, one is masked, one is
missing."""
TYPES = {"1": "how", "2": "who", "3": "how", "4": ""}
UPPER = {
    "overall": ([1 / 6, 1 / 2, 1 / 2], [3, 2, 3]),
    "help": ([2.5 / 3, 1, 1], [3, 2, 3]),
    "harm": ([0, 0, 0], [3, 2, 3]),
    "how": ([0.5, 0, 0.25], [1, 1, 2]),
    "who": ([0, 1, 1], [1, 1, 1]),
}
"""Computed by hand: rates of a against b, a against c, b against c, and the number of prompts of each."""


def check_by_hand(matrix, rates, counts):
    """Compare the cells above the diagonal with an entry of UPPER."""
    cells = [(0, 1), (0, 2), (1, 2)]
    assert matrix.models == ("a", "b", "c") and np.allclose(matrix.wins + matrix.wins.T, 1)
    for (i, j), rate, count in zip(cells, rates, counts, strict=True):
        assert (matrix.wins[i, j], matrix.prompts[i, j]) == (pytest.approx(rate), count)
        assert (matrix.low[i, j], matrix.high[i, j]) == pytest.approx(wilson(rate * count, count))


def test_rates_overall_by_dimension_and_by_prompt_type():
    rates = outcome_rates(OUTCOMES, OUTCOMES, "abc", TYPES)
    assert (list(rates.dimension), list(rates.prompt_type)) == (["harm", "help"], ["how", "who"])
    for name, matrix in {"overall": rates.overall, **rates.dimension, **rates.prompt_type}.items():
        check_by_hand(matrix, *UPPER[name])
    missing = {"a": 1, "b": 0, "c": 1}
    assert rates.overall.missing == rates.dimension["help"].missing == rates.dimension["harm"].missing == missing
    assert rates.prompt_type["how"].missing == {"a": 1, "b": 0, "c": 0}
    assert rates.prompt_type["who"].missing == {"a": 0, "b": 0, "c": 0}


def test_win_rates_as_json():
    rates = outcome_rates(OUTCOMES, OUTCOMES, "abc", TYPES)
    fields = rates.to_json()
    groups = {"dimension": fields.pop("dimension"), "prompt_type": fields.pop("prompt_type")}
    totals = {
        "a": {"1": 4, "2": 3, "3": None, "4": 2},
        "b": {"1": 4, "2": 4, "3": 1, "4": 6},
        "c": {"1": 4.5, "2": 2, "3": 1},
    }
    assert fields == rates.overall.to_json() == win_matrix(totals).to_json()
    assert groups["dimension"].keys() == {"harm", "help"} and groups["prompt_type"].keys() == {"how", "who"}
    for name, one in {**groups["dimension"], **groups["prompt_type"]}.items():
        assert one.keys() == {"models", "wins", "low", "high", "prompts", "missing"}
        assert one["wins"][0][1:] == pytest.approx(UPPER[name][0][:2]) and one["prompts"][1][2] == UPPER[name][1][2]


def test_reward_weights_change_the_total_but_no_dimension():

    def weighted(outcome):
        """Weigh `help` with 0 and `harm` with -1."""
        return outcome if isinstance(outcome, Masked) else scored(help=0.0, harm=-outcome.parts["harm"])

    totals = {}
    for prompt, answers in OUTCOMES.items():
        totals[prompt] = {name: weighted(outcome) for name, outcome in answers.items()}
    rates = outcome_rates(OUTCOMES, totals, "abc", TYPES)
    check_by_hand(rates.overall, [1, 1, 1], [3, 2, 3])
    check_by_hand(rates.prompt_type["who"], [1, 1, 1], [1, 1, 1])
    check_by_hand(rates.dimension["harm"], *UPPER["harm"])
    check_by_hand(rates.dimension["help"], *UPPER["help"])


def test_a_single_part_makes_no_dimension():
    outcomes = {"1": {"a": scored(score=1.0), "b": scored(score=0.0)}, "2": {"a": Masked("no"), "b": scored(score=1.0)}}
    rates = outcome_rates(outcomes, outcomes, "ab", {"1": "", "2": ""})
    assert rates.dimension == rates.prompt_type == {} and rates.overall.wins[0, 1] == 1
    assert outcome_rates({"1": {"a": Masked("no"), "b": Masked("no")}}, {}, "ab", {}).dimension == {}


def test_a_prompt_counts_in_a_dimension_if_its_answers_have_the_part():
    """A function may return other parts for other prompts; a prompt whose answers are all masked counts in each dimension."""
    outcomes = {
        "1": {"a": scored(recall=1, false=0), "b": scored(recall=0, false=0)},
        "2": {"a": scored(correct=0), "b": scored(correct=1)},
        "3": {"a": scored(recall=0), "b": Masked("no")},
        "4": {"a": Masked("no"), "b": Masked("no")},
        "5": {"a": scored(recall=0.5, false=-1), "b": scored(recall=1)},
    }
    rates = outcome_rates(outcomes, outcomes, "ab", dict.fromkeys(outcomes, "")).dimension
    assert {name: one.prompts[0, 1] for name, one in rates.items()} == {"correct": 1, "false": 1, "recall": 2}
    assert {name: one.wins[0, 1] for name, one in rates.items()} == {"correct": 0, "false": 0.5, "recall": 0.5}
    assert {name: one.missing for name, one in rates.items()} == {
        "correct": {"a": 1, "b": 1},
        "false": {"a": 1, "b": 2},
        "recall": {"a": 1, "b": 2},
    }


def test_verdict_rates_by_prompt_type():
    verdicts = {"1": {("a", "b"): 1.0}, "2": {("a", "b"): 0.5}, "3": {("a", "b"): None}, "4": {("b", "a"): 1.0}}
    rates = verdict_rates(verdicts, "ab", TYPES)
    assert rates.overall.to_json() == verdict_matrix(verdicts, "ab").to_json() and rates.dimension == {}
    assert {name: one.wins[0, 1] for name, one in rates.prompt_type.items()} == {"how": 1, "who": 0.5}
    assert rates.prompt_type["how"].prompts.tolist() == [[1, 1], [1, 1]]
    assert rates.prompt_type["how"].missing == {"a": 1, "b": 1} and rates.prompt_type["who"].missing == {"a": 0, "b": 0}
