"""PPO on one rank: experience -> advantages -> policy and critic steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from learners import losses
from learners.counters import PhaseClock
from learners.experience import (
    ExperienceTensors,
    compute_advantages,
    prepare_experience,
    recomputes_logprobs,
    with_padding,
)
from learners.learner import Learner, Unit
from learners.outputs import TokenRatios, token_rows
from learners.ppo_state import PpoState
from rlaif.config.schema import Ppo
from rlaif.models.encode import Encoded
from rlaif.models.packing import chunks
from rlaif.objectives.metrics import Metrics, merge
from rlaif.objectives.policy import ratio_quantiles
from rlaif.objectives.slots import PpoSlots
from rlaif.objectives.value import critic_errors, explained_variance
from rlaif.records import Experience
from rlaif.seeds import derive


def train_on(
    learner: Learner, state: PpoState, experience: Experience, config: Ppo, seed: int
) -> tuple[Metrics, list[dict]]:
    """Run one PPO iteration on this rank's part of the experience. All ranks call it together.

    Returns metrics (to be reduced over ranks) and, per sample, its key, KL (k1, nats) and mean advantage.
    """
    clock = PhaseClock()
    learner.counters.reset()
    tensors = prepare_experience(learner, experience, config)
    clock.lap("experience")
    items, reports = compute_advantages(learner, state, tensors, config)
    clock.lap("advantages")
    parts: list[Metrics] = [{"kl/coef": (state.kl.value, 1.0)}]
    # if all samples are from these weights, learner and engine differ by their arithmetic alone
    fresh = all(sample.policy_version == state.iteration for sample in experience.samples)
    recomputed = recomputes_logprobs(learner, config)
    if fresh and recomputed:
        parts.append(_recomputed_drift(tensors))
    update = PpoUpdate(learner, state, config, clock)
    parts.append(update.run(items, seed, fresh and not recomputed))
    state.iteration += 1
    # after the update: the next iteration is the first with the new coefficient
    _adapt_kl(learner, state, reports)
    parts += [clock.metrics(), learner.counters.metrics(len(experience))]
    return merge(parts), reports


def _adapt_kl(learner: Learner, state: PpoState, reports: Sequence[dict]) -> None:
    """Update the KL coefficient by the mean KL over all ranks' samples; those without a finite KL are left out. Collective."""
    own = [report["kl"] for report in reports]
    finite = list(filter(math.isfinite, own))
    total, count = learner.collectives.sum(sum(finite), float(len(finite)))
    if count:
        state.kl.update(total / count, int(count))


