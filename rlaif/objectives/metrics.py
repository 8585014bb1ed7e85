"""Metrics that add up exactly: a micro-batch reports (sum, count), the mean is taken once at the end.

A micro-batch's sums stay on its device until the step is over: reading one waits for all kernels before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from rlaif.objectives.masked import zero_outside

Metrics = dict[str, tuple[float, float]]
"""Name -> (sum, count). Names that end in `_min` or `_max` hold (extreme, count) and are reduced by min or max."""

DeviceMetrics = dict[str, tuple[Tensor, Tensor]]
"""The same of one micro-batch, as float64 scalars on the device that computes them: see `read_metrics`."""


def totals(mask: Tensor, **values: Tensor) -> DeviceMetrics:
    """Return (sum, count) of each tensor over the mask. All have the mask's shape. Does not wait for the device."""
    count = mask.bool().sum().double()
    metrics: DeviceMetrics = {}
    for name, value in values.items():
        metrics[name] = (zero_outside(value.detach().double(), mask).sum(), count)
    return metrics


def extremes(name: str, x: Tensor, mask: Tensor) -> DeviceMetrics:
    """Return `<name>_min` and `<name>_max` of `x` over the mask: (inf, 0) and (-inf, 0) for an empty mask.

    A NaN on the mask makes both NaN. Does not wait for the device.
    """
    counted = mask.bool()
    count = counted.sum().double()
    low = _with_neutral(x, counted, torch.inf).amin()
    high = _with_neutral(x, counted, -torch.inf).amax()
    return {f"{name}_min": (low, count), f"{name}_max": (high, count)}


def _with_neutral(x: Tensor, counted: Tensor, neutral: float) -> Tensor:
    """Return `x` flat and in float64, with `neutral` in the slots that do not count and once more at the end."""
    # Filling keeps the size. Indexing by the mask would wait for the device, which alone knows how many slots count.
    values = x.detach().double().masked_fill(~counted, neutral).flatten()
    # `amin` of an empty tensor raises.
    return torch.cat([values, values.new_full((1,), neutral)])


def read_metrics(*parts: DeviceMetrics) -> Metrics:
    """Return the metrics of all micro-batches together, added in their order. Waits for the device once."""
    scalars: list[Tensor] = []
    for part in parts:
        for pair in part.values():
            scalars += pair
    # One `tolist` of a stacked tensor waits for the device once, a `float` of each sum would wait once per metric.
    numbers = iter(torch.stack(scalars).tolist() if scalars else ())
    host_parts: list[Metrics] = []
    for part in parts:
        host_parts.append({name: (next(numbers), next(numbers)) for name in part})
    return merge(host_parts)


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
