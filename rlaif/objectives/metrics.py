"""Metrics that add up exactly: a micro-batch reports (sum, count), the mean is taken once at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from rlaif.objectives.masked import zero_outside

Metrics = dict[str, tuple[float, float]]
"""Name -> (sum, count). Names that end in `_min` or `_max` hold (extreme, count) and are reduced by min or max."""


def totals(mask: Tensor, **values: Tensor) -> Metrics:
    """Return (sum, count) of each tensor over the mask. All have the mask's shape. Synchronises with the device once."""
    sums = []
    for value in values.values():
        sums.append(zero_outside(value.detach().double(), mask).sum())
    # One `tolist` of a stacked tensor waits for the device once, a `float` of each sum would wait once per metric.
    *numbers, count = torch.stack([*sums, mask.bool().sum().double()]).tolist()
    return {name: (total, count) for name, total in zip(values, numbers, strict=True)}


def extremes(name: str, x: Tensor, mask: Tensor) -> Metrics:
    """Return `<name>_min` and `<name>_max` of `x` over the mask: (inf, 0) and (-inf, 0) for an empty mask."""
    values = x.detach()[mask.bool()]
    count = float(values.numel())
    # `aminmax` of an empty tensor raises.
    low, high = torch.stack(values.aminmax()).tolist() if count else (torch.inf, -torch.inf)
    return {f"{name}_min": (low, count), f"{name}_max": (high, count)}


def merge(parts: Iterable[Metrics]) -> Metrics:
    """Return the metrics of all parts (micro-batches, ranks) together. A part may lack some names."""
    merged: Metrics = {}
    for part in parts:
        for name, (value, count) in part.items():
            total, total_count = merged.get(name, (_neutral(name), 0.0))
            merged[name] = (_join(name, total, value), total_count + count)
    return merged


def mean_metrics(metrics: Metrics) -> dict[str, float]:
    """Return the mean (or the extreme) by name, without names that counted nothing."""
    means = {}
    for name, (value, count) in metrics.items():
        if count:
            means[name] = value if _is_extreme(name) else value / count
    return means


def _is_extreme(name: str) -> bool:
    return name.endswith(("_min", "_max"))


def _neutral(name: str) -> float:
    """Return the value that changes nothing when it is joined."""
    if name.endswith("_min"):
        return torch.inf
    if name.endswith("_max"):
        return -torch.inf
    return 0.0


def _join(name: str, a: float, b: float) -> float:
    # NaN must stay NaN: Python's min and max drop a NaN that comes second, its sum with anything is NaN.
    if not _is_extreme(name) or math.isnan(a) or math.isnan(b):
        return a + b
    return min(a, b) if name.endswith("_min") else max(a, b)
