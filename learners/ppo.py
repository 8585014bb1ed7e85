"""PPO on one rank: samples and scores -> experience -> policy and critic steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
import torch.distributed as dist

from learners import losses
from learners.learner import Learner, Unit
from learners.work import Clock
from rlaif.config.schema import Ppo
from rlaif.errors import ContractError
from rlaif.models.encode import Encoded, Encoder
from rlaif.models.packing import chunks
from rlaif.objectives.advantages import gae, leave_one_out, over_tokens
from rlaif.objectives.kl import AdaptiveController, FixedController, k1, token_penalty
from rlaif.objectives.masked import Moments, whiten, zero_outside
from rlaif.objectives.metrics import Metrics, merge
from rlaif.objectives.policy import ratio_quantiles
from rlaif.objectives.rewards import RunningMoments, token_rewards
from rlaif.objectives.slots import PpoSlots, ResponseSlots
from rlaif.objectives.value import critic_errors, explained_variance
from rlaif.records import Sample
from rlaif.seeds import derive


@dataclass
class PpoState:
    """What PPO remembers between iterations, besides networks and optimizers; saved in every checkpoint."""

    kl: FixedController | AdaptiveController
    returns: RunningMoments
    iteration: int = 0

    @classmethod
    def of(cls, config: Ppo) -> PpoState:
        kl = config.kl
        adaptive = kl.controller == "adaptive"
        return cls(
            AdaptiveController(kl.coef, kl.target, kl.horizon) if adaptive else FixedController(kl.coef),
            RunningMoments(),
        )

    def state_dict(self) -> dict:
        return {"kl": self.kl.state_dict(), "returns": self.returns.state_dict(), "iteration": self.iteration}

    def load_state_dict(self, state: dict) -> None:
        self.kl.load_state_dict(state["kl"])
        self.returns.load_state_dict(state["returns"])
        self.iteration = int(state["iteration"])


@dataclass
class Rollouts:
    """One rank's samples as right-padded arrays [B, T]; the mask is 1 on response tokens.

    T is the longest answer, or all slots of an answer if those after its end count (`PpoSlots.experience`).
    """

    samples: list[Sample]
    encoded: list[Encoded]
    mask: torch.Tensor
    logprobs: torch.Tensor  # where the ratio starts
    importance: torch.Tensor  # learner's over engine's probability of each token
    reference: torch.Tensor
    values: torch.Tensor  # 0 after the end, or what the critic predicts there


def train_on(
    learner: Learner, state: PpoState, samples: Sequence[Sample], scores: Sequence[float], config: Ppo, seed: int
) -> tuple[Metrics, list[dict]]:
    """One PPO iteration on this rank's share of the samples. All ranks call it together.

    Returns metrics (to be reduced over ranks) and, per sample, its key, KL (k1, nats) and mean advantage.
    """
    clock = Clock()
    learner.work.reset()
    rollouts = collect(learner, samples, config)
    clock.lap("experience")
    items, metrics, report = advantages_of(learner, state, rollouts, scores, config)
    clock.lap("advantages")
    fresh = all(sample.policy_version == state.iteration for sample in samples)
    if fresh and recompute_logprobs(learner, config):
        metrics = merge([metrics, _recomputed_drift(rollouts)])
    metrics = merge([metrics, optimize(learner, state, items, config, seed, clock, fresh)])
    state.iteration += 1
    finite = [row["kl"] for row in report if math.isfinite(row["kl"])]
    kl, count = learner.all_sum(sum(finite), float(len(finite)))
    if count:
        state.kl.update(kl / count, int(count))
    return merge([metrics, clock.metrics(), learner.work.metrics(len(samples))]), report


def collect(learner: Learner, samples: Sequence[Sample], config: Ppo) -> Rollouts:
    """Forwards outside the update: reference 1, critic 1 (GAE), policy 0 or 1."""
    encoder = learner.encoder("policy")
    encoded = [encode_sample(encoder, sample) for sample in samples]
    slots = PpoSlots.of(config).experience
    mask = _padded([np.ones(len(s.response_ids), np.float32) for s in samples], slots.total)
    engine = _padded([s.logprobs for s in samples], slots.total)
    own = engine
    if recompute_logprobs(learner, config):
        own = _padded(learner.infer("policy", encoded, "logprobs"), slots.total)
    reference = _padded(learner.infer("reference", encoded, "logprobs"), slots.total)
    values = _values(learner, encoded, slots) if config.advantage == "gae" else torch.zeros_like(mask)
    return Rollouts(list(samples), encoded, mask, own, torch.exp((own - engine).clamp(-20, 20)), reference, values)


def _values(learner: Learner, encoded: list[Encoded], slots: ResponseSlots) -> torch.Tensor:
    """Return the critic's values [B, T]: of all slots if those count, else 0 after an answer's end."""
    padded = [with_padding(learner, item, slots) for item in encoded]
    values = _padded(learner.infer("critic", padded, "values"), slots.total)
    lengths = torch.tensor([len(item.mask) for item in padded])
    return slots.repeat_last(values, lengths)


def with_padding(learner: Learner, item: Encoded, slots: ResponseSlots) -> Encoded:
    """Return the item with the padding tokens at which the critic predicts the slots after the end, if those count."""
    count = slots.padding_tokens(len(item.mask))
    if not count:
        return item
    tokenizer = learner.encoder("critic").tokenizer
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return item.padded(pad_id, count)


def recompute_logprobs(learner: Learner, config: Ppo) -> bool:
    """auto trusts the engine's log-probs in float32 only, where both sides agree to about 1e-6."""
    return config.old_logprobs == "learner" or (config.old_logprobs == "auto" and learner.spec.model.dtype != "float32")


