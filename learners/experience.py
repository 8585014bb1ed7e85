"""From an `Experience` to sequences that PPO steps on: log-probs, values, rewards, advantages and returns of one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from learners.learner import Learner
from learners.ppo_state import PpoState
from rlaif.config.schema import Ppo
from rlaif.errors import ContractError
from rlaif.models.encode import Encoded, Encoder
from rlaif.objectives.advantages import gae, leave_one_out, over_tokens
from rlaif.objectives.kl import EXPONENT_LIMIT, k1, token_penalty
from rlaif.objectives.masked import Moments, whiten, zero_outside
from rlaif.objectives.rewards import token_rewards
from rlaif.objectives.slots import PpoSlots, ResponseSlots
from rlaif.records import Experience, Key, Sample


@dataclass(frozen=True)
class ExperienceTensors:
    """One rank's experience as right-padded tensors [B, T] on the host.

    T is the longest answer, or all slots of an answer if those after its end count (`PpoSlots.experience`).
    """

    samples: tuple[Sample, ...]
    encoded: tuple[Encoded, ...]
    scores: Tensor
    """[B] float32."""
    mask: Tensor
    """1 on response tokens."""
    logprobs: Tensor
    """Start of the ratio: log-probs of the sampled tokens by the engine, or by the learner before the update."""
    importance: Tensor
    """The learner's probability of each token over the engine's; 1 if the engine's log-probs are used."""
    reference: Tensor
    """Log-probs of the sampled tokens by the reference."""
    values: Tensor
    """0 after the end, or what the critic predicts there. All 0 without a critic."""

    def after_video(self) -> Tensor:
        """Return [B] bool: whether the sample is about a video."""
        return torch.tensor([item.video is not None for item in self.encoded], dtype=torch.bool)


def prepare_experience(learner: Learner, experience: Experience, config: Ppo) -> ExperienceTensors:
    """Run the forwards outside the update: the reference's, the critic's (GAE), and the policy's unless the engine is trusted.

    Collective. Raises ContractError if the learner encodes a sample differently from the engine.
    """
    samples = experience.samples
    encoder = learner.encoder("policy")
    encoded = tuple(encode_sample(encoder, sample) for sample in samples)
    slots = PpoSlots.of(config).experience
    engine_logprobs = _padded([sample.logprobs for sample in samples], slots.total)
    ones = [np.ones(len(item.mask), np.float32) for item in encoded]
    mask = _padded(ones, slots.total)
    logprobs = engine_logprobs
    if recomputes_logprobs(learner, config):
        logprobs = _padded(learner.infer("policy", encoded, "logprobs"), slots.total)
    reference = _padded(learner.infer("reference", encoded, "logprobs"), slots.total)
    values = torch.zeros_like(mask)
    if config.advantage == "gae":
        values = _values(learner, encoded, slots)
    # exp(log pi_learner - log pi_engine), its exponent cut as the policy loss cuts that of its ratio
    gap = (logprobs - engine_logprobs).clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT)
    scores = torch.tensor(experience.scores, dtype=torch.float32)
    importance = torch.exp(gap)
    return ExperienceTensors(samples, encoded, scores, mask, logprobs, importance, reference, values)


def _values(learner: Learner, encoded: Sequence[Encoded], slots: ResponseSlots) -> Tensor:
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


def recomputes_logprobs(learner: Learner, config: Ppo) -> bool:
    """Return whether the ratio starts from the learner's log-probs instead of the engine's (`ppo.old_logprobs`).

    auto trusts the engine's log-probs in float32 only, in which both sides agree to about 1e-6.
    """
    if config.old_logprobs == "auto":
        return learner.spec.model.dtype != "float32"
    return config.old_logprobs == "learner"


def encode_sample(encoder: Encoder, sample: Sample) -> Encoded:
    """Return the sample as the learner sees it; ContractError if that differs from what the engine saw."""
    features = encoder.video(sample.prompt.video)
    encoded = encoder.prompt_and_response(sample.prompt.question, sample.response_ids, features)
    # the name by which an error in numerics names the sample
    encoded = replace(encoded, name=f"{sample.prompt.prompt_id}/{sample.sample_index}")
    _require_equal(sample, "frames", sample.frames_hash, features.spec.hash)
    _require_equal(sample, "visual tokens", sample.visual_tokens, features.visual_tokens)
    prompt_ids = encoded.ids[: encoded.start]
    _require_equal(sample, "prompt tokens", sample.prompt_ids.tolist(), prompt_ids.tolist())
    return encoded


def _require_equal(sample: Sample, what: str, engine: object, learner: object) -> None:
    if engine != learner:
        raise ContractError(
            f"the same {what} in rollout engine and learner for sample {sample.key}",
            f"engine {engine}, learner {learner}",
            "Use the same model directory and video settings for both (frames, size, processor version).",
        )


