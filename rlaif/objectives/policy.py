"""The clipped policy loss of PPO and what one watches about its ratios."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlaif.objectives.kl import EXPONENT_LIMIT, k1, k3
from rlaif.objectives.masked import keep, masked_sum, per_unit, wide
from rlaif.objectives.metrics import Metrics, extremes, totals


def ratios(logp: Tensor, old_logp: Tensor, mask: Tensor) -> Tensor:
    """pi / pi_old per token [B, T]; 1 on padding. The exponent is cut at +-20, where no gradient flows any more."""
    return keep(wide(logp) - wide(old_logp).detach(), mask).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT).exp()


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
) -> tuple[Tensor, Metrics]:
    """-sum min(rho A, clip(rho, 1 - clip, 1 + clip) A) / denominator (Schulman et al. 2017, eq. 7).

    logp (with gradient), old_logp, advantages, mask: [B, T]; denominator: response tokens in the whole optimizer step.
    importance [B, T]: pi_old as the learner computes it over what the engine sampled from (see `ratios`); each token's
    loss is weighted by min(importance, cap), a constant to the gradient (truncated importance sampling, Ionides 2008).
    entropy [B, T]: nats; `entropy_coef` times its mean is subtracted from the loss.
    """
    ratio = ratios(logp, old_logp, mask)
    advantages = keep(wide(advantages), mask).detach()
    free, clipped = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    token_loss = -torch.minimum(free, clipped)
    seen = {}
    if importance is not None:
        importance = wide(importance).detach()
        token_loss = token_loss * keep(importance.clamp(max=importance_cap), mask)
        seen = {"importance": importance, "importance_capped": importance > importance_cap}
    loss = per_unit(masked_sum(token_loss, mask), denominator)
    if entropy is not None:
        seen["entropy"] = entropy
    if entropy is not None and entropy_coef:
        loss = loss - entropy_coef * per_unit(masked_sum(entropy, mask), denominator)
    seen |= {"policy_loss": token_loss, "clip_fraction": clipped < free, "ratio": ratio}
    kl = {"approx_kl": k3(wide(old_logp), wide(logp)), "approx_kl_k1": k1(wide(old_logp), wide(logp))}
    return loss, totals(mask, **seen, **kl) | extremes("ratio", ratio, mask)


def ratio_quantiles(
    ratio: Tensor, mask: Tensor, after_video: Tensor, quantiles: Sequence[float] = (0.01, 0.5, 0.99)
) -> dict[str, float]:
    """Quantiles of the ratios of text and of after-video tokens: {"ratio_text_p50": ..., "ratio_video_p50": ...}.

    ratio, mask, after_video: any one shape. Quantiles of micro-batches don't add up: gather their ratios first. A kind
    without tokens is left out.
    """
    on, video = mask.bool(), after_video.bool()
    found = {}
    for kind, chosen in (("text", on & ~video), ("video", on & video)):
        values = ratio.detach()[chosen].double().cpu().numpy()
        for q in quantiles if values.size else ():
            found[f"ratio_{kind}_p{100 * q:g}"] = float(np.quantile(values, q))
    return found
