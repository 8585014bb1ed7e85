"""The objectives as a learner step sees them: (model outputs, batch, denominator) -> (loss, metrics)."""

from __future__ import annotations

from torch import Tensor

from learners.learner import Loss, Unit
from rlaif.config.schema import Ppo, Reward
from rlaif.models.batch import Batch
from rlaif.objectives.metrics import Metrics
from rlaif.objectives.policy import ppo_policy_loss, ratios
from rlaif.objectives.preference import bradley_terry
from rlaif.objectives.supervised import sft_loss
from rlaif.objectives.value import value_loss


def tokens(unit: Unit) -> float:
    """Trained tokens of a unit: the denominator of token losses."""
    return float(sum(item.mask.sum() for item in unit))


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

    seen: collects (ratios, whether after a video) of every micro-batch's tokens, for their quantiles.
    """

    def loss(outputs: dict[str, Tensor], batch: Batch, denominator: float) -> tuple[Tensor, Metrics]:
        on, after_video = batch.mask.bool(), batch.extras["after_video"][:, None].expand_as(batch.mask)
        ratio = ratios(outputs["logprobs"].detach(), batch.extras["old_logprobs"], batch.mask)
        seen.append((ratio[on].cpu(), after_video[on].cpu()))
        return ppo_policy_loss(
            outputs["logprobs"],
            batch.extras["old_logprobs"],
            batch.extras["advantages"],
            batch.mask,
            config.clip,
            denominator,
            importance=batch.extras["importance"] if truncated_importance else None,
            entropy=outputs["entropy"],
            entropy_coef=config.entropy_coef,
        )

    return loss


def critic(config: Ppo, scale: float | None) -> Loss:
    """Clipped value loss. Extras: values (at sampling time) and returns; `scale` is the running spread of returns."""

    def loss(outputs: dict[str, Tensor], batch: Batch, denominator: float) -> tuple[Tensor, Metrics]:
        old, returns = batch.extras["values"], batch.extras["returns"]
        return value_loss(outputs["values"], old, returns, batch.mask, denominator, config.value_clip, scale)

    return loss
