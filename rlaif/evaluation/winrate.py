"""Which of several models' answers a reward model or a judge likes better: the win matrix of SafeSora (Dai et al. 2024)."""

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
Verdicts = Mapping[str, Mapping[tuple[str, str], float | None]]
"""prompt_id -> (model, another) -> 1 where the first's answer is better, 0 where the other's is, 1/2 for a tie, or None."""


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
    table[~np.isfinite(table)] = np.nan
    a, b = table[:, None], table[None]
    won = np.where(np.isnan(a) | np.isnan(b), np.nan, (a > b) + 0.5 * (a == b))
    return _matrix(names, won, ~np.isnan(table))


def verdict_matrix(verdicts: Verdicts, models: Sequence[str]) -> WinMatrix:
    """The matrix of `models` by a judge that compares two answers; a pair of models without a verdict is left out."""
    names, prompts = tuple(models), sorted(verdicts)
    won = np.full((len(names), len(names), len(prompts)), np.nan)
    for place, prompt in enumerate(prompts):
        for (one, other), share in verdicts[prompt].items():
            i, j, value = names.index(one), names.index(other), _number(share)
            won[i, j, place], won[j, i, place] = value, 1 - value
    return _matrix(names, won, (~np.isnan(won)).any(axis=1))


def _matrix(names: tuple[str, ...], won: np.ndarray, held: np.ndarray) -> WinMatrix:
    """won [M, M, P]: what i gets against j on a prompt, NaN for nothing; held [M, P]: whether a model takes part there."""
    size = (len(names), len(names))
    wins, low, high, common = np.full(size, np.nan), np.full(size, np.nan), np.full(size, np.nan), np.zeros(size, int)
    np.fill_diagonal(wins, 0.5)
    for i in range(len(names)):
        common[i, i] = held[i].sum()
        for j in range(i + 1, len(names)):
            n, wins[i, j], low[i, j], high[i, j] = _rate(won[i, j])
            wins[j, i], low[j, i], high[j, i] = 1 - wins[i, j], 1 - high[i, j], 1 - low[i, j]
            common[i, j] = common[j, i] = n
    missing = {name: held.shape[1] - int(common[i, i]) for i, name in enumerate(names)}
    return WinMatrix(names, wins, low, high, common, missing)


def _rate(won: np.ndarray) -> tuple[int, float, float, float]:
    """(prompts with a verdict, the share that was won, its interval); NaN without any."""
    known = won[~np.isnan(won)]
    if not len(known):
        return 0, math.nan, math.nan, math.nan
    return len(known), float(known.sum()) / len(known), *wilson(float(known.sum()), len(known))


def _number(score: float | None) -> float:
    return math.nan if score is None else float(score)


def _plain(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if math.isnan(cell) else cell for cell in row] for row in matrix.tolist()]
