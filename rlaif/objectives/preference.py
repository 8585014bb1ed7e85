"""Losses over preferred and rejected answers: the reward model's (Bradley-Terry) and direct preference optimisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlaif.objectives.masked import per_unit, wide, zero_outside
from rlaif.objectives.metrics import DeviceMetrics, totals


def bradley_terry(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    centering: Literal["none", "mean_abs", "squared"],
    coef: float,
    denominator: float,
    required_margins: Tensor | None = None,
) -> tuple[Tensor, DeviceMetrics]:
    """Return sum -log sigmoid(s_w - s_l - m) / denominator plus `coef` times the centering term, and metrics.

    Args:
        chosen_scores: s_w, scores of the preferred answers [P], in reward units.
        rejected_scores: s_l, scores of the rejected answers [P].
        centering: The term that keeps scores near zero, see `_centering`.
        coef: Factor of that term.
        denominator: Pairs in the whole optimizer step.
        required_margins: m, the least difference of the scores [P] (Touvron et al. 2023, Llama 2, eq. 2); 0 if
            None.

    The metric `accuracy` counts s_w > s_l: a tie is wrong.
    """
    chosen, rejected = wide(chosen_scores), wide(rejected_scores)
    difference = chosen - rejected
    excess = difference if required_margins is None else difference - wide(required_margins)
    pair_loss = -logsigmoid(excess)
    center = _centering(chosen, rejected, centering)
    loss = per_unit(pair_loss.sum() + coef * center, denominator)
    metrics = totals(
        torch.ones_like(pair_loss),
        preference_loss=pair_loss,
        accuracy=chosen > rejected,
        margin=difference,
        score=(chosen + rejected) / 2,
        score_chosen=chosen,
        score_rejected=rejected,
    )
    pairs = center.new_full((), len(pair_loss), dtype=torch.float64)
    metrics["centering"] = (coef * center.detach().double(), pairs)
    return loss, metrics


def _centering(chosen: Tensor, rejected: Tensor, kind: str) -> Tensor:
    """Return the centering term times the number of pairs, so that dividing by pairs gives the published mean.

    mean_abs: |mean(s_w + s_l)| (VLM-RLAIF). Its mean is over this micro-batch: the one loss here that depends on how
    a batch is split. squared: mean of s^2 over the 2 P scores (SafeSora).
    """
    if kind == "mean_abs":
        return (chosen + rejected).sum().abs()
    if kind == "squared":
        return (chosen**2 + rejected**2).sum() / 2
    return chosen.new_zeros(())


def sequence_logprobs(logp: Tensor, mask: Tensor, weights: Tensor | None = None, average: bool = False) -> Tensor:
    """Return the log-prob of each answer: sum_t w_t logp_t over the mask, divided by sum_t w_t if `average`. [B, T] -> [B].

    weights [B, T] (1 if None) stress the tokens that a correction changed (RLHF-V, eq. 5). The result of a row without
    tokens is 0.
    """
    weights = zero_outside(torch.ones_like(wide(logp)) if weights is None else wide(weights), mask)
    total = (weights * zero_outside(wide(logp), mask)).sum(-1)
    if not average:
        return total
    norm = weights.sum(-1)
    return total / torch.where(norm > 0, norm, 1.0)


def dpo(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    loss_type: Literal["sigmoid", "hinge"],
    denominator: float,
) -> tuple[Tensor, DeviceMetrics]:
    """Return the loss of direct preference optimisation, and metrics.

    sigmoid: sum -log sigmoid(m) / denominator (Rafailov et al. 2023, eq. 7); hinge: sum max(0, 1 - m) / denominator (Zhao
    et al. 2023). Log-probs are of whole answers [P], in nats; zeros as reference make the loss reference-free.
    denominator: pairs in the whole optimizer step.
    """
    # m = beta ((logp_w - ref_w) - (logp_l - ref_l))
    chosen = beta * (wide(chosen_logp) - wide(ref_chosen).detach())
    rejected = beta * (wide(rejected_logp) - wide(ref_rejected).detach())
    margin = chosen - rejected
    pair_loss = -logsigmoid(margin) if loss_type == "sigmoid" else (1 - margin).clamp(min=0)
    metrics = totals(
        torch.ones_like(pair_loss),
        preference_loss=pair_loss,
        accuracy=chosen > rejected,
        margin=margin,
        reward_chosen=chosen,
        reward_rejected=rejected,
    )
    return per_unit(pair_loss.sum(), denominator), metrics
