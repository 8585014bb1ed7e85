"""The objectives of learner steps: the loss (model outputs, batch, denominator) -> `LossOutput`, and its denominator."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from learners.learner import Objective, Unit
from learners.outputs import LossOutput, TokenRatios
from rlaif.config.schema import Ppo, Reward
from rlaif.models.batch import Batch
from rlaif.objectives.metrics import DeviceMetrics
from rlaif.objectives.policy import ppo_policy_loss, ratios
from rlaif.objectives.preference import bradley_terry
from rlaif.objectives.slots import PpoSlots
from rlaif.objectives.supervised import sft_loss
from rlaif.objectives.value import value_loss


def count_tokens(unit: Unit) -> float:
    """Return a unit's trained tokens, each as often as its extra `weight` says (else once): the denominator of token losses."""
    total = 0
    for item in unit:
        total += item.extras.get("weight", item.mask).sum()
    return float(total)


def ppo_denominator(config: Ppo) -> Callable[[Unit], float]:
    """Return what counts a unit in PPO's losses: its trained tokens, or all slots of its answers (`ppo.loss_mean`)."""
    total = PpoSlots.of(config).losses.total
    if total is None:
        return count_tokens

    def count_slots(unit: Unit) -> float:
        return float(total * len(unit))

    return count_slots


def count_pairs(unit: Unit) -> float:
    """Return 1: a unit of the preference losses is one pair."""
    return 1.0


def supervised_loss(outputs: dict[str, Tensor], batch: Batch, denominator: float) -> LossOutput:
    """Compute the cross-entropy of the trained tokens. Extras: `weight` of each token, 1 without it."""
    weight = batch.extras.get("weight")
    loss, metrics = sft_loss(outputs["logprobs"], batch.mask, denominator, weight)
    return LossOutput(loss, metrics)


SUPERVISED = Objective("logprobs", supervised_loss, count_tokens)


def preference_objective(config: Reward) -> Objective:
    """Return Bradley-Terry on a batch whose halves are compared, pair by pair: the sum over dimensions, per pair of the step.

    Extras `sign/<dimension>`: 1 if the first half's answer is preferred, -1 if the second half's is, 0 for a pair that was
    not compared in that dimension, which then takes no part; `margin/<dimension>`. Without them the first half is
    preferred throughout.
    Metrics of several dimensions begin with their names; `<dimension>_share` is the share of pairs that have it.
    """

    def preference_loss(outputs: dict[str, Tensor], batch: Batch, denominator: float) -> LossOutput:
        # [2 P, K], also if the model has one head and gives [2 P]
        scores = outputs["score"]
        scores = scores.reshape(len(scores), -1)
        losses: list[Tensor] = []
        metrics: list[DeviceMetrics] = []
        for column, name in enumerate(config.dimensions):
            own = scores[:, column]
            loss, measured = _dimension_loss(config, name, own, batch.extras, denominator)
            losses.append(loss)
            metrics.append(measured)
        if len(losses) == 1:
            return LossOutput(losses[0], metrics[0])
        # as a tensor like all other numbers, which are read from the device together
        pairs = scores.new_full((), len(scores) / 2, dtype=torch.float64)
        by_dimension = dict(zip(config.dimensions, metrics, strict=True))
        merged = _merge_dimensions(by_dimension, pairs)
        return LossOutput(torch.stack(losses).sum(), merged)

    return Objective("score", preference_loss, count_pairs)


def _dimension_loss(
    config: Reward, dimension: str, scores: Tensor, extras: dict[str, Tensor], denominator: float
) -> tuple[Tensor, DeviceMetrics]:
    """Return one dimension's loss and metrics. scores [2 P]."""
    first, second = scores.chunk(2)
    always_first = torch.ones_like(scores)
    # both members of a pair have the pair's extras: the first half's are read
    signs = extras.get(f"sign/{dimension}", always_first)[: len(first)]
    compared = signs != 0
    better = torch.where(signs > 0, first, second)[compared]
    worse = torch.where(signs > 0, second, first)[compared]
    margins = None
    if config.margin == "record":
        recorded = extras[f"margin/{dimension}"][: len(first)]
        margins = config.margin_coef * recorded[compared]
    return bradley_terry(better, worse, config.centering, config.centering_coef, denominator, margins)


def _merge_dimensions(metrics: dict[str, DeviceMetrics], pairs: Tensor) -> DeviceMetrics:
    """Return accuracy and loss of all comparisons together, then every metric under `<dimension>_<name>`.

    pairs: how many pairs the batch has, compared in that dimension or not.
    """
    merged: DeviceMetrics = {}
    for key in ("accuracy", "preference_loss"):
        total, count = 0.0, 0.0
        # one after the other, as metrics of micro-batches are added: `Tensor.sum` may choose another order
        for part in metrics.values():
            own_total, own_count = part[key]
            total = total + own_total
            count = count + own_count
        merged[key] = (total, count)
    for dimension, part in metrics.items():
        for key, value in part.items():
            merged[f"{dimension}_{key}"] = value
        _, compared = part["accuracy"]
        merged[f"{dimension}_share"] = (compared, pairs)
    return merged


def policy_objective(config: Ppo, truncated_importance: bool = False) -> Objective:
    """Return the clipped policy loss, which also reports the ratio of every token.

    Extras: old_logprobs, advantages, after_video, and importance if engine and learner disagree.
    With `loss_mean: slots` these reach over all slots; after the end of an answer both log-probs are 0.
    truncated_importance: weight each token by its importance, at most `ppo.importance_cap`.
    """
    slots = PpoSlots.of(config).losses

    def policy_loss(outputs: dict[str, Tensor], batch: Batch, denominator: float) -> LossOutput:
        logp = slots.fill(outputs["logprobs"])
        mask = slots.fill(batch.mask)
        old_logprobs = batch.extras["old_logprobs"]
        after_video = batch.extras["after_video"][:, None].expand_as(mask)
        # of response tokens only, also if the loss counts all slots
        ratio = ratios(logp.detach(), old_logprobs, mask)
        token_ratios = TokenRatios(ratio, mask.bool(), after_video)
        value, metrics = ppo_policy_loss(
            logp,
            old_logprobs,
            batch.extras["advantages"],
            slots.counted(mask),
            config.clip,
            denominator,
            importance=batch.extras["importance"] if truncated_importance else None,
            importance_cap=config.importance_cap or math.inf,
            entropy=slots.fill(outputs["entropy"]),
            entropy_coef=config.entropy_coef,
        )
        return LossOutput(value, metrics, token_ratios)

    return Objective("logprobs", policy_loss, ppo_denominator(config))


def critic_objective(config: Ppo, scale: float | None) -> Objective:
    """Return the clipped value loss. Extras: values (at sampling time) and returns.

    With `loss_mean: slots` both reach over all slots, and the sequences end with their padding tokens.
    scale: the running spread of returns, the unit of the clip unless `ppo.value_clip_unit` is absolute.
    """
    slots = PpoSlots.of(config).losses
    if config.value_clip_unit == "absolute":
        scale = 1.0

    def critic_loss(outputs: dict[str, Tensor], batch: Batch, denominator: float) -> LossOutput:
        lengths = batch.valid.sum(1)
        values = slots.repeat_last(outputs["values"], lengths)
        mask = slots.counted(slots.fill(batch.mask))
        old_values = batch.extras["values"]
        returns = batch.extras["returns"]
        value, metrics = value_loss(values, old_values, returns, mask, denominator, config.value_clip, scale)
        return LossOutput(config.value_coef * value, metrics)

    return Objective("values", critic_loss, ppo_denominator(config))
