"""Metrics that add up exactly: a micro-batch reports (sum, count), the mean is taken once at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from rlaif.objectives.masked import keep

Metrics = dict[str, tuple[float, float]]
"""Name -> (sum, count). Names that end in `_min` or `_max` hold (extreme, count) and are reduced by min or max."""


def totals(mask: Tensor, **values: Tensor) -> Metrics:
    """(sum, count) of each tensor over the mask; all have the mask's shape. One device synchronisation."""
    sums = [keep(value.detach().double(), mask).sum() for value in values.values()]
    *sums, count = torch.stack([*sums, mask.bool().sum().double()]).tolist()
    return {name: (total, count) for name, total in zip(values, sums, strict=True)}


def extremes(name: str, x: Tensor, mask: Tensor) -> Metrics:
    """`<name>_min` and `<name>_max` of `x` over the mask; (inf, 0) and (-inf, 0) for an empty mask."""
    values = x.detach()[mask.bool()]
    count = float(values.numel())
    low, high = torch.stack(values.aminmax()).tolist() if count else (torch.inf, -torch.inf)
    return {f"{name}_min": (low, count), f"{name}_max": (high, count)}


def merge(parts: Iterable[Metrics]) -> Metrics:
    """The metrics of all parts (micro-batches, ranks) together; a name may be missing from some of them."""
    merged: Metrics = {}
    for part in parts:
        for name, (value, count) in part.items():
            before, seen = merged.get(name, (_empty(name), 0.0))
            merged[name] = (_join(name, before, value), seen + count)
    return merged


def means(metrics: Metrics) -> dict[str, float]:
    """Name -> mean (or extreme); names that counted nothing are left out."""
    return {
        name: value if name.endswith(("_min", "_max")) else value / count
        for name, (value, count) in metrics.items()
        if count
    }


def _empty(name: str) -> float:
    return torch.inf if name.endswith("_min") else -torch.inf if name.endswith("_max") else 0.0


def _join(name: str, a: float, b: float) -> float:
    if not name.endswith(("_min", "_max")) or math.isnan(a) or math.isnan(b):
        return a + b  # NaN stays NaN: Python's min and max would drop one that comes second
    return min(a, b) if name.endswith("_min") else max(a, b)
