"""The critic's loss and how much of the returns it explains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlaif.objectives.masked import Moments, keep, masked_sum, per_unit, wide
from rlaif.objectives.metrics import Metrics, totals


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    denominator: float,
    value_clip: float | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Metrics]:
    """0.5 sum max((V - R)^2, (clip(V, V_old +- range) - R)^2) / denominator (OpenAI baselines' PPO2).

    values (with gradient), old_values (at sampling time), returns, mask: [B, T]. range = value_clip * scale, `scale`
    the running standard deviation of returns: an absolute range would stop a critic whose returns are large. Unclipped
    when either is None. denominator: response tokens in the whole optimizer step.
    """
    values, old_values, returns = (keep(wide(x), mask) for x in (values, old_values.detach(), returns.detach()))
    free = (values - returns) ** 2
    worst, cut = free, torch.zeros_like(free)
    if value_clip is not None and scale is not None:
        limit = value_clip * scale
        change = values - old_values
        outside = change.abs() > limit
        # `old + (v - old)` is not v in floating point: only what left the range is replaced, and counted as clipped
        near = torch.where(outside, old_values + change.clamp(-limit, limit), values)
        clipped = (near - returns) ** 2
        worst, cut = torch.maximum(free, clipped), outside & (clipped > free)
    token_loss = 0.5 * worst
    # in float64 before the squares: in float32, returns around 1000 lose their variance to rounding
    exact = returns.double()
    error = exact - old_values.double()
    metrics = totals(
        mask,
        value_loss=token_loss,
        value_clip_fraction=cut,
        value=values,
        returns=exact,
        returns_square=exact**2,
        value_error=error,
        value_error_square=error**2,
    )
    return per_unit(masked_sum(token_loss, mask), denominator), metrics


def explained_variance(metrics: Metrics) -> float | None:
    """Return 1 - Var(R - V_old) / Var(R) from `value_loss` metrics merged over the step.

    None if the returns do not vary beyond rounding, or if either variance is not finite. The old values are used because
    the new ones have already been fitted to these very returns.
    """
    returns, error = _moments(metrics, "returns"), _moments(metrics, "value_error")
    if returns.scale is None or not math.isfinite(error.var):
        return None
    return 1.0 - error.var / returns.var


def errors(metrics: Metrics) -> dict[str, float]:
    """Return how far the critic was off, and how far its baseline: predicting every return by the mean of the batch.

    From `value_loss` metrics merged over the step; root mean squares, in units of the return. They tell a critic that
    explains little from returns in which little is left to explain.
    """
    error, returns = _moments(metrics, "value_error"), _moments(metrics, "returns")
    if not error.count:
        return {}
    return {"error_rms": (error.squares / error.count) ** 0.5, "mean_baseline_rms": returns.var**0.5}


def _moments(metrics: Metrics, name: str) -> Moments:
    total, count = metrics[name]
    return Moments(count, total, metrics[f"{name}_square"][0])
