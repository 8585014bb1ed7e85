"""Which rows a step uses: a function of (seed, step) alone, so that a resumed run needs no data-loader state."""

from __future__ import annotations

from functools import lru_cache
from math import gcd

import numpy as np

from rlaif.seeds import derive


def rows_of_step(rows: int, batch: int, step: int, *seed: object) -> list[int]:
    """Indices of the rows of step `step` (from 0): every row once before any repeats, in a fresh order each epoch.

    A batch that ends one epoch and begins the next holds no row twice, unless it is larger than the dataset.
    """
    first = step * batch
    return [int(_order(rows, batch, place // rows, *seed)[place % rows]) for place in range(first, first + batch)]


@lru_cache(maxsize=4)
def _order(rows: int, batch: int, epoch: int, *seed: object) -> np.ndarray:
    """The epoch's permutation, with the rows of the batch that the last epoch left unfinished moved to its end.

    That depends on the epoch before, back to one that began with a batch: at most `batch` epochs.
    """
    first = epoch - epoch % (batch // gcd(rows, batch)) if rows >= batch else epoch
    order = _permutation(rows, first, *seed)
    for number in range(first + 1, epoch + 1):
        fresh, begun = _permutation(rows, number, *seed), number * rows % batch
        late = np.isin(fresh, order[rows - begun :])
        order = np.concatenate([fresh[~late], fresh[late]])
    return order


def _permutation(rows: int, epoch: int, *seed: object) -> np.ndarray:
    return np.random.default_rng(derive(*seed, "epoch", epoch)).permutation(rows)
