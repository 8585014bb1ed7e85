"""How well scores order preference pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def agreement(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Of (preferred, other) scores: accuracy (a tie counts half), mean margin, range of scores, number of pairs."""
    array = np.asarray(scores, np.float64).reshape(-1, 2)
    if not len(array):
        return {"pairs": 0.0}
    margin = array[:, 0] - array[:, 1]
    return {
        "accuracy": float(np.mean((margin > 0) + 0.5 * (margin == 0))),
        "margin": float(margin.mean()),
        "score_min": float(array.min()),
        "score_max": float(array.max()),
        "pairs": float(len(array)),
    }
