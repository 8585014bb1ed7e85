"""Supervised fine-tuning: cross-entropy of the answer's tokens."""

from __future__ import annotations

from torch import Tensor

from rlaif.objectives.masked import masked_sum, per_unit
from rlaif.objectives.metrics import DeviceMetrics, totals


def sft_loss(
    logp: Tensor, mask: Tensor, denominator: float, weight: Tensor | None = None
) -> tuple[Tensor, DeviceMetrics]:
    """Return -sum w logp / denominator, nats per token, and the metric `nll` of the tokens of full weight.

    logp [B, T]: log-prob of each target token; mask [B, T]: tokens to learn; weight [B, T]: 1 each if None;
    denominator: tokens to learn in the whole optimizer step, or the sum of their weights.
    """
    if weight is None:
        return per_unit(-masked_sum(logp, mask), denominator), totals(mask, nll=-logp)
    # Tokens of the user's turns have a smaller weight (`sft.prompt_loss_weight`); `nll` is of answers alone.
    answers = mask * (weight == 1)
    return per_unit(-masked_sum(weight * logp, mask), denominator), totals(answers, nll=-logp)
