"""Which rows a step uses: a function of (seed, step) alone, so that a resumed run needs no data-loader state."""

from __future__ import annotations

from functools import lru_cache
from math import gcd

import numpy as np

from rlaif.seeds import derive


def rows_of_step(rows: int, batch: int, step: int, *seed: object) -> list[int]:
    """Return the indices of the rows of step `step` (from 0): every row once before any repeats, reordered each epoch.

    A batch that ends one epoch and begins the next holds no row twice, unless it is larger than the dataset.
    """
    indices = []
    for place in range(step * batch, (step + 1) * batch):
        epoch, place_in_epoch = divmod(place, rows)
        order = _order(rows, batch, epoch, *seed)
        indices.append(int(order[place_in_epoch]))
    return indices


@lru_cache(maxsize=4)
def _order(rows: int, batch: int, epoch: int, *seed: object) -> np.ndarray:
    """Return the epoch's permutation, with the rows of the batch that the last epoch left unfinished moved to its end.

    It depends on the epoch before, back to one that began with a batch: at most `batch` epochs.
    """
    # epochs that begin with a batch are `batch / gcd(rows, batch)` apart: then a multiple of both has passed
    first = epoch
    if rows >= batch:
        first -= epoch % (batch // gcd(rows, batch))
    order = _permutation(rows, first, *seed)
    for number in range(first + 1, epoch + 1):
        fresh = _permutation(rows, number, *seed)
        unfinished = order[rows - number * rows % batch :]
        is_late = np.isin(fresh, unfinished)
        order = np.concatenate([fresh[~is_late], fresh[is_late]])
    return order


def _permutation(rows: int, epoch: int, *seed: object) -> np.ndarray:
    return np.random.default_rng(derive(*seed, "epoch", epoch)).permutation(rows)
