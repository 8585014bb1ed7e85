"""Length balancing: a model trained on pairs learns to be brief (or long) where one side of them always is.

The rule is RLAIF-V's (Yu et al. 2024): drop pairs with (rejected - chosen) / rejected > r, for the r of a grid that
leaves the two sides' mean lengths closest. Lengths are words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlaif.errors import ConfigError

Mode = Literal["off", "rejected", "symmetric"]
"""off; drop pairs whose rejected answer is much longer; or those whose longer side is the one longer on average."""
GRID = tuple(step / 50 for step in range(50))
"""0, .02, ..., .98."""


@dataclass(frozen=True)
class Lengths:
    pairs: int
    chosen: float
    """Mean words; so is `rejected`. 0 without pairs."""
    rejected: float
    chosen_longer: float
    """Share of pairs whose chosen answer is longer, equal ones half."""

    @property
    def imbalance(self) -> float:
        """|mean chosen - mean rejected| / mean rejected; infinite where the rejected are empty."""
        if self.chosen == self.rejected:
            return 0.0
        return abs(self.chosen - self.rejected) / self.rejected if self.rejected else float("inf")


@dataclass(frozen=True)
class Balance:
    """What balancing did."""

    ratio: float | None
    """The r found; None where nothing was dropped because that is best, or because it is off."""
    longer: Literal["chosen", "rejected", ""]
    """The side whose much longer answers were looked for."""
    before: Lengths
    after: Lengths


def words(text: str) -> int:
    return len(text.split())


def balance(chosen: Sequence[int], rejected: Sequence[int], mode: Mode) -> tuple[np.ndarray, Balance]:
    """(keep [N] bool, what was done) for the words of N pairs. Of ratios that do equally well, the largest.

    No pair is dropped where no ratio of the grid does better than that, and some pair is always left.
    """
    if mode not in ("off", "rejected", "symmetric"):
        raise ConfigError("lengths: off, rejected or symmetric", repr(mode), "Set lengths to one of these")
    won, lost = np.asarray(chosen, float), np.asarray(rejected, float)
    before = lengths(won, lost)
    everything = np.ones(len(won), bool)
    if mode == "off" or not len(won):
        return everything, Balance(None, "", before, before)
    longer = "chosen" if mode == "symmetric" and before.chosen > before.rejected else "rejected"
    excess = _excess(won, lost) if longer == "chosen" else _excess(lost, won)
    best, keep, after = None, everything, before
    for ratio in reversed(GRID):
        kept = excess <= ratio + 1e-12
        found = lengths(won[kept], lost[kept])
        if kept.any() and found.imbalance < after.imbalance:
            best, keep, after = ratio, kept, found
    return keep, Balance(best, longer, before, after)


def lengths(chosen: np.ndarray, rejected: np.ndarray) -> Lengths:
    if not len(chosen):
        return Lengths(0, 0.0, 0.0, 0.0)
    longer = np.mean((chosen > rejected) + 0.5 * (chosen == rejected))
    return Lengths(len(chosen), float(chosen.mean()), float(rejected.mean()), float(longer))


def _excess(longer: np.ndarray, shorter: np.ndarray) -> np.ndarray:
    """(longer - shorter) / longer of each pair; -inf for an empty one, which is never too long."""
    return np.divide(longer - shorter, longer, out=np.full(len(longer), -np.inf), where=longer > 0)
