"""The critic's loss, and how much of the returns the critic explains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlaif.objectives.masked import Moments, masked_sum, per_unit, wide, zero_outside
from rlaif.objectives.metrics import DeviceMetrics, Metrics, totals


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    denominator: float,
    value_clip: float | None = None,
    scale: float | None = None,
) -> tuple[Tensor, DeviceMetrics]:
    """Return the clipped value loss (OpenAI baselines' PPO2), a scalar, and its metrics.

    Args:
        values: What the critic predicts now [B, T], in units of the return; the only input that receives a gradient.
        old_values: What it predicted at sampling time [B, T].
        returns: [B, T].
        mask: [B, T], true on the tokens that count.
        denominator: Tokens that count in the whole optimizer step.
        value_clip: How far a prediction may move from the old one, in units of `scale`. Not clipped if either is None.
        scale: The running standard deviation of returns. An absolute range would stop a critic with large returns.
    """
    values = zero_outside(wide(values), mask)
    old_values = zero_outside(wide(old_values.detach()), mask)
    returns = zero_outside(wide(returns.detach()), mask)
    # L = 0.5 sum max((V - R)^2, (clip(V, V_old +- range) - R)^2) / denominator
    unclipped = (values - returns) ** 2
    worst = unclipped
    clip_decides = torch.zeros_like(unclipped)
    if value_clip is not None and scale is not None:
        limit = value_clip * scale
        change = values - old_values
        outside = change.abs() > limit
        # `old + (v - old)` is not v in floating point: replace, and count as clipped, only what left the range.
        near = torch.where(outside, old_values + change.clamp(-limit, limit), values)
        clipped = (near - returns) ** 2
        worst = torch.maximum(unclipped, clipped)
        clip_decides = outside & (clipped > unclipped)
    token_loss = 0.5 * worst
    loss = per_unit(masked_sum(token_loss, mask), denominator)
    fit = _fit(values, old_values, returns)
    return loss, totals(mask, value_loss=token_loss, value_clip_fraction=clip_decides, **fit)


def _fit(values: Tensor, old_values: Tensor, returns: Tensor) -> dict[str, Tensor]:
    """Return what `explained_variance` and `critic_errors` need, per token [B, T]."""
    # In float32, returns around 1000 lose their variance to rounding as soon as they are squared.
    exact = returns.double()
    error = exact - old_values.double()
    return {
        "value": values,
        "returns": exact,
        "returns_square": exact**2,
        "value_error": error,
        "value_error_square": error**2,
    }


def explained_variance(metrics: Metrics) -> float | None:
    """Return 1 - Var(R - V_old) / Var(R) from `value_loss` metrics merged over the step.

    None if the returns do not vary beyond rounding, or if either variance is not finite. The old values are used because
    the new ones have already been fitted to these very returns.
    """
    returns = _moments(metrics, "returns")
    error = _moments(metrics, "value_error")
    if returns.scale is None or not math.isfinite(error.var):
        return None
    return 1.0 - error.var / returns.var


def critic_errors(metrics: Metrics) -> dict[str, float]:
    """Return the critic's error and its baseline's (predicting every return by the batch mean), from merged metrics.

    Both are root mean squares in units of the return. They distinguish a critic that explains little from returns in
    which little is left to explain. Empty if nothing was counted.
    """
    error = _moments(metrics, "value_error")
    returns = _moments(metrics, "returns")
    if not error.count:
        return {}
    return {"error_rms": (error.squares / error.count) ** 0.5, "mean_baseline_rms": returns.var**0.5}


def _moments(metrics: Metrics, name: str) -> Moments:
    total, count = metrics[name]
    squares, _ = metrics[f"{name}_square"]
    return Moments(count, total, squares)
