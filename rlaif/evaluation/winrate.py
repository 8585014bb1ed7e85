"""Which of several models' answers a reward model likes better: the win matrix of SafeSora (Dai et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlaif.errors import DataError
from rlaif.evaluation.intervals import wilson

Scores = Mapping[str, Mapping[str, float | None]]
"""model -> prompt_id -> score; None or not finite where there is none."""


@dataclass(frozen=True)
class WinMatrix:
    """Of M models, in the order of `models`; every matrix is M x M."""

    models: tuple[str, ...]
    wins: np.ndarray
    """[i, j]: how often i's score is above j's on the same prompt; ties half, diagonal 1/2, NaN without common prompts.
    wins + wins.T is 1."""
    low: np.ndarray
    """95 % Wilson interval of each cell off the diagonal, with `high`; NaN elsewhere."""
    high: np.ndarray
    prompts: np.ndarray
    """Prompts that both models have a score for."""
    missing: dict[str, int]
    """Prompts of any model for which this one has no score."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, NaN as None."""
        matrices = {name: _plain(getattr(self, name)) for name in ("wins", "low", "high")}
        return {
            "models": list(self.models),
            **matrices,
            "prompts": self.prompts.tolist(),
            "missing": dict(self.missing),
        }


def win_matrix(scores: Scores, models: Sequence[str] | None = None) -> WinMatrix:
    """The matrix of `models` (default: all, by name). A prompt without both scores is left out of that pair of models.

    Raises DataError for a model without scores.
    """
    names = tuple(sorted(scores) if models is None else models)
    if unknown := [name for name in names if name not in scores]:
        raise DataError(f"scores of {', '.join(names)}", f"none of {', '.join(unknown)}", "the scores, or the models")
    prompts = sorted({prompt for name in names for prompt in scores[name]})
    table = np.array([[_number(scores[name].get(prompt)) for prompt in prompts] for name in names])
    table = table.reshape(len(names), len(prompts))
    size = (len(names), len(names))
    wins, low, high, common = np.full(size, np.nan), np.full(size, np.nan), np.full(size, np.nan), np.zeros(size, int)
    np.fill_diagonal(wins, 0.5)
    for i in range(len(names)):
        common[i, i] = np.isfinite(table[i]).sum()
        for j in range(i + 1, len(names)):
            n, wins[i, j], low[i, j], high[i, j] = _compare(table[i], table[j])
            wins[j, i], low[j, i], high[j, i] = 1 - wins[i, j], 1 - high[i, j], 1 - low[i, j]
            common[i, j] = common[j, i] = n
    missing = {name: len(prompts) - int(common[i, i]) for i, name in enumerate(names)}
    return WinMatrix(names, wins, low, high, common, missing)


def _compare(a: np.ndarray, b: np.ndarray) -> tuple[int, float, float, float]:
    """(common prompts, how often a is above b, its interval); NaN without common prompts."""
    both = np.isfinite(a) & np.isfinite(b)
    if not both.any():
        return 0, math.nan, math.nan, math.nan
    a, b, n = a[both], b[both], int(both.sum())
    won = float(np.sum((a > b) + 0.5 * (a == b)))
    return n, won / n, *wilson(won, n)


def _number(score: float | None) -> float:
    return math.nan if score is None else float(score)


def _plain(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if math.isnan(cell) else cell for cell in row] for row in matrix.tolist()]
