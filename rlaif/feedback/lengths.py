"""Length balancing: if one side of the pairs is always longer, a model trained on them learns to be long (or brief).

The rule is RLAIF-V's (Yu et al. 2024): drop pairs with (rejected - chosen) / rejected > r, for the r of a grid that
brings the mean lengths of the two sides closest. Lengths are counted in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlaif.errors import ConfigError

BalanceMode = Literal["off", "rejected", "symmetric"]
"""`off`; `rejected`: drop pairs whose rejected answer is much longer; `symmetric`: drop pairs in which the side that is
longer on average is much longer."""
GRID = tuple(step / 50 for step in range(50))
"""0, .02, ..., .98."""
ROUNDING = 1e-12
"""(longer - shorter) / longer may exceed a ratio of the grid by this through rounding alone."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of the two sides of a set of pairs."""

    pairs: int
    chosen: float
    """Mean number of words, as in `rejected`; 0 without pairs."""
    rejected: float
    chosen_longer: float
    """Share of pairs whose chosen answer is longer; pairs of equal length count half."""

    @property
    def imbalance(self) -> float:
        """|mean chosen - mean rejected| / mean rejected; infinite if the rejected answers are empty."""
        if self.chosen == self.rejected:
            return 0.0
        return abs(self.chosen - self.rejected) / self.rejected if self.rejected else float("inf")


@dataclass(frozen=True)
class Balance:
    """What balancing did."""

    ratio: float | None
    """The chosen r; None if nothing was dropped, because that is best or because balancing is off."""
    longer: Literal["chosen", "rejected", ""]
    """The side that was searched for much longer answers; "" if balancing is off or there are no pairs."""
    before: Lengths
    after: Lengths


def words(text: str) -> int:
    """Count the words of a text."""
    return len(text.split())


def balance(chosen: Sequence[int], rejected: Sequence[int], mode: BalanceMode) -> tuple[np.ndarray, Balance]:
    """Return which of N pairs stay ([N] bool), and what was done, for the words of their answers.

    Ties go to the largest ratio. No pair is dropped if no ratio of the grid does better than that, and some pair always
    stays. Raises ConfigError for another mode.
    """
    if mode not in ("off", "rejected", "symmetric"):
        raise ConfigError("lengths: off, rejected or symmetric", repr(mode), "Set lengths to one of these.")
    chosen_words, rejected_words = np.asarray(chosen, float), np.asarray(rejected, float)
    before = lengths(chosen_words, rejected_words)
    everything = np.ones(len(chosen_words), bool)
    if mode == "off" or not len(chosen_words):
        return everything, Balance(None, "", before, before)
    if mode == "symmetric" and before.chosen > before.rejected:
        longer, excess = "chosen", _excess(chosen_words, rejected_words)
    else:
        longer, excess = "rejected", _excess(rejected_words, chosen_words)
    best, best_keep, after = None, everything, before
    # From the largest ratio down, and only a strictly better one replaces it: ties go to the largest.
    for ratio in reversed(GRID):
        keep = excess <= ratio + ROUNDING
        remaining = lengths(chosen_words[keep], rejected_words[keep])
        if keep.any() and remaining.imbalance < after.imbalance:
            best, best_keep, after = ratio, keep, remaining
    return best_keep, Balance(best, longer, before, after)


def lengths(chosen: np.ndarray, rejected: np.ndarray) -> Lengths:
    """Summarize the words of N chosen and N rejected answers."""
    if not len(chosen):
        return Lengths(0, 0.0, 0.0, 0.0)
    longer = np.mean((chosen > rejected) + 0.5 * (chosen == rejected))
    return Lengths(
        pairs=len(chosen),
        chosen=float(chosen.mean()),
        rejected=float(rejected.mean()),
        chosen_longer=float(longer),
    )


def _excess(longer: np.ndarray, shorter: np.ndarray) -> np.ndarray:
    """Return (longer - shorter) / longer of each pair; -inf for an empty answer, which is never too long."""
    unset = np.full(len(longer), -np.inf)
    return np.divide(longer - shorter, longer, out=unset, where=longer > 0)