def compute_advantages(
    learner: Learner, state: PpoState, tensors: ExperienceTensors, config: Ppo
) -> tuple[list[Encoded], list[dict]]:
    """Compute rewards, advantages and returns, and add the returns to the running moments of the state. Collective.

    Returns the sequences with what the losses read as extras and, per sample, its key, KL (k1, nats) and mean advantage.
    """
    mask = tensors.mask
    slots = PpoSlots.of(config)
    kl = config.kl
    penalty = token_penalty(tensors.logprobs, tensors.reference, kl.estimator, kl.clamp) * mask
    if config.advantage == "gae":
        # r_t = -beta KL_t, plus the score on the last token or slot; then GAE(gamma, lambda)
        span = slots.rewards.counted(mask)
        rewards = token_rewards(tensors.scores, penalty, state.kl.value, span)
        rewards = scale_rewards(learner, rewards, span, config)
        advantages, returns = gae(rewards, tensors.values, span, config.gamma, config.lam)
    else:
        # one reward per answer, its KL included; the other answers to the prompt are the baseline
        rewards = tensors.scores - state.kl.value * penalty.sum(1)
        advantages = _leave_one_out(learner, tensors.samples, config.reward_scale * rewards)
        advantages = returns = over_tokens(advantages, mask)
    counted = slots.losses.counted(mask)
    if config.whiten_advantages:
        moments = moments_over_ranks(learner, advantages, counted)
        mean, var = moments.mean, moments.var
        advantages = whiten(advantages, counted, mean, var, eps_on=config.whiten_eps)
    # before the update, so that this iteration's value clip already has these returns in its unit
    state.returns.update(moments_over_ranks(learner, returns, counted))
    items = _with_extras(tensors, advantages, returns, slots.losses)
    return items, _sample_reports(tensors, advantages)


def _with_extras(
    tensors: ExperienceTensors, advantages: Tensor, returns: Tensor, slots: ResponseSlots
) -> list[Encoded]:
    """Return the sequences with what the policy's and the critic's loss read, cut to the slots that count there."""
    extras = {
        "old_logprobs": tensors.logprobs,
        "importance": tensors.importance,
        "advantages": advantages,
        "returns": returns,
        "values": tensors.values,
        "after_video": tensors.after_video().float(),
    }
    items: list[Encoded] = []
    for index, item in enumerate(tensors.encoded):
        width = slots.width(len(item.mask))
        own = {name: _row(values, index, width) for name, values in extras.items()}
        items.append(replace(item, extras=own))
    return items


def _row(values: Tensor, index: int, width: int) -> np.ndarray:
    """Return sample `index` of [B, T], cut to its width, or of [B]."""
    row = values[index].numpy()
    return row[:width] if values.ndim == 2 else row


def _sample_reports(tensors: ExperienceTensors, advantages: Tensor) -> list[dict]:
    """Return key, KL to the reference (k1 summed over the response, nats) and mean advantage of each sample."""
    kl = k1(tensors.logprobs, tensors.reference) * tensors.mask
    counted = advantages * tensors.mask
    reports: list[dict] = []
    for index, sample in enumerate(tensors.samples):
        length = tensors.mask[index].sum().clamp(min=1)
        total = kl[index].sum()
        mean = counted[index].sum() / length
        reports.append({"key": sample.key, "kl": float(total), "advantage_mean": float(mean)})
    return reports


def scale_rewards(learner: Learner, rewards: Tensor, span: Tensor, config: Ppo) -> Tensor:
    """Return rewards [B, T] times `reward_scale`, or divided by their standard deviation over all ranks with the mean kept."""
    if not config.whiten_rewards:
        return config.reward_scale * rewards
    moments = moments_over_ranks(learner, rewards, span)
    mean, var = moments.mean, moments.var
    return whiten(rewards, span, mean, var, shift_mean=False, eps_on=config.whiten_eps)


def moments_over_ranks(learner: Learner, x: Tensor, mask: Tensor) -> Moments:
    """Return the moments of `x` [B, T] over the mask, of all ranks. Collective.

    A sample with anything infinite or NaN is left out: it spoils its own gradient, which is counted and named, but
    neither what the others are whitened by nor the running statistics, which would never recover.
    """
    finite = torch.isfinite(zero_outside(x, mask))
    finite = finite.all(1, keepdim=True)
    own = Moments.of(x, mask.bool() & finite)
    return Moments(*learner.collectives.sum(*astuple(own)))


def _leave_one_out(learner: Learner, samples: Sequence[Sample], totals: Tensor) -> Tensor:
    """Return each sample's total minus the mean of its prompt's other samples, which may be on other ranks. Collective."""
    keys = [sample.key for sample in samples]
    all_keys: list[Key] = []
    all_totals: list[float] = []
    for rank_keys, rank_totals in learner.collectives.gather_objects((keys, totals.tolist())):
        all_keys += rank_keys
        all_totals += rank_totals
    prompts = [prompt_id for prompt_id, _ in all_keys]
    advantages, _ = leave_one_out(torch.tensor(all_totals), prompts)
    by_key = dict(zip(all_keys, advantages, strict=True))
    return torch.stack([by_key[key] for key in keys])


def _padded(rows: Sequence[np.ndarray], width: int | None = None) -> Tensor:
    """Return [B, T] float32, zeros after each row's end; T is the longest row's length, or `width`."""
    if width is None:
        width = max((len(row) for row in rows), default=0)
    out = torch.zeros(len(rows), width)
    for index, row in enumerate(rows):
        # `torch.tensor` copies; `from_numpy` would warn of arrays from the object store, which are read-only
        out[index, : len(row)] = torch.tensor(row)
    return out
