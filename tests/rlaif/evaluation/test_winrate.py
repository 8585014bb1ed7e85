"""The win matrix and its picture."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import DataError
from rlaif.evaluation.intervals import wilson
from rlaif.evaluation.winrate import verdict_matrix, win_matrix
from rlaif.evaluation.winrate_svg import LABEL, LETTER, _colour, _ink, svg

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


def test_the_picture():
    scores = {'a <b> & "c"': {"1": 1.0, "2": 0.0, "3": 1.0}, "rlaif": {"1": 0.0, "2": 1.0, "3": 0.0}, "none": {}}
    matrix = win_matrix(scores)
    root = ElementTree.fromstring(svg(matrix, title='wins & "losses"'))
    space = {"s": "http://www.w3.org/2000/svg"}
    shown = [text.text for text in root.iterfind(".//s:g/s:text", space)]
    assert shown == ["0.50", "–", "0.67", "–", "0.50", "–", "0.33", "–", "0.50"]
    labels = [text.text for text in root.iterfind("s:text", space)]
    assert labels[0] == 'wins & "losses"' and sorted(labels[1:]) == sorted([*matrix.models, *matrix.models])
    assert root.get("aria-label") == 'wins & "losses"'
    tips = [title.text for title in root.iterfind(".//s:title", space)]
    assert tips[2].startswith('a <b> & "c" against rlaif: 3 prompts, 95 % interval 0.21 to 0.94')
    fills = [rect.get("fill") for rect in root.iterfind(".//s:rect", space)]
    assert len(fills) == 9 and fills[0] == fills[4] and len({fills[0], fills[1], fills[2], fills[6]}) == 4


def contrast(one, other):
    def luminance(colour):
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_numbers_and_labels_can_be_read():
    """WCAG 2: at least 4.5 for numbers in cells, 4 for labels on either background."""
    for step in range(101):
        colour = _colour(step / 100)
        assert contrast(colour, (0, 0, 0) if _ink(colour) == "#000" else (255, 255, 255)) >= 4.5
    label = tuple(int(LABEL[at : at + 2], 16) for at in (1, 3, 5))
    assert contrast(label, (255, 255, 255)) >= 4 and contrast(label, (13, 17, 23)) >= 4


def test_everything_lies_inside_the_picture():
    matrix = win_matrix({"a rather long name of a model": {"1": 1.0}, "b": {"1": 0.0}})
    root = ElementTree.fromstring(svg(matrix))
    width, height = float(root.get("width")), float(root.get("height"))
    for text in root.iterfind("{http://www.w3.org/2000/svg}text[@transform]"):
        x, y = map(float, re.match(r"translate\((\S+) (\S+)\)", text.get("transform")).groups())
        along = LETTER * len(text.text)
        assert x + along * math.cos(math.radians(40)) <= width and y - along * math.sin(math.radians(40)) >= 20
    for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert 0 <= float(rect.get("x")) and float(rect.get("x")) + float(rect.get("width")) <= width
        assert 0 <= float(rect.get("y")) and float(rect.get("y")) + float(rect.get("height")) <= height
