"""Losses over preferred and rejected answers: the reward model's (Bradley-Terry) and direct preference optimisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlaif.objectives.masked import keep, per_unit, wide
from rlaif.objectives.metrics import Metrics, totals


def bradley_terry(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    centering: Literal["none", "mean_abs", "squared"],
    coef: float,
    denominator: float,
    wanted: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """sum -log sigmoid(s_w - s_l - m) / denominator, plus `coef` times a term that keeps scores near zero.

    scores [P] in reward units; denominator: pairs in the whole optimizer step. Accuracy is s_w > s_l: a tie is wrong.
    wanted: the margins m [P] by which the scores shall differ at least, 0 if None (Touvron et al. 2023, Llama 2, eq. 2).
    """
    chosen, rejected = wide(chosen_scores), wide(rejected_scores)
    difference = chosen - rejected
    pair_loss = -logsigmoid(difference if wanted is None else difference - wide(wanted))
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
    return loss, metrics | {"centering": (coef * float(center.detach()), float(len(pair_loss)))}


def _centering(chosen: Tensor, rejected: Tensor, kind: str) -> Tensor:
    """The centering term times the number of pairs, so that dividing by pairs gives the published mean.

    mean_abs: |mean(s_w + s_l)| (VLM-RLAIF). Its mean is over this micro-batch: the one loss here that depends on how
    a batch is split. squared: mean of s^2 over the 2 P scores (SafeSora).
    """
    if kind == "mean_abs":
        return (chosen + rejected).sum().abs()
    if kind == "squared":
        return (chosen**2 + rejected**2).sum() / 2
    return chosen.new_zeros(())


def sequence_logprobs(logp: Tensor, mask: Tensor, weights: Tensor | None = None, average: bool = False) -> Tensor:
    """Log-prob of each answer: sum_t w_t logp_t over the mask, divided by sum_t w_t if `average`. [B, T] -> [B].

    weights [B, T] (1 if None) stress the tokens that a correction changed (RLHF-V, eq. 5). 0 for an empty row.
    """
    weights = keep(torch.ones_like(wide(logp)) if weights is None else wide(weights), mask)
    total = (weights * keep(wide(logp), mask)).sum(-1)
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
) -> tuple[Tensor, Metrics]:
    """sum -log sigmoid(m) / denominator (Rafailov et al. 2023, eq. 7), or hinge: sum max(0, 1 - m) (Zhao et al. 2023).

    m = beta ((logp_w - ref_w) - (logp_l - ref_l)) from log-probs of whole answers [P], in nats; zeros as reference make
    it reference-free. denominator: pairs in the whole optimizer step.
    """
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
