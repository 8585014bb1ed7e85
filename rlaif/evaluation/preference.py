"""How well scores order preference pairs, and how far their differences can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def by_dimension(
    signs: Mapping[str, Mapping[str, int]], scores: Mapping[str, np.ndarray], dimensions: Sequence[str]
) -> dict[str, list[tuple[float, float]]]:
    """(preferred, other) scores by dimension, of the pairs that were compared in it and have scores, in the order of `signs`.

    signs: pair_id -> dimension -> 1 where `chosen` is preferred, -1 where `rejected` is. scores: pair_id -> [2, K], those of
    chosen and rejected by dimension, in the order of `dimensions`.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in dimensions}
    for pair_id, known in signs.items():
        for column, name in enumerate(dimensions if pair_id in scores else ()):
            if sign := known.get(name, 0):
                chosen, rejected = (float(score) for score in scores[pair_id][:, column])
                found[name].append((chosen, rejected) if sign > 0 else (rejected, chosen))
    return found


def agreements(found: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, float]:
    """`agreement` of a single dimension as it is; of several, each under `<dimension>_`.

    Then `accuracy` is the mean over the dimensions that have pairs, each counting the same.
    """
    each = {name: agreement(scores) for name, scores in found.items()}
    if len(each) == 1:
        return next(iter(each.values()))
    named = {f"{name}_{key}": value for name, metrics in each.items() for key, value in metrics.items()}
    rates = [metrics["accuracy"] for metrics in each.values() if "accuracy" in metrics]
    return named | ({"accuracy": float(np.mean(rates))} if rates else {})


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
