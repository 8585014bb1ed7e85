"""The win matrix."""

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
def test_published_rates_come_back(dimension):
    """Each pair of models alone, with scores of 100 prompts that win as often as published."""
    published = np.array(PUBLISHED[dimension])
    assert np.abs(published + published.T - 1).max() < 1e-9
    for i, j in [(i, j) for i in range(4) for j in range(4) if i != j]:
        won = round(100 * published[i, j])
        scores = {MODELS[i]: {str(p): float(p < won) for p in range(100)}, MODELS[j]: {str(p): 0.5 for p in range(100)}}
        found = win_matrix(scores, (MODELS[i], MODELS[j]))
        assert found.wins[0, 1] == pytest.approx(published[i, j]) and found.wins[1, 0] == pytest.approx(published[j, i])


def test_rates_ties_and_intervals():
    scores = {"a": {"1": 1, "2": 0, "3": 5, "4": 2}, "b": {"1": 0, "2": 0, "3": 9, "4": 1}}
    found = win_matrix(scores)
    assert found.models == ("a", "b") and found.wins.tolist() == [[0.5, 0.625], [0.375, 0.5]]
    assert (found.low[0, 1], found.high[0, 1]) == wilson(2.5, 4)
    assert (found.low[1, 0], found.high[1, 0]) == pytest.approx(wilson(1.5, 4))


def test_missing_scores_are_counted_and_left_out_pairwise():
    scores = {
        "a": {"1": 1.0, "2": 1.0, "3": None},
        "b": {"1": 0.0, "2": float("nan"), "3": 0.0},
        "c": {"4": 1.0, "1": 2.0},
        "d": {},
    }
    found = win_matrix(scores)
    assert found.missing == {"a": 2, "b": 2, "c": 2, "d": 4}
    assert found.prompts.tolist() == [[2, 1, 1, 0], [1, 2, 1, 0], [1, 1, 2, 0], [0, 0, 0, 0]]
    assert found.wins[0, 1] == 1 and found.wins[0, 2] == 0 and math.isnan(found.wins[0, 3])
    assert found.to_json()["wins"][0] == [0.5, 1.0, 0.0, None] and found.to_json()["low"][0][0] is None


def test_chosen_models_and_unknown_ones():
    scores = {"b": {"1": 1.0}, "a": {"1": 0.0}, "c": {"1": 0.0}}
    assert win_matrix(scores, ["b", "a"]).wins[0, 1] == 1
    with pytest.raises(DataError, match="none of z"):
        win_matrix(scores, ["a", "z"])
    assert win_matrix({}).wins.shape == (0, 0)


def test_verdicts_of_a_judge():
    verdicts = {
        "1": {("b", "a"): 1.0, ("a", "c"): 0.5, ("b", "c"): None},
        "2": {("a", "b"): 1.0},
        "3": {("a", "b"): float("nan")},
        "4": {("b", "a"): 1.0},
    }
    found = verdict_matrix(verdicts, ["a", "b", "c"])
    assert found.wins[0, 1] == pytest.approx(1 / 3) and found.wins[1, 0] == pytest.approx(2 / 3)
    assert found.wins[0, 2] == found.wins[2, 0] == 0.5 and math.isnan(found.wins[1, 2])
    assert found.prompts.tolist() == [[3, 3, 1], [3, 3, 0], [1, 0, 1]]
    assert found.missing == {"a": 1, "b": 1, "c": 3}
    assert (found.low[1, 0], found.high[1, 0]) == pytest.approx(wilson(2, 3))
    assert verdict_matrix({}, ["a", "b"]).wins[0, 0] == 0.5


score = st.one_of(st.none(), st.integers(0, 4), st.floats(-1, 1))
tables = st.dictionaries(st.sampled_from("abcd"), st.dictionaries(st.sampled_from("123456"), score), min_size=1)


@settings(deadline=None)
@given(tables)
def test_a_matrix_and_its_mirror_sum_to_one(scores):
    found = win_matrix(scores)
    known = ~np.isnan(found.wins)
    assert np.allclose((found.wins + found.wins.T)[known], 1) and (np.diag(found.wins) == 0.5).all()
    assert (known == ((found.prompts > 0) | np.eye(len(found.models), dtype=bool))).all()
    prompts = {prompt for of_model in scores.values() for prompt in of_model}
    for number, name in enumerate(found.models):
        assert found.missing[name] + found.prompts[number, number] == len(prompts)
    turned = {name: dict(reversed(scores[name].items())) for name in reversed(scores)}
    assert np.array_equal(win_matrix(turned).wins, found.wins, equal_nan=True)
    inside = ~np.isnan(found.low)
    assert (found.low[inside] <= found.wins[inside] + 1e-12).all()
    assert (found.wins[inside] <= found.high[inside] + 1e-12).all()


# -- by dimension and by prompt type


def said(**parts: float) -> Scored:
    return Scored(sum(parts.values()), parts)


OUTCOMES = {
    "1": {"a": said(help=3, harm=1), "b": said(help=2, harm=2), "c": said(help=1, harm=3.5)},
    "2": {"a": said(help=3, harm=0), "b": said(help=3, harm=1), "c": said(help=0, harm=2)},
    "3": {"a": Masked("no verdict"), "b": said(help=1, harm=0), "c": said(help=0, harm=1)},
    "4": {"a": said(help=2, harm=0), "b": said(help=1, harm=5)},
}
"""The order of the models in `harm` is that in `help` turned round; two answers are equal in `help`, one is masked, one is
not there."""
TYPES = {"1": "how", "2": "who", "3": "how", "4": ""}
UPPER = {
    "overall": ([1 / 6, 1 / 2, 1 / 2], [3, 2, 3]),
    "help": ([2.5 / 3, 1, 1], [3, 2, 3]),
    "harm": ([0, 0, 0], [3, 2, 3]),
    "how": ([0.5, 0, 0.25], [1, 1, 2]),
    "who": ([0, 1, 1], [1, 1, 1]),
}
"""By hand: a against b, a against c, b against c, and how many prompts that is."""


