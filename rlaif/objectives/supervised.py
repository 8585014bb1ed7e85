"""Supervised fine-tuning: cross-entropy of the answer's tokens."""

from __future__ import annotations

from torch import Tensor

from rlaif.objectives.masked import masked_sum, per_unit
from rlaif.objectives.metrics import Metrics, totals


def sft_loss(logp: Tensor, mask: Tensor, denominator: float) -> tuple[Tensor, Metrics]:
    """-sum logp / denominator, nats per token.

    logp [B, T]: log-prob of each target token; mask [B, T]: tokens to learn; denominator: such tokens in the whole
    optimizer step.
    """
    return per_unit(-masked_sum(logp, mask), denominator), totals(mask, nll=-logp)
