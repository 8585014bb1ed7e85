"""The objectives as a learner step sees them: (model outputs, batch, denominator) -> (loss, metrics)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from learners.learner import Loss, Unit
from rlaif.config.schema import Ppo, Reward
from rlaif.models.batch import Batch
from rlaif.objectives.metrics import Metrics, merge
from rlaif.objectives.policy import ppo_policy_loss, ratios
from rlaif.objectives.preference import bradley_terry
from rlaif.objectives.slots import PpoSlots
from rlaif.objectives.supervised import sft_loss
from rlaif.objectives.value import value_loss


def tokens(unit: Unit) -> float:
    """Trained tokens of a unit, each as often as its extra `weight` says (else once): the denominator of token losses."""
    return float(sum(item.extras.get("weight", item.mask).sum() for item in unit))


def counting(config: Ppo) -> Callable[[Unit], float]:
    """The denominator of PPO's losses: a unit's trained tokens, or all slots of its answers (`ppo.loss_mean`)."""
    total = PpoSlots.of(config).losses.total
    return tokens if total is None else lambda unit: float(total * len(unit))


def pairs(unit: Unit) -> float:
    """The denominator of preference losses."""
    return 1.0


def supervised(outputs: dict[str, Tensor], batch: Batch, denominator: float) -> tuple[Tensor, Metrics]:
    return sft_loss(outputs["logprobs"], batch.mask, denominator, batch.extras.get("weight"))


def preference(config: Reward) -> Loss:
    """Bradley-Terry on a batch whose halves are compared, pair by pair: the sum over dimensions, per pair of the step.

    Extras `sign/<dimension>`: 1 where the first half's answer is preferred, -1 where the second half's is, 0 where nobody
    compared them, which then takes no part; `margin/<dimension>`. Without them the first half is preferred throughout.
    Metrics of several dimensions begin with their names; `<dimension>_share` is the share of pairs that have it.
    """

    def loss(outputs: dict[str, Tensor], batch: Batch, denominator: float) -> tuple[Tensor, Metrics]:
        scores = outputs["score"].reshape(len(outputs["score"]), -1)
        parts = [
            _compared(config, name, scores[:, column], batch.extras, denominator)
            for column, name in enumerate(config.dimensions)
        ]
        if len(parts) == 1:
            return parts[0]
        pairs = len(scores) / 2
        named = [
            {f"{name}_{key}": value for key, value in found.items()} | {f"{name}_share": (found["accuracy"][1], pairs)}
            for name, (_, found) in zip(config.dimensions, parts, strict=True)
        ]
        pooled = merge({key: found[key] for key in ("accuracy", "preference_loss")} for _, found in parts)
        return torch.stack([value for value, _ in parts]).sum(), merge([pooled, *named])

    return loss


def _compared(
    config: Reward, dimension: str, scores: Tensor, extras: dict[str, Tensor], denominator: float
) -> tuple[Tensor, Metrics]:
    """One dimension's loss. scores [2 P]."""
    first, second = scores.chunk(2)
    signs = extras.get(f"sign/{dimension}", torch.ones_like(scores))[: len(first)]
    known = signs != 0
    better = torch.where(signs > 0, first, second)[known]
    worse = torch.where(signs > 0, second, first)[known]
    wanted = None
    if config.margin == "record":
        wanted = config.margin_coef * extras[f"margin/{dimension}"][: len(first)][known]
    return bradley_terry(better, worse, config.centering, config.centering_coef, denominator, wanted)


def policy(config: Ppo, truncated_importance: bool, seen: list[tuple[Tensor, Tensor]]) -> Loss:
    """Clipped policy loss. Extras: old_logprobs, advantages, after_video, and importance where engine and learner disagree.

    With `loss_mean: slots` these reach over all slots; behind an answer both log-probs are 0.
    seen: collects (ratios, whether after a video) of every micro-batch's tokens, for their quantiles.
    """
    slots = PpoSlots.of(config).losses

    def loss(outputs: dict[str, Tensor], batch: Batch, denominator: float) -> tuple[Tensor, Metrics]:
        logp, entropy, mask = slots.fill(outputs["logprobs"]), slots.fill(outputs["entropy"]), slots.fill(batch.mask)
        ratio = ratios(logp.detach(), batch.extras["old_logprobs"], mask)
        on, after_video = mask.bool(), batch.extras["after_video"][:, None].expand_as(mask)
        seen.append((ratio[on].cpu(), after_video[on].cpu()))
        return ppo_policy_loss(
            logp,
            batch.extras["old_logprobs"],
            batch.extras["advantages"],
            slots.counted(mask),
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
    slots = PpoSlots.of(config).losses
    scale = 1.0 if config.value_clip_unit == "absolute" else scale

    def loss(outputs: dict[str, Tensor], batch: Batch, denominator: float) -> tuple[Tensor, Metrics]:
        old, returns = batch.extras["values"], batch.extras["returns"]
        values = slots.repeat_last(outputs["values"], batch.valid.sum(1))
        mask = slots.counted(slots.fill(batch.mask))
        value, metrics = value_loss(values, old, returns, mask, denominator, config.value_clip, scale)
        return config.value_coef * value, metrics

    return loss
