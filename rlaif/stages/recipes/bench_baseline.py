"""The baseline of `rlaif bench ppo`: one process that does an iteration as the predecessor systems do.

It samples with transformers' `generate` in one static batch, then runs the reference, critic and reward forwards in turn, all of
them on pixels, then the same policy and critic steps. No engine, no shared features, no overlap; every core of the machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from learners import losses
from rlaif.config.schema import Config, Optim
from rlaif.io.storage import fetch
from rlaif.models.batch import collate
from rlaif.models.encode import Encoded, Encoder
from rlaif.models.reward import dimensions_of, load_reward_model, read_card
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.models.video_features import Frames
from rlaif.models.vlm import VideoLM, freeze_for_full_training, load_vlm
from rlaif.objectives.advantages import gae
from rlaif.objectives.kl import k1
from rlaif.objectives.masked import Moments, whiten
from rlaif.objectives.rewards import token_rewards
from rlaif.records import Prompt


@dataclass
class Times:
    """Seconds of one iteration by phase, and the tokens it sampled."""

    seconds: dict[str, float] = field(default_factory=dict)
    tokens: int = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to the seconds of a phase."""
        start = time.perf_counter()
        yield
        before = self.seconds.get(name, 0.0)
        self.seconds[name] = before + time.perf_counter() - start


@dataclass(frozen=True)
class _Experience:
    """What the forwards of an iteration computed: [B] scores, the others [B, T]."""

    scores: torch.Tensor
    logprobs: torch.Tensor
    reference: torch.Tensor
    values: torch.Tensor


