"""Ragged right-padded batches for the tests of objectives."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass
class Batch:
    """Random [B, T] float64 tensors by name, with a right-padded mask; the padding of `x` holds garbage."""

    mask: Tensor
    lengths: list[int]

    def x(self, seed: int, scale: float = 1.0, garbage: float = 7.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        values = scale * torch.randn(self.mask.shape, generator=generator, dtype=torch.float64)
        return values.masked_fill(~self.mask, garbage)

    def padded(self, x: Tensor, extra: int = 3, garbage: float = float("nan")) -> Tensor:
        fill = False if x.dtype == torch.bool else garbage
        return torch.cat([x, torch.full((len(x), extra), fill, dtype=x.dtype)], dim=1)


@pytest.fixture
def ragged():
    """Return a function that makes batches; the default lengths include an empty row, a single token and full rows."""

    def make(lengths=(4, 0, 1, 6, 3, 6), width: int | None = None) -> Batch:
        mask = torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]
        return Batch(mask, list(lengths))

    return make
