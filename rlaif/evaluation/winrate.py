"""Which of several models' answers a reward model or a judge likes better: the win matrix of SafeSora (Dai et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlaif.errors import DataError
from rlaif.evaluation.intervals import wilson
from rlaif.records import Outcome, Scored

Scores = Mapping[str, Mapping[str, float | None]]
"""model -> prompt_id -> score; None or not finite where there is none."""
Verdicts = Mapping[str, Mapping[tuple[str, str], float | None]]
"""prompt_id -> (model, another) -> 1 where the first's answer is better, 0 where the other's is, 1/2 for a tie, or None."""
Outcomes = Mapping[str, Mapping[str, Outcome]]
"""prompt_id -> model -> what a reward says of its answer."""
Types = Mapping[str, str]
"""prompt_id -> what kind of prompt it is; empty where nobody says."""


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


@dataclass(frozen=True)
class WinRates:
    """Win matrices of the same models: over all prompts, by dimension and by prompt type."""

    overall: WinMatrix
    dimension: dict[str, WinMatrix]
    """By part of the reward, where it has several; a judge has none."""
    prompt_type: dict[str, WinMatrix]
    """Of the prompts of each type; prompts without one are left out."""

    def to_json(self) -> dict[str, Any]:
        """The overall matrix, and beside it `dimension` and `prompt_type`, which hold more of them."""
        groups = {"dimension": self.dimension, "prompt_type": self.prompt_type}
        return self.overall.to_json() | {
            kind: {name: matrix.to_json() for name, matrix in matrices.items()} for kind, matrices in groups.items()
        }


def outcome_rates(outcomes: Outcomes, weighted: Outcomes, models: Sequence[str], types: Types) -> WinRates:
    """By the totals of `weighted`, and by dimension by the parts of `outcomes`, as they were before any weights."""
    scores = _scores(weighted, models, lambda one: one.value)
    by_type = {
        name: win_matrix({model: _only(scores[model], types, name) for model in models}, models)
        for name in _type_names(types)
    }
    known = [one for of in outcomes.values() for one in of.values() if isinstance(one, Scored)]
    parts = {name for one in known for name in one.parts}
    by_part = {name: _part_matrix(outcomes, models, name) for name in sorted(parts)} if len(parts) > 1 else {}
    return WinRates(win_matrix(scores, models), by_part, by_type)


def verdict_rates(verdicts: Verdicts, models: Sequence[str], types: Types) -> WinRates:
    """Of a judge, who has one opinion, whatever the dimension."""
    by_type = {name: verdict_matrix(_only(verdicts, types, name), models) for name in _type_names(types)}
    return WinRates(verdict_matrix(verdicts, models), {}, by_type)


def win_matrix(scores: Scores, models: Sequence[str] | None = None) -> WinMatrix:
    """The matrix of `models` (default: all, by name). A prompt without both scores is left out of that pair of models.

    Raises DataError for a model without scores.
    """
    names = tuple(sorted(scores) if models is None else models)
    if unknown := [name for name in names if name not in scores]:
        raise DataError(
            f"scores of {', '.join(names)}",
            f"none of {', '.join(unknown)}",
            "Correct the scores, or choose other models",
        )
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


def _part_matrix(outcomes: Outcomes, models: Sequence[str], part: str) -> WinMatrix:
    """Of the prompts with an answer that has the part; those of which every answer is masked might have had it."""
    asked = {}
    for prompt, of in outcomes.items():
        known = [one for one in of.values() if isinstance(one, Scored)]
        if not known or any(part in one.parts for one in known):
            asked[prompt] = of
    return win_matrix(_scores(asked, models, lambda one: one.parts.get(part)), models)


def _scores(outcomes: Outcomes, models: Sequence[str], value: Callable[[Scored], float | None]) -> Scores:
    return {
        name: {
            prompt: value(of[name]) if isinstance(of[name], Scored) else None
            for prompt, of in outcomes.items()
            if name in of
        }
        for name in models
    }


def _type_names(types: Types) -> list[str]:
    return sorted(set(types.values()) - {""})


def _only(by_prompt: Mapping[str, Any], types: Types, name: str) -> dict[str, Any]:
    return {prompt: one for prompt, one in by_prompt.items() if types[prompt] == name}


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
