"""The clipped policy loss of PPO, and statistics of its ratios."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlaif.objectives.kl import EXPONENT_LIMIT, k1, k3
from rlaif.objectives.masked import masked_sum, per_unit, wide, zero_outside
from rlaif.objectives.metrics import DeviceMetrics, extremes, totals


def ratios(logp: Tensor, old_logp: Tensor, mask: Tensor) -> Tensor:
    """Return pi / pi_old per token [B, T], 1 on padding. The exponent is cut at +-20, beyond which no gradient flows."""
    log_ratio = zero_outside(wide(logp) - wide(old_logp).detach(), mask)
    return log_ratio.clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT).exp()


def ppo_policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    denominator: float,
    *,
    importance: Tensor | None = None,
    importance_cap: float = 2.0,
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
) -> tuple[Tensor, DeviceMetrics]:
    """Return the clipped surrogate loss of PPO (Schulman et al. 2017, eq. 7), a scalar, and its metrics.

    Args:
        logp: Log-probs under the policy that trains [B, T], nats; the only input that receives a gradient besides `entropy`.
        old_logp: Log-probs under the policy that the ratio starts from [B, T].
        advantages: [B, T].
        mask: [B, T], true on the tokens that count.
        clip: The ratio is clipped to 1 - clip and 1 + clip.
        denominator: Tokens that count in the whole optimizer step, over all ranks and micro-batches.
        importance: pi_old as the learner computes it over what the engine sampled from [B, T] (see `ratios`). Each token's
            loss is weighted by min(importance, cap), a constant to the gradient (truncated importance sampling, Ionides 2008).
        importance_cap: The cap of these weights.
        entropy: Entropy of each token's distribution [B, T], nats.
        entropy_coef: Factor of the mean entropy, which is subtracted from the loss.
    """
    measured: dict[str, Tensor] = {}
    # L = -sum min(rho A, clip(rho, 1 - clip, 1 + clip) A) / denominator
    ratio = ratios(logp, old_logp, mask)
    advantages = zero_outside(wide(advantages), mask).detach()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    token_loss = -torch.minimum(unclipped, clipped)
    if importance is not None:
        importance = wide(importance).detach()
        token_loss = token_loss * zero_outside(importance.clamp(max=importance_cap), mask)
        measured |= {"importance": importance, "importance_capped": importance > importance_cap}
    loss = per_unit(masked_sum(token_loss, mask), denominator)
    if entropy is not None:
        measured["entropy"] = entropy
        if entropy_coef:
            loss = loss - entropy_coef * per_unit(masked_sum(entropy, mask), denominator)
    measured |= {"policy_loss": token_loss, "clip_fraction": clipped < unclipped, "ratio": ratio}
    measured |= {"approx_kl": k3(wide(old_logp), wide(logp)), "approx_kl_k1": k1(wide(old_logp), wide(logp))}
    return loss, totals(mask, **measured) | extremes("ratio", ratio, mask)


def ratio_quantiles(
    ratio: Tensor, mask: Tensor, after_video: Tensor, quantiles: Sequence[float] = (0.01, 0.5, 0.99)
) -> dict[str, float]:
    """Return quantiles of the ratios of text and of after-video tokens: {"ratio_text_p50": ..., "ratio_video_p50": ...}.

    ratio, mask and after_video have any one shape. Quantiles of micro-batches don't add up: gather their ratios first. A
    kind without tokens has no quantiles.
    """
    on = mask.bool()
    video = after_video.bool()
    named = {}
    for kind, selection in (("text", on & ~video), ("video", on & video)):
        values = ratio.detach()[selection].double().cpu().numpy()
        if not values.size:
            continue
        for q in quantiles:
            named[f"ratio_{kind}_p{100 * q:g}"] = float(np.quantile(values, q))
    return named
