"""Accuracy and calibration of scores on preference pairs."""

import math

import numpy as np
import pytest

from rlaif.evaluation.preference import dimension_metrics, pair_metrics, reliability, scores_by_dimension


def test_metrics_equal_a_published_example():
    """Compare scores 1.2, 0.3 preferred to 0.4, 0.9 with the published Bradley-Terry loss 0.704294 and accuracy 1/2."""
    metrics = pair_metrics([(1.2, 0.4), (0.3, 0.9)])
    assert metrics["log_loss"] == pytest.approx(0.704294, abs=1e-6) and metrics["accuracy"] == 0.5
    assert metrics["margin"] == pytest.approx(0.1) and (metrics["score_min"], metrics["score_max"]) == (0.3, 1.2)


SIGNS = {"a": {"x": 1, "y": -1}, "b": {"x": 1}, "c": {"y": 1, "z": 1}, "unread": {"x": 1}}
SCORES = {
    "c": np.array([[9.0, 0.0], [9.0, 2.0]]),
    "a": np.array([[1.0, 0.1], [0.0, 0.3]]),
    "b": np.array([[0.0, 5.0], [2.0, 5.0]]),
}
"""Scores of chosen and rejected in x and y, in another order than the pairs."""


def test_scores_are_matched_by_pair_and_turned_by_sign():
    scores = scores_by_dimension(SIGNS, SCORES, ("x", "y"))
    assert scores == {"x": [(1.0, 0.0), (0.0, 2.0)], "y": [(0.3, 0.1), (0.0, 2.0)]}


def test_agreement_by_dimension():
    metrics = dimension_metrics({"x": [(1.0, 0.0), (0.0, 2.0), (3.0, 1.0)], "y": [(0.3, 0.1)], "z": []})
    assert metrics["x_accuracy"] == pytest.approx(2 / 3) and metrics["y_accuracy"] == 1 and metrics["z_pairs"] == 0
    assert metrics["accuracy"] == pytest.approx(5 / 6)  # each dimension counts the same
    assert (metrics["x_score_min"], metrics["x_score_max"]) == (0, 3) and "y_log_loss" in metrics
    alone = [(1.0, 0.0), (0.0, 2.0)]
    # A single dimension keeps the names without a prefix.
    assert dimension_metrics({"overall": alone}) == pair_metrics(alone)
    assert "accuracy" not in dimension_metrics({"x": [], "y": []})


def test_calibration_error_by_hand():
    """Compute by hand: sigmoid(ln 9) = .9 three times, right twice; sigmoid(ln 1.5) = .6... of which one bin each; a tie at .5."""
    nine, third = math.log(9), math.log(0.65 / 0.35)
    metrics = pair_metrics([(nine + 1e-9, 0), (nine + 1e-9, 0), (0, nine + 1e-9), (third, 0), (0, 0)])
    gaps = [3 * abs(2 / 3 - 0.9), 1 * abs(1 - 0.65), 1 * abs(0.5 - 0.5)]
    assert metrics["calibration_error"] == pytest.approx(sum(gaps) / 5)
    assert metrics["confidence"] == pytest.approx((3 * 0.9 + 0.65 + 0.5) / 5)
    assert metrics["accuracy"] == pytest.approx(3.5 / 5)
    bins = {name: value for name, value in metrics.items() if name.startswith("reliability")}
    assert bins == pytest.approx(
        {
            "reliability_50_pairs": 1, "reliability_50_confidence": 0.5, "reliability_50_accuracy": 0.5,
            "reliability_60_pairs": 1, "reliability_60_confidence": 0.65, "reliability_60_accuracy": 1,
            "reliability_90_pairs": 3, "reliability_90_confidence": 0.9, "reliability_90_accuracy": 2 / 3,
        }
    )  # fmt: skip


def test_an_overconfident_model_has_a_larger_calibration_error():
    rng = np.random.default_rng(0)
    gap = rng.normal(0, 2, 20000)
    right = rng.random(20000) < 1 / (1 + np.exp(-gap))
    margin = np.where(right, gap, -gap)
    calibrated = pair_metrics(np.stack([margin, np.zeros_like(margin)], 1))
    loud = pair_metrics(np.stack([5 * margin, np.zeros_like(margin)], 1))
    assert calibrated["calibration_error"] < 0.02 < 0.1 < loud["calibration_error"]
    assert calibrated["log_loss"] < loud["log_loss"]


def test_extreme_margins_do_not_overflow():
    metrics = pair_metrics([(1e4, -1e4), (-1e4, 1e4)])
    assert metrics["calibration_error"] == pytest.approx(0.5) and metrics["log_loss"] == pytest.approx(1e4)
    assert [one["from"] for one in reliability([1e4, float("inf"), float("nan")])] == [0.9]


def test_metrics_are_plain_floats():
    assert all(type(value) is float for value in pair_metrics([(1, 0), (0, 3)]).values())
    assert pair_metrics([]) == {"pairs": 0.0} and pair_metrics([(float("nan"), 1)])["pairs"] == 1


def test_a_tie_counts_as_half_right():
    assert pair_metrics([(1, 1)])["accuracy"] == 0.5
