"""Supervised fine-tuning: cross-entropy of the answer's tokens."""

from __future__ import annotations

from torch import Tensor

from rlaif.objectives.masked import masked_sum, per_unit
from rlaif.objectives.metrics import Metrics, totals


def sft_loss(logp: Tensor, mask: Tensor, denominator: float, weight: Tensor | None = None) -> tuple[Tensor, Metrics]:
    """-sum w logp / denominator, nats per token.

    logp [B, T]: log-prob of each target token; mask [B, T]: tokens to learn; denominator: such tokens in the whole
    optimizer step, or the sum of their weights [B, T] (1 if None). The metric `nll` is of tokens of full weight.
    """
    if weight is None:
        return per_unit(-masked_sum(logp, mask), denominator), totals(mask, nll=-logp)
    answers = mask * (weight == 1)
    return per_unit(-masked_sum(weight * logp, mask), denominator), totals(answers, nll=-logp)
