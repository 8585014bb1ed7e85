"""How well scores order preference pairs, and how far their differences can be believed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BINS = 5
"""Of confidences .5-.6, .6-.7, ..., .9-1."""


def agreement(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Of (preferred, other) scores: accuracy (a tie counts half), mean margin, range of scores, number of pairs.

    And calibration: log_loss is the mean Bradley-Terry loss in nats; confidence and calibration_error (expected
    calibration error, in 0..1) are those of `reliability`, whose bins stand as reliability_<lowest confidence in %>_*.
    """
    array = np.asarray(scores, np.float64).reshape(-1, 2)
    if not len(array):
        return {"pairs": 0.0}
    margin = array[:, 0] - array[:, 1]
    with np.errstate(invalid="ignore"):  # NaN scores give a NaN loss, which metrics count
        log_loss = float(np.logaddexp(0, -margin).mean())
    return {
        "accuracy": float(np.mean(_right(margin))),
        "margin": float(margin.mean()),
        "score_min": float(array.min()),
        "score_max": float(array.max()),
        "pairs": float(len(array)),
        "log_loss": log_loss,
        **_calibration(margin),
    }


def reliability(margins: Sequence[float]) -> list[dict[str, float]]:
    """Confidence against accuracy, for each bin of confidences that is not empty.

    The model's confidence in the answer that it prefers is sigmoid(|margin|), in 1/2..1, and it is right where the
    margin (preferred - other) is above 0. Margins that are not finite are left out.
    """
    margin = np.asarray(margins, np.float64)
    margin = margin[np.isfinite(margin)]
    confidence, right = 1 / (1 + np.exp(-np.abs(margin))), _right(margin)
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    return [
        {
            "from": 0.5 + number / (2 * BINS),
            "pairs": float((place == number).sum()),
            "confidence": float(confidence[place == number].mean()),
            "accuracy": float(right[place == number].mean()),
        }
        for number in np.unique(place)
    ]


def _calibration(margin: np.ndarray) -> dict[str, float]:
    bins = reliability(margin)
    if not bins:
        return {}
    pairs = np.array([one["pairs"] for one in bins])
    gap = np.array([abs(one["accuracy"] - one["confidence"]) for one in bins])
    confidence = np.array([one["confidence"] for one in bins])
    found = {
        "confidence": float(pairs @ confidence / pairs.sum()),
        "calibration_error": float(pairs @ gap / pairs.sum()),
    }
    for one in bins:
        name = f"reliability_{one['from']:.0%}".removesuffix("%")
        found |= {f"{name}_{key}": one[key] for key in ("pairs", "confidence", "accuracy")}
    return found


def _right(margin: np.ndarray) -> np.ndarray:
    return (margin > 0) + 0.5 * (margin == 0)