def encode_sample(encoder: Encoder, sample: Sample) -> Encoded:
    """The sample as the learner sees it; ContractError where it differs from what the engine saw."""
    features = encoder.video(sample.prompt.video)
    encoded = encoder.prompt_and_response(sample.prompt.question, sample.response_ids, features)
    encoded = replace(encoded, name=f"{sample.prompt.prompt_id}/{sample.sample_index}")
    _agree(sample, "frames", sample.frames_hash, features.spec.hash)
    _agree(sample, "visual tokens", sample.visual_tokens, features.visual_tokens)
    _agree(sample, "prompt tokens", sample.prompt_ids.tolist(), encoded.ids[: encoded.start].tolist())
    return encoded


def _agree(sample: Sample, what: str, engine: object, learner: object) -> None:
    if engine != learner:
        raise ContractError(
            f"the same {what} in rollout engine and learner for sample {sample.key}",
            f"engine {engine}, learner {learner}",
            "use the same model directory and video settings for both (frames, size, processor version)",
        )


def advantages_of(
    learner: Learner, state: PpoState, rollouts: Rollouts, scores: Sequence[float], config: Ppo
) -> tuple[list[Encoded], Metrics, list[dict]]:
    """Rewards, advantages and returns, written into the sequences as extras."""
    mask, score = rollouts.mask, torch.tensor(scores, dtype=torch.float32)
    slots = PpoSlots.of(config)
    drift = k1(rollouts.logprobs, rollouts.reference) * mask
    penalty = token_penalty(rollouts.logprobs, rollouts.reference, config.kl.estimator, config.kl.clamp) * mask
    if config.advantage == "gae":
        span = slots.rewards.counted(mask)
        rewards = scaled(learner, token_rewards(score, penalty, state.kl.value, span), span, config)
        advantages, returns = gae(rewards, rollouts.values, span, config.gamma, config.lam)
    else:
        totals = config.reward_scale * (score - state.kl.value * penalty.sum(1))
        advantages = returns = over_tokens(_group_advantages(rollouts.samples, totals), mask)
    counted = slots.losses.counted(mask)
    if config.whiten_advantages:
        moments = all_moments(learner, advantages, counted)
        advantages = whiten(advantages, counted, moments.mean, moments.var, eps_on=config.whiten_eps)
    state.returns.update(all_moments(learner, returns, counted))
    extras = {
        "old_logprobs": rollouts.logprobs,
        "importance": rollouts.importance,
        "advantages": advantages,
        "returns": returns,
        "values": rollouts.values,
        "after_video": torch.tensor([float(item.video is not None) for item in rollouts.encoded]),
    }
    lengths = [slots.losses.width(len(item.mask)) for item in rollouts.encoded]
    items = [replace(item, extras=_row(extras, i, lengths[i])) for i, item in enumerate(rollouts.encoded)]
    report = [
        {
            "key": s.key,
            "kl": float(drift[i].sum()),
            "advantage_mean": float((advantages[i] * mask[i]).sum() / mask[i].sum().clamp(min=1)),
        }
        for i, s in enumerate(rollouts.samples)
    ]
    return items, {"kl/coef": (state.kl.value, 1.0)}, report


def scaled(learner: Learner, rewards: torch.Tensor, span: torch.Tensor, config: Ppo) -> torch.Tensor:
    """Rewards [B, T] times `reward_scale`, or divided by their standard deviation over all ranks with the mean kept."""
    if not config.whiten_rewards:
        return config.reward_scale * rewards
    moments = all_moments(learner, rewards, span)
    return whiten(rewards, span, moments.mean, moments.var, shift_mean=False, eps_on=config.whiten_eps)


def all_moments(learner: Learner, x: torch.Tensor, mask: torch.Tensor) -> Moments:
    """Moments of `x` [B, T] over the mask, of all ranks. Collective.

    A sample with anything infinite or NaN is left out: it spoils its own gradient, which is counted and named, but
    neither what the others are whitened by nor the running statistics, which would never recover.
    """
    sound = torch.isfinite(zero_outside(x, mask)).all(1, keepdim=True)
    return Moments(*learner.all_sum(*astuple(Moments.of(x, mask.bool() & sound))))


def _row(extras: dict[str, torch.Tensor], index: int, length: int) -> dict[str, np.ndarray]:
    """Return one sample's extras: per-token arrays cut to the slots that count, numbers as they are."""
    return {name: x[index].numpy()[:length] if x.ndim == 2 else x[index].numpy() for name, x in extras.items()}


