"""Which of several models' answers a reward model or a judge prefers: the win matrix of SafeSora (Dai et al. 2024)."""

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
"""model -> prompt_id -> score; None or not finite without a score."""
Verdicts = Mapping[str, Mapping[tuple[str, str], float | None]]
"""prompt_id -> (model, another) -> 1 if the first's answer is better, 0 if the other's is, 1/2 for a tie, or None."""
Outcomes = Mapping[str, Mapping[str, Outcome]]
"""prompt_id -> model -> the reward of its answer."""
Types = Mapping[str, str]
"""prompt_id -> type of the prompt; empty if its row names none."""


@dataclass(frozen=True)
class WinMatrix:
    """Win rates among M models, in the order of `models`; every matrix is M x M."""

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
        """Return plain values, NaN as None."""
        return {
            "models": list(self.models),
            "wins": _plain(self.wins),
            "low": _plain(self.low),
            "high": _plain(self.high),
            "prompts": self.prompts.tolist(),
            "missing": dict(self.missing),
        }


@dataclass(frozen=True)
class WinRates:
    """Win matrices of the same models: over all prompts, by dimension and by prompt type."""

    overall: WinMatrix
    dimension: dict[str, WinMatrix]
    """By part of the reward, if it has several; a judge has none."""
    prompt_type: dict[str, WinMatrix]
    """Over the prompts of each type; prompts without a type are left out."""

    def to_json(self) -> dict[str, Any]:
        """Return the overall matrix, with the other matrices by name under `dimension` and `prompt_type`."""
        return self.overall.to_json() | {
            "dimension": _to_json(self.dimension),
            "prompt_type": _to_json(self.prompt_type),
        }


def outcome_rates(outcomes: Outcomes, weighted: Outcomes, models: Sequence[str], types: Types) -> WinRates:
    """Return win rates by a reward: by the totals of `weighted`, and by dimension by the parts of `outcomes`.

    `outcomes` are the rewards before any weights.
    """
    scores = _scores(weighted, models, lambda outcome: outcome.value)
    by_type = {}
    for name in _type_names(types):
        of_type = {model: _only(scores[model], types, name) for model in models}
        by_type[name] = win_matrix(of_type, models)
    parts = _part_names(outcomes)
    by_part: dict[str, WinMatrix] = {}
    # A single part is the total under another name.
    if len(parts) > 1:
        by_part = {name: _part_matrix(outcomes, models, name) for name in sorted(parts)}
    return WinRates(win_matrix(scores, models), by_part, by_type)


def verdict_rates(verdicts: Verdicts, models: Sequence[str], types: Types) -> WinRates:
    """Return win rates by a judge, which has one opinion, whatever the dimension."""
    by_type = {}
    for name in _type_names(types):
        by_type[name] = verdict_matrix(_only(verdicts, types, name), models)
    return WinRates(verdict_matrix(verdicts, models), {}, by_type)


def win_matrix(scores: Scores, models: Sequence[str] | None = None) -> WinMatrix:
    """Return the matrix of `models` (default: all, by name).

    A prompt counts for a pair of models if both have a score. Raises DataError for a model without scores.
    """
    names = tuple(sorted(scores) if models is None else models)
    unknown = [name for name in names if name not in scores]
    if unknown:
        raise DataError(
            f"scores of {', '.join(names)}",
            f"none of {', '.join(unknown)}",
            "Correct the scores, or choose other models.",
        )
    prompts = sorted(set().union(*(scores[name] for name in names)))
    table = np.full((len(names), len(prompts)), np.nan)
    for row, name in enumerate(names):
        for column, prompt in enumerate(prompts):
            table[row, column] = _number(scores[name].get(prompt))
    table[~np.isfinite(table)] = np.nan
    # [M, 1, P] against [1, M, P] compares every two models on every prompt; a tie is half a win.
    a, b = table[:, None], table[None]
    shares = (a > b) + 0.5 * (a == b)
    # Comparisons with NaN are False, which would count as a loss.
    shares[np.isnan(a) | np.isnan(b)] = np.nan
    return _matrix(names, shares, ~np.isnan(table))


