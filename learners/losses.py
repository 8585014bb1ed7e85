"""The objectives as a learner step sees them: (model outputs, batch, denominator) -> (loss, metrics)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from learners.learner import Loss, Unit
from rlaif.config.schema import Ppo, Reward
from rlaif.models.batch import Batch
from rlaif.objectives.metrics import Metrics
from rlaif.objectives.policy import ppo_policy_loss, ratios
from rlaif.objectives.preference import bradley_terry
from rlaif.objectives.slots import filled, spread
from rlaif.objectives.supervised import sft_loss
from rlaif.objectives.value import value_loss


def tokens(unit: Unit) -> float:
    """Trained tokens of a unit: the denominator of token losses."""
    return float(sum(item.mask.sum() for item in unit))


def counting(config: Ppo) -> Callable[[Unit], float]:
    """The denominator of PPO's losses: a unit's trained tokens, or all slots of its answers (`ppo.loss_mean`)."""
    slots = config.sampling.max_tokens
    return tokens if config.loss_mean == "tokens" else lambda unit: float(slots * len(unit))


def pairs(unit: Unit) -> float:
    """The denominator of preference losses."""
    return 1.0


def supervised(outputs: dict[str, Tensor], batch: Batch, denominator: float) -> tuple[Tensor, Metrics]:
    return sft_loss(outputs["logprobs"], batch.mask, denominator)


def preference(config: Reward) -> Loss:
    """Bradley-Terry on a batch whose first half is preferred to its second."""

    def loss(outputs: dict[str, Tensor], batch: Batch, denominator: float) -> tuple[Tensor, Metrics]:
        chosen, rejected = outputs["score"].chunk(2)
        return bradley_terry(chosen, rejected, config.centering, config.centering_coef, denominator)

    return loss


def policy(config: Ppo, truncated_importance: bool, seen: list[tuple[Tensor, Tensor]]) -> Loss:
    """Clipped policy loss. Extras: old_logprobs, advantages, after_video, and importance where engine and learner disagree.

    With `loss_mean: slots` these reach over all slots; behind an answer both log-probs are 0.
    seen: collects (ratios, whether after a video) of every micro-batch's tokens, for their quantiles.
    """

    def loss(outputs: dict[str, Tensor], batch: Batch, denominator: float) -> tuple[Tensor, Metrics]:
        logp, entropy, mask = outputs["logprobs"], outputs["entropy"], batch.mask
        if config.loss_mean == "slots":
            logp, entropy, mask = (filled(x, config.sampling.max_tokens) for x in (logp, entropy, mask))
        ratio = ratios(logp.detach(), batch.extras["old_logprobs"], mask)
        on, after_video = mask.bool(), batch.extras["after_video"][:, None].expand_as(mask)
        seen.append((ratio[on].cpu(), after_video[on].cpu()))
        return ppo_policy_loss(
            logp,
            batch.extras["old_logprobs"],
            batch.extras["advantages"],
            torch.ones_like(mask) if config.loss_mean == "slots" else mask,
            config.clip,
            denominator,
            importance=batch.extras["importance"] if truncated_importance else None,
            importance_cap=config.importance_cap or math.inf,
            entropy=entropy,
            entropy_coef=config.entropy_coef,
        )

    return loss


def critic(config: Ppo, scale: float | None) -> Loss:
    """Clipped value loss. Extras: values (at sampling time) and returns; `scale` is the running spread of returns.

    With `loss_mean: slots` both reach over all slots, and the sequences end with their padding tokens.
    """
    scale = 1.0 if config.value_clip_unit == "absolute" else scale

    def loss(outputs: dict[str, Tensor], batch: Batch, denominator: float) -> tuple[Tensor, Metrics]:
        old, returns, values, mask = batch.extras["values"], batch.extras["returns"], outputs["values"], batch.mask
        if config.loss_mean == "slots":
            values = spread(values, batch.valid.sum(1), config.sampling.max_tokens)
            mask = torch.ones_like(returns)
        value, metrics = value_loss(values, old, returns, mask, denominator, config.value_clip, scale)
        return config.value_coef * value, metrics

    return loss