class PpoUpdate:
    """The policy and critic steps of one iteration, and what they report."""

    def __init__(self, learner: Learner, state: PpoState, config: Ppo, clock: PhaseClock):
        self.learner = learner
        self.state = state
        self.config = config
        self.clock = clock
        truncated_importance = recomputes_logprobs(learner, config) and config.importance_cap is not None
        self.policy_objective = losses.policy_objective(config, truncated_importance)
        self.critic_objective = losses.critic_objective(config, state.returns.scale)
        self.at = state.iteration if config.schedule_per == "iteration" else None
        """Place in the learning rate's schedule; None: each role's optimizer steps."""
        self.metrics: list[Metrics] = []
        self.ratios: list[TokenRatios] = []
        """The ratios of every policy step so far. They stay on the device: quantiles need the tokens of all steps."""

    def run(self, items: Sequence[Encoded], seed: int, compare_with_engine: bool) -> Metrics:
        """Run epochs of shuffled mini-batches. Stop early when the policy has moved `target_kl` from where it sampled.

        compare_with_engine: the ratios start from the engine's log-probs, by the very weights that the update starts with.
        """
        for units in self._minibatches(items, seed):
            if self.config.advantage == "gae":
                self.step_critic(units)
            if self.state.iteration < self.config.critic_warmup:
                continue
            # of the whole iteration, not of an epoch: afterwards the policy has moved
            first = not self.ratios
            if self.step_policy(units, compare_with_engine=first and compare_with_engine):
                self.metrics.append({"policy/early_stop": (1.0, 1.0)})
                break
        quantiles = _gathered_quantiles(self.learner, self.ratios)
        return merge([*self.metrics, quantiles])

    def step_critic(self, units: Sequence[Unit]) -> None:
        """Take one optimizer step of the critic."""
        slots = PpoSlots.of(self.config).losses
        padded = [(with_padding(self.learner, item, slots),) for (item,) in units]
        step = self.learner.step("critic", padded, self.critic_objective, self.at)
        self.metrics.append(_prefixed("critic", step.metrics))
        self.clock.lap("critic")

    def step_policy(self, units: Sequence[Unit], compare_with_engine: bool) -> bool:
        """Take one optimizer step of the policy; return whether it has moved more than `target_kl` from where it sampled."""
        step = self.learner.step("policy", units, self.policy_objective, self.at)
        self.clock.lap("policy")
        if compare_with_engine:
            # before the first step of the update, a ratio other than 1 is the engine's and the learner's difference
            for part in step.ratios:
                ratio, after_video = part.tokens()
                differences = ratio.cpu().log()
                self.metrics.append(_drift(differences, after_video.cpu()))
        self.ratios += step.ratios
        self.metrics.append(_prefixed("policy", step.metrics))
        own_kl = step.metrics.get("approx_kl", (0.0, 0.0))
        total, count = self.learner.collectives.sum(*own_kl)
        target = self.config.target_kl
        # not `>`: a NaN is not within the target
        return target is not None and not total / max(count, 1.0) <= target

    def _minibatches(self, items: Sequence[Encoded], seed: int) -> Iterator[list[Unit]]:
        config = self.config
        count = config.prompts_per_iteration * config.samples_per_prompt // config.minibatch_size
        for epoch in range(config.epochs):
            # by iteration and epoch, so that a resumed run shuffles alike; by rank, whose samples are its own
            own_seed = derive(seed, "epoch", self.state.iteration, epoch, dist.get_rank())
            order = np.random.default_rng(own_seed).permutation(len(items))
            units = [(items[index],) for index in order]
            yield from chunks(units, count)


def _drift(differences: Tensor, after_video: Tensor) -> Metrics:
    """Return mean |log pi_learner - log pi_engine| of sampled tokens [N] (nats), of text and of after-video tokens."""
    metrics: Metrics = {}
    on_video = after_video.bool()
    for kind, chosen in (("text", ~on_video), ("after_video", on_video)):
        total = differences[chosen].abs().sum()
        metrics[f"parity/drift_{kind}"] = (float(total), float(chosen.sum()))
    return metrics


def _recomputed_drift(tensors: ExperienceTensors) -> Metrics:
    mask = tensors.mask.bool()
    after_video = tensors.after_video()[:, None].expand_as(mask)
    return _drift(tensors.importance.log()[mask], after_video[mask])


def _gathered_quantiles(learner: Learner, ratios: Sequence[TokenRatios]) -> Metrics:
    """Return 1%, 50% and 99% quantiles of pi / pi_old over every rank's tokens of the iteration, by kind of token.

    Collective, unless no rank has taken a policy step (`ppo.critic_warmup`).
    """
    if not ratios:
        return {}
    rows = learner.collectives.gather_rows(token_rows(ratios))
    ratio, after_video = rows.unbind(dim=1)
    quantiles = ratio_quantiles(ratio, torch.ones_like(ratio), after_video)
    return {f"policy/{name}": (value, 1.0) for name, value in quantiles.items()}


def critic_report(metrics: Metrics) -> dict[str, float]:
    """Return explained variance, and the critic's error beside its baseline's, from metrics merged over all ranks."""
    prefix = "critic/"
    own: Metrics = {}
    for name, value in metrics.items():
        if name.startswith(prefix):
            own[name.removeprefix(prefix)] = value
    if "returns" not in own:
        return {}
    report = critic_errors(own)
    explained = explained_variance(own)
    if explained is not None:
        report["explained_variance"] = explained
    return {prefix + name: value for name, value in report.items()}


def _prefixed(prefix: str, metrics: Metrics) -> Metrics:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
