"""How well scores order preference pairs, and how far their differences can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

BINS = 5
"""Of confidences .5-.6, .6-.7, ..., .9-1."""


def pair_metrics(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return metrics of (preferred, other) scores: accuracy (a tie counts half), mean margin, range, number of pairs.

    And calibration: log_loss is the mean Bradley-Terry loss in nats; confidence and calibration_error (expected
    calibration error, in 0..1) are computed from the bins of `reliability`, which are included as
    reliability_<lowest confidence in %>_*.
    """
    array = np.asarray(scores, np.float64).reshape(-1, 2)
    if not len(array):
        return {"pairs": 0.0}
    margin = array[:, 0] - array[:, 1]
    # NaN scores give a NaN loss without a warning; the metrics count it.
    with np.errstate(invalid="ignore"):
        # -log sigmoid(margin), without overflow
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


def scores_by_dimension(
    signs: Mapping[str, Mapping[str, int]], scores: Mapping[str, np.ndarray], dimensions: Sequence[str]
) -> dict[str, list[tuple[float, float]]]:
    """Return (preferred, other) scores by dimension, in the order of `signs`.

    A dimension has the pairs that were compared in it and have scores. signs: pair_id -> dimension -> 1 if `chosen` is
    preferred, -1 if `rejected` is. scores: pair_id -> [2, K], those of chosen and rejected by dimension, in the order of
    `dimensions`.
    """
    by_dimension: dict[str, list[tuple[float, float]]] = {name: [] for name in dimensions}
    for pair_id, signs_of_pair in signs.items():
        if pair_id not in scores:
            continue
        for column, name in enumerate(dimensions):
            sign = signs_of_pair.get(name, 0)
            if sign:
                chosen, rejected = scores[pair_id][:, column].tolist()
                by_dimension[name].append((chosen, rejected) if sign > 0 else (rejected, chosen))
    return by_dimension


def dimension_metrics(scores: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, float]:
    """Return `pair_metrics` of a single dimension as it is; of several dimensions, each under `<dimension>_`.

    Then `accuracy` is the mean over the dimensions that have pairs, each counting the same.
    """
    each = {name: pair_metrics(pairs) for name, pairs in scores.items()}
    if len(each) == 1:
        return next(iter(each.values()))
    named: dict[str, float] = {}
    for name, metrics in each.items():
        named |= {f"{name}_{key}": value for key, value in metrics.items()}
    rates = [metrics["accuracy"] for metrics in each.values() if "accuracy" in metrics]
    return named | ({"accuracy": float(np.mean(rates))} if rates else {})


def reliability(margins: Sequence[float]) -> list[dict[str, float]]:
    """Return confidence and accuracy for each bin of confidences that is not empty.

    The model's confidence in the answer that it prefers is sigmoid(|margin|), in 1/2..1, and it is right if the
    margin (preferred - other) is above 0. Margins that are not finite are left out.
    """
    margin = np.asarray(margins, np.float64)
    margin = margin[np.isfinite(margin)]
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    right = _right(margin)
    # BINS equal bins of 1/2..1; a confidence of exactly 1 belongs to the last one.
    place = ((confidence - 0.5) * 2 * BINS).astype(int)
    place = np.minimum(place, BINS - 1)
    bins = []
    for number in np.unique(place):
        inside = place == number
        bins.append(
            {
                "from": 0.5 + number / (2 * BINS),
                "pairs": float(inside.sum()),
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(right[inside].mean()),
            }
        )
    return bins


def _calibration(margin: np.ndarray) -> dict[str, float]:
    bins = reliability(margin)
    if not bins:
        return {}
    metrics: dict[str, float] = {}
    pairs, confidence, gap = [], [], []
    for part in bins:
        pairs.append(part["pairs"])
        confidence.append(part["confidence"])
        gap.append(abs(part["accuracy"] - part["confidence"]))
        name = f"reliability_{part['from']:.0%}".removesuffix("%")
        metrics[f"{name}_pairs"] = part["pairs"]
        metrics[f"{name}_confidence"] = part["confidence"]
        metrics[f"{name}_accuracy"] = part["accuracy"]
    weights = np.array(pairs)
    return {
        "confidence": float(weights @ np.array(confidence) / weights.sum()),
        "calibration_error": float(weights @ np.array(gap) / weights.sum()),
        **metrics,
    }


def _right(margin: np.ndarray) -> np.ndarray:
    return (margin > 0) + 0.5 * (margin == 0)