def verdict_matrix(verdicts: Verdicts, models: Sequence[str]) -> WinMatrix:
    """Return the matrix of `models` by a judge that compares two answers.

    A prompt without a verdict on a pair of models does not count for that pair.
    """
    names, prompts = tuple(models), sorted(verdicts)
    shares = np.full((len(names), len(names), len(prompts)), np.nan)
    for place, prompt in enumerate(prompts):
        for (model, other), verdict in verdicts[prompt].items():
            i, j, value = names.index(model), names.index(other), _number(verdict)
            shares[i, j, place], shares[j, i, place] = value, 1 - value
    return _matrix(names, shares, (~np.isnan(shares)).any(axis=1))


def _part_names(outcomes: Outcomes) -> set[str]:
    names: set[str] = set()
    for answers in outcomes.values():
        for outcome in answers.values():
            if isinstance(outcome, Scored):
                names |= outcome.parts.keys()
    return names


def _part_matrix(outcomes: Outcomes, models: Sequence[str], part: str) -> WinMatrix:
    """Return the matrix over the prompts with an answer that has the part.

    Prompts whose answers are all masked are included: their answers might have had it.
    """
    relevant = {}
    for prompt, answers in outcomes.items():
        scored = [outcome for outcome in answers.values() if isinstance(outcome, Scored)]
        if not scored or any(part in outcome.parts for outcome in scored):
            relevant[prompt] = answers
    return win_matrix(_scores(relevant, models, lambda outcome: outcome.parts.get(part)), models)


def _scores(outcomes: Outcomes, models: Sequence[str], value: Callable[[Scored], float | None]) -> Scores:
    """Return a value of every outcome by model and prompt; None for a masked one."""
    scores: dict[str, dict[str, float | None]] = {model: {} for model in models}
    for prompt, answers in outcomes.items():
        for model in models:
            if model in answers:
                outcome = answers[model]
                scores[model][prompt] = value(outcome) if isinstance(outcome, Scored) else None
    return scores


def _type_names(types: Types) -> list[str]:
    return sorted(set(types.values()) - {""})


def _only(by_prompt: Mapping[str, Any], types: Types, name: str) -> dict[str, Any]:
    """Return the entries of the prompts of one type."""
    return {prompt: entry for prompt, entry in by_prompt.items() if types[prompt] == name}


def _matrix(names: tuple[str, ...], shares: np.ndarray, present: np.ndarray) -> WinMatrix:
    """Summarize single comparisons.

    shares: [M, M, P], what model i gets against model j on a prompt, NaN without a comparison. present: [M, P] bool,
    whether a model takes part in a prompt.
    """
    size = (len(names), len(names))
    wins = np.full(size, np.nan)
    low = np.full(size, np.nan)
    high = np.full(size, np.nan)
    common = np.zeros(size, int)
    # A model beats itself half the time, so that wins + wins.T is 1 everywhere.
    np.fill_diagonal(wins, 0.5)
    for i in range(len(names)):
        common[i, i] = present[i].sum()
        for j in range(i + 1, len(names)):
            common[i, j], wins[i, j], low[i, j], high[i, j] = _rate(shares[i, j])
            # The mirrored cell is 1 - this one, so its interval has its ends swapped.
            wins[j, i] = 1 - wins[i, j]
            low[j, i] = 1 - high[i, j]
            high[j, i] = 1 - low[i, j]
            common[j, i] = common[i, j]
    prompts = present.shape[1]
    missing = {name: prompts - int(common[i, i]) for i, name in enumerate(names)}
    return WinMatrix(names, wins, low, high, common, missing)


def _rate(shares: np.ndarray) -> tuple[int, float, float, float]:
    """Return (compared prompts, the mean share, low, high) with its interval; NaN without any prompt."""
    known = shares[~np.isnan(shares)]
    if not len(known):
        return 0, math.nan, math.nan, math.nan
    total = float(known.sum())
    return len(known), total / len(known), *wilson(total, len(known))


def _number(score: float | None) -> float:
    return math.nan if score is None else float(score)


def _plain(matrix: np.ndarray) -> list[list[float | None]]:
    # An object array keeps None; `tolist` makes plain floats of numpy's.
    return np.where(np.isnan(matrix), None, matrix).tolist()


def _to_json(matrices: Mapping[str, WinMatrix]) -> dict[str, Any]:
    return {name: matrix.to_json() for name, matrix in matrices.items()}