def _group_advantages(samples: Sequence[Sample], totals: torch.Tensor) -> torch.Tensor:
    """Leave-one-out over each prompt's samples, which may sit on several ranks."""
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, [(s.key, float(t)) for s, t in zip(samples, totals, strict=True)])
    everyone = [row for part in gathered for row in part]
    advantages, _ = leave_one_out(torch.tensor([t for _, t in everyone]), [key[0] for key, _ in everyone])
    by_key = {key: advantages[i] for i, (key, _) in enumerate(everyone)}
    return torch.stack([by_key[s.key] for s in samples])


def optimize(
    learner: Learner, state: PpoState, items: list[Encoded], config: Ppo, seed: int, clock: Clock, fresh: bool
) -> Metrics:
    """Epochs of shuffled mini-batches. Stops early when the policy has moved `target_kl` from where it sampled.

    fresh: the samples come from the very weights that the update starts with.
    """
    ratios: list[tuple[torch.Tensor, torch.Tensor]] = []
    recomputed = recompute_logprobs(learner, config)
    policy_loss = losses.policy(config, recomputed and config.importance_cap is not None, ratios)
    critic_loss = losses.critic(config, state.returns.scale)
    counting, at = losses.counting(config), state.iteration if config.schedule_per == "iteration" else None
    slots = PpoSlots.of(config).losses
    found: list[Metrics] = []
    for units in _minibatches(state, items, config, seed):
        if config.advantage == "gae":
            padded = [(with_padding(learner, item, slots),) for (item,) in units]
            found.append(_prefixed("critic", learner.step("critic", padded, "values", critic_loss, counting, at)))
            clock.lap("critic")
        if state.iteration < config.critic_warmup:
            continue
        first = not ratios
        seen = learner.step("policy", units, "logprobs", policy_loss, counting, at)
        clock.lap("policy")
        if first and fresh and not recomputed:  # before the first step, the ratio to the engine is what they differ by
            found += [_drift(ratio.log(), after_video) for ratio, after_video in ratios]
        found.append(_prefixed("policy", seen))
        moved, count = learner.all_sum(*seen.get("approx_kl", (0.0, 0.0)))
        if config.target_kl is not None and not moved / max(count, 1.0) <= config.target_kl:  # NaN is not within it
            found.append({"policy/early_stop": (1.0, 1.0)})
            break
    return merge([*found, _ratio_quantiles(ratios)])


def _minibatches(state: PpoState, items: list[Encoded], config: Ppo, seed: int) -> Iterator[list[Unit]]:
    parts = config.prompts_per_iteration * config.samples_per_prompt // config.minibatch_size
    for epoch in range(config.epochs):
        rng = np.random.default_rng(derive(seed, "epoch", state.iteration, epoch, dist.get_rank()))
        for part in chunks([items[i] for i in rng.permutation(len(items))], parts):
            yield [(item,) for item in part]


def _drift(apart: torch.Tensor, after_video: torch.Tensor) -> Metrics:
    """Mean |log pi_learner - log pi_engine| of sampled tokens (nats), text and after-video tokens apart."""
    kinds = {"text": ~after_video.bool(), "after_video": after_video.bool()}
    return {f"parity/drift_{kind}": (float(apart[on].abs().sum()), float(on.sum())) for kind, on in kinds.items()}


def _recomputed_drift(rollouts: Rollouts) -> Metrics:
    on = rollouts.mask.bool()
    after_video = torch.tensor([item.video is not None for item in rollouts.encoded])[:, None].expand_as(on)
    return _drift(rollouts.importance.log()[on], after_video[on])


def _ratio_quantiles(ratios: list[tuple[torch.Tensor, torch.Tensor]]) -> Metrics:
    """1%, 50% and 99% quantiles of pi / pi_old over every rank's tokens of the iteration, text and after-video apart."""
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, ratios)
    tokens = [pair for part in gathered for pair in part]
    if not tokens:
        return {}
    ratio, after_video = (torch.cat(column) for column in zip(*tokens, strict=True))
    found = ratio_quantiles(ratio, torch.ones_like(ratio), after_video)
    return {f"policy/{name}": (value, 1.0) for name, value in found.items()}


def critic_report(metrics: Metrics) -> dict[str, float]:
    """Return explained variance, and the critic's error beside its baseline's, from metrics merged over all ranks."""
    prefix = "critic/"
    own = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    if "returns" not in own:
        return {}
    report = {prefix + name: value for name, value in critic_errors(own).items()}
    explained = explained_variance(own)
    return report if explained is None else report | {"critic/explained_variance": explained}


def _prefixed(prefix: str, metrics: Metrics) -> Metrics:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def _padded(rows: Sequence[np.ndarray], width: int | None = None) -> torch.Tensor:
    """[B, T] float32, zeros after each row's end; T is the longest row's, or `width`."""
    out = torch.zeros(len(rows), max((len(row) for row in rows), default=0) if width is None else width)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row)  # copied: what comes out of the object store is read-only
    return out