class Baseline:
    """Policy, reference, critic and reward model as modules of this process."""

    def __init__(self, config: Config, frames: Frames):
        # Nothing else runs beside the baseline, so that it may use every core.
        torch.set_num_threads(os.cpu_count() or 1)
        self.config, ppo, options = config, config.ppo, config.model
        self.encoder = Encoder(ppo.policy, frames, config.video.feature_cache_bytes, options.dtype)
        self.pad = self.encoder.tokenizer.pad_token_id
        # Policy and reference begin as copies, and so does the critic, with a head of its own.
        self.policy = VideoLM(load_vlm(ppo.policy, options.dtype), ())
        self.reference = VideoLM(load_vlm(ppo.policy, options.dtype), ())
        self.critic = VideoLM(load_vlm(ppo.policy, options.dtype), ("critic",))
        for module in (self.policy, self.critic):
            freeze_for_full_training(module.causal, options.train_vision, options.train_projector)
        card = read_card(ppo.reward)
        factors = [ppo.reward_weights.get(name, 1.0) for name in dimensions_of(card)]
        self.weights = torch.tensor(factors)
        self.prompt = RewardPrompt(**card["prompt"])
        self.reward = load_reward_model(fetch(ppo.reward), card, options)
        self.optimizers = {
            "policy": _optimizer(self.policy, ppo.optim),
            "critic": _optimizer(self.critic, ppo.critic_optim),
        }

    def iterate(self, prompts: Sequence[Prompt]) -> Times:
        """Do one iteration on these prompts. Returns its times."""
        times = Times()
        count = self.config.ppo.samples_per_prompt
        repeated = [prompt for prompt in prompts for _ in range(count)]
        with times.phase("rollout"):
            answers = self.generate(repeated)
        times.tokens = sum(len(ids) for ids in answers)
        items = list(map(self._item, repeated, answers))
        with times.phase("reward"):
            scores = self.scores(repeated, answers)
        with times.phase("experience"):
            logprobs = self._infer(self.policy, items, "logprobs")
            reference = self._infer(self.reference, items, "logprobs")
            values = self._infer(self.critic, items, "values")
        with times.phase("update"):
            self._update(items, _Experience(scores, logprobs, reference, values))
        return times

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """Return one answer per prompt, sampled in one left-padded batch that runs until the last has ended."""
        sampling = self.config.ppo.sampling
        rows = [self._item(prompt, []) for prompt in prompts]
        batch = collate(rows, self.pad, side="left")
        sampled = self.policy.causal.eval().generate(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            **batch.video,
            do_sample=True,
            temperature=sampling.temperature,
            # transformers keeps the 50 likeliest tokens unless told otherwise; the engine samples from all.
            top_k=0,
            max_new_tokens=sampling.max_tokens,
            suppress_tokens=list(self.policy.banned_ids),
            use_cache=True,
            eos_token_id=self.encoder.eos_id,
            pad_token_id=self.pad,
        )
        width = batch.ids.shape[1]
        responses = sampled[:, width:].numpy()
        return [_until_end(row, self.encoder.eos_id) for row in responses]

    @torch.no_grad()
    def scores(self, prompts: Sequence[Prompt], answers: Sequence[np.ndarray]) -> torch.Tensor:
        """Return the reward model's scores of the answers, [B]."""
        encoder, items = self.encoder, []
        for prompt, ids in zip(prompts, answers, strict=True):
            text, video = encoder.text(ids), encoder.video(prompt.video)
            item = self.prompt.encode(encoder, prompt.question, prompt.captions, text, video)
            items.append(item)
        batch = collate(items, self.pad)
        output = self.reward.eval()(batch, "score", head="reward")
        by_dimension = output["score"].reshape(len(items), -1)
        return by_dimension @ self.weights

    def _update(self, items: list[Encoded], experience: _Experience) -> None:
        """Do the critic and policy steps of `learners/ppo.py` in minibatches, in this process."""
        ppo = self.config.ppo
        mask = collate(items, self.pad).mask
        advantages, returns = self._advantages(experience, mask)
        scale = Moments.of(returns, mask).scale
        policy_loss = losses.policy_objective(ppo).loss
        critic_loss = losses.critic_objective(ppo, scale).loss
        targets = {
            "old_logprobs": experience.logprobs,
            "advantages": advantages,
            "returns": returns,
            "values": experience.values,
        }
        for start in range(0, len(items), ppo.minibatch_size):
            rows = slice(start, start + ppo.minibatch_size)
            batch = collate(items[rows], self.pad)
            width = batch.mask.shape[1]
            batch.extras = {"after_video": torch.ones(len(batch.mask))}
            for name, tensor in targets.items():
                batch.extras[name] = tensor[rows, :width]
            count = float(batch.mask.sum())
            # The order of learners/ppo.py: the critic's step, then the policy's.
            output = self.critic.train()(batch, "values", head="critic")
            self._step("critic", self.critic, critic_loss(output, batch, count).loss)
            output = self.policy.train()(batch, "logprobs", head=None)
            self._step("policy", self.policy, policy_loss(output, batch, count).loss)

    def _advantages(self, experience: _Experience, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return whitened advantages and returns, [B, T] each."""
        ppo = self.config.ppo
        # Per token: KL enters the reward, as in learners/ppo.py.
        kl = k1(experience.logprobs, experience.reference) * mask
        rewards = token_rewards(experience.scores, kl, ppo.kl.coef, mask)
        advantages, returns = gae(rewards, experience.values, mask, ppo.gamma, ppo.lam)
        moments = Moments.of(advantages, mask)
        whitened = whiten(advantages, mask, moments.mean, moments.var, eps_on=ppo.whiten_eps)
        return whitened, returns

    def _step(self, name: str, module: VideoLM, loss: torch.Tensor) -> None:
        optimizer, limit = self.optimizers[name], self.config.ppo.optim.max_grad_norm
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), limit)
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def _infer(self, module: VideoLM, items: list[Encoded], output: str) -> torch.Tensor:
        """Return an output of every response token, [B, T], by forwards in batches of the update's size."""
        width = max(len(item.mask) for item in items)
        size = self.config.ppo.minibatch_size
        head = "critic" if output == "values" else None
        out = torch.zeros(len(items), width)
        for start in range(0, len(items), size):
            batch = collate(items[start : start + size], self.pad)
            values = module.eval()(batch, output, head=head)[output]
            out[start : start + size, : values.shape[1]] = values
        return out

    def _item(self, prompt: Prompt, ids: Sequence[int]) -> Encoded:
        video = self.encoder.video(prompt.video)
        return self.encoder.prompt_and_response(prompt.question, ids, video)


def _optimizer(module: VideoLM, options: Optim) -> torch.optim.AdamW:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(parameters, lr=options.lr, betas=options.betas)


def _until_end(ids: np.ndarray, eos: int) -> np.ndarray:
    """Return the ids up to and including the first end of sequence."""
    ends = np.flatnonzero(ids == eos)
    return ids[: ends[0] + 1] if len(ends) else ids