def check_by_hand(matrix, rates, counts):
    cells = [(0, 1), (0, 2), (1, 2)]
    assert matrix.models == ("a", "b", "c") and np.allclose(matrix.wins + matrix.wins.T, 1)
    for (i, j), rate, count in zip(cells, rates, counts, strict=True):
        assert (matrix.wins[i, j], matrix.prompts[i, j]) == (pytest.approx(rate), count)
        assert (matrix.low[i, j], matrix.high[i, j]) == pytest.approx(wilson(rate * count, count))


def test_rates_overall_by_dimension_and_by_prompt_type():
    found = outcome_rates(OUTCOMES, OUTCOMES, "abc", TYPES)
    assert (list(found.dimension), list(found.prompt_type)) == (["harm", "help"], ["how", "who"])
    for name, matrix in {"overall": found.overall, **found.dimension, **found.prompt_type}.items():
        check_by_hand(matrix, *UPPER[name])
    missing = {"a": 1, "b": 0, "c": 1}
    assert found.overall.missing == found.dimension["help"].missing == found.dimension["harm"].missing == missing
    assert found.prompt_type["how"].missing == {"a": 1, "b": 0, "c": 0}
    assert found.prompt_type["who"].missing == {"a": 0, "b": 0, "c": 0}


def test_rates_as_json():
    found = outcome_rates(OUTCOMES, OUTCOMES, "abc", TYPES)
    told = found.to_json()
    groups = {"dimension": told.pop("dimension"), "prompt_type": told.pop("prompt_type")}
    assert (
        told == found.overall.to_json()
        and told
        == win_matrix(
            {
                "a": {"1": 4, "2": 3, "3": None, "4": 2},
                "b": {"1": 4, "2": 4, "3": 1, "4": 6},
                "c": {"1": 4.5, "2": 2, "3": 1},
            }
        ).to_json()
    )
    assert groups["dimension"].keys() == {"harm", "help"} and groups["prompt_type"].keys() == {"how", "who"}
    for name, one in {**groups["dimension"], **groups["prompt_type"]}.items():
        assert one.keys() == {"models", "wins", "low", "high", "prompts", "missing"}
        assert one["wins"][0][1:] == pytest.approx(UPPER[name][0][:2]) and one["prompts"][1][2] == UPPER[name][1][2]


def test_weights_are_of_the_total_not_of_a_dimension():
    turned = {
        prompt: {
            name: one if isinstance(one, Masked) else said(help=0.0, harm=-one.parts["harm"])
            for name, one in of.items()
        }
        for prompt, of in OUTCOMES.items()
    }
    found = outcome_rates(OUTCOMES, turned, "abc", TYPES)
    check_by_hand(found.overall, [1, 1, 1], [3, 2, 3])
    check_by_hand(found.prompt_type["who"], [1, 1, 1], [1, 1, 1])
    check_by_hand(found.dimension["harm"], *UPPER["harm"])
    check_by_hand(found.dimension["help"], *UPPER["help"])


def test_a_single_part_is_no_dimension():
    outcomes = {"1": {"a": said(score=1.0), "b": said(score=0.0)}, "2": {"a": Masked("no"), "b": said(score=1.0)}}
    found = outcome_rates(outcomes, outcomes, "ab", {"1": "", "2": ""})
    assert found.dimension == found.prompt_type == {} and found.overall.wins[0, 1] == 1
    assert outcome_rates({"1": {"a": Masked("no"), "b": Masked("no")}}, {}, "ab", {}).dimension == {}


def test_a_prompt_counts_where_its_answers_have_the_part():
    """A function may have other parts for other prompts; where every answer is masked, none can say that it has not."""
    outcomes = {
        "1": {"a": said(recall=1, false=0), "b": said(recall=0, false=0)},
        "2": {"a": said(correct=0), "b": said(correct=1)},
        "3": {"a": said(recall=0), "b": Masked("no")},
        "4": {"a": Masked("no"), "b": Masked("no")},
        "5": {"a": said(recall=0.5, false=-1), "b": said(recall=1)},
    }
    found = outcome_rates(outcomes, outcomes, "ab", dict.fromkeys(outcomes, "")).dimension
    assert {name: one.prompts[0, 1] for name, one in found.items()} == {"correct": 1, "false": 1, "recall": 2}
    assert {name: one.wins[0, 1] for name, one in found.items()} == {"correct": 0, "false": 0.5, "recall": 0.5}
    assert {name: one.missing for name, one in found.items()} == {
        **{"correct": {"a": 1, "b": 1}, "false": {"a": 1, "b": 2}},
        "recall": {"a": 1, "b": 2},
    }


def test_verdicts_by_prompt_type():
    verdicts = {"1": {("a", "b"): 1.0}, "2": {("a", "b"): 0.5}, "3": {("a", "b"): None}, "4": {("b", "a"): 1.0}}
    found = verdict_rates(verdicts, "ab", TYPES)
    assert found.overall.to_json() == verdict_matrix(verdicts, "ab").to_json() and found.dimension == {}
    assert {name: one.wins[0, 1] for name, one in found.prompt_type.items()} == {"how": 1, "who": 0.5}
    assert found.prompt_type["how"].prompts.tolist() == [[1, 1], [1, 1]]
    assert found.prompt_type["how"].missing == {"a": 1, "b": 1} and found.prompt_type["who"].missing == {"a": 0, "b": 0}
