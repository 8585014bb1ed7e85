"""Sums and moments over the response tokens of right-padded batches.

A mask is [B, T], bool or 0/1: true on response tokens. The content of a masked slot (inf and NaN included) adds exactly
zero to every sum and its gradient; for the gradient, values are set to zero before anything non-linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlaif.errors import ContractError


def wide(x: Tensor) -> Tensor:
    """Return `x` in float32, or as it is in float64: half-precision sums over many tokens lose their last digits."""
    return x if x.dtype == torch.float64 else x.float()


def zero_outside(x: Tensor, mask: Tensor) -> Tensor:
    """Return `x` with zeros outside the mask."""
    # A product with the mask would turn an inf on padding into NaN.
    return x.masked_fill(~mask.bool(), 0.0)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Return the sum of `x` over the mask, a scalar in the units of `x`."""
    return zero_outside(wide(x), mask).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `x` over the mask, a scalar; 0 for an empty mask."""
    return masked_sum(x, mask) / mask.bool().sum().clamp(min=1)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Return the population variance of `x` over the mask, a scalar; 0 for an empty mask."""
    deviation = zero_outside(wide(x), mask) - masked_mean(x, mask)
    return masked_mean(deviation**2, mask)


def per_unit(total: Tensor, denominator: float) -> Tensor:
    """Return `total / denominator`: a micro-batch's share of the mean over a whole optimizer step.

    `denominator` counts the units (tokens, or pairs) of the step over all ranks and micro-batches, so that the
    micro-batches' losses add up to the mean over the full batch. Raises ContractError unless it is positive.
    """
    if not denominator > 0:
        raise ContractError(
            "a positive number of tokens or pairs in the optimizer step",
            str(denominator),
            "Leave out optimizer steps in which every sample is masked.",
        )
    return total / denominator


ROUNDING = 2.0**-23
"""The relative step of float32, the type of scores, values and returns."""


def scale_of(mean: float, var: float) -> float | None:
    """Return the standard deviation, or None if it is no more than rounding of the mean (or NaN)."""
    # Sums of a constant float32 number such as 0.1 round, which leaves a variance of a few 1e-16 instead of 0.
    deviation = var**0.5
    return deviation if deviation > ROUNDING * abs(mean) else None


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares, in float64.

    Adding two gives the moments of both sets together, so ranks reduce theirs by a sum of the three numbers
    (`dataclasses.astuple`).
    """

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, x: Tensor, mask: Tensor) -> Moments:
        """Return the moments of `x` [B, T] over the mask [B, T]. Synchronises with the device once."""
        exact = zero_outside(x.detach().double(), mask)
        count = mask.bool().sum().double()
        return cls(*torch.stack([count, exact.sum(), (exact**2).sum()]).tolist())

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """Return the mean, 0 when nothing was counted."""
        return self.total / self.count if self.count else 0.0

    @property
    def var(self) -> float:
        """Return the population variance, 0 when nothing was counted. Never negative."""
        if not self.count:
            return 0.0
        # Rounding can make the difference of two nearly equal numbers negative.
        return max(self.squares / self.count - self.mean**2, 0.0)

    @property
    def scale(self) -> float | None:
        """Return the standard deviation; None when nothing was counted, or when there is no spread beyond rounding."""
        return scale_of(self.mean, self.var)


def whiten(
    x: Tensor,
    mask: Tensor,
    mean: float,
    var: float,
    shift_mean: bool = True,
    eps: float = 1e-8,
    eps_on: Literal["variance", "deviation"] = "variance",
) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) on the mask, 0 elsewhere. [B, T] -> [B, T].

    `mean` and `var` are those of a `Moments` summed over every rank, so that all ranks whiten in the same way.
    `shift_mean=False` adds the mean back. `eps_on="deviation"` divides by sqrt(var) + eps instead (VLM-RLAIF).
    """
    divisor = (var + eps) ** 0.5 if eps_on == "variance" else var**0.5 + eps
    whitened = (x.double() - mean) / divisor
    if not shift_mean:
        whitened = whitened + mean
    return zero_outside(whitened.to(wide(x).dtype), mask)
