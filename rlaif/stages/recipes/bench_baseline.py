"""One process that does an iteration as the predecessor systems do, for `rlaif bench ppo` to be compared with.

transformers `generate` in one static batch, then reference, critic and reward forwards one after another, all of them on pixels,
then the same policy and critic steps. No engine, no shared features, no overlap; every core of the machine.
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
from rlaif.config.schema import Config
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
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


class Baseline:
    """Policy, reference, critic and reward model as modules of this process."""

    def __init__(self, config: Config, frames: Frames):
        torch.set_num_threads(os.cpu_count() or 1)
        self.config, ppo = config, config.ppo
        self.encoder = Encoder(ppo.policy, frames, config.video.feature_cache_bytes, config.model.dtype)
        self.policy, self.reference, self.critic = (
            VideoLM(load_vlm(ppo.policy, config.model.dtype), heads) for heads in ((), (), ("critic",))
        )
        for module in (self.policy, self.critic):
            freeze_for_full_training(module.causal, config.model.train_vision, config.model.train_projector)
        card = read_card(ppo.reward)
        self.weights = torch.tensor([ppo.reward_weights.get(name, 1.0) for name in dimensions_of(card)])
        self.prompt, self.reward = (
            RewardPrompt(**card["prompt"]),
            load_reward_model(fetch(ppo.reward), card, config.model),
        )
        self.optimizers = {
            name: torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=optim.lr, betas=optim.betas)
            for name, module, optim in (
                ("policy", self.policy, ppo.optim),
                ("critic", self.critic, ppo.critic_optim),
            )
        }
        self.pad = self.encoder.tokenizer.pad_token_id

    def iterate(self, prompts: Sequence[Prompt]) -> Times:
        """One iteration on these prompts."""
        times, n = Times(), self.config.ppo.samples_per_prompt
        asked = [prompt for prompt in prompts for _ in range(n)]
        with times.phase("rollout"):
            answers = self.generate(asked)
        times.tokens = sum(len(ids) for ids in answers)
        items = [self._item(prompt, ids) for prompt, ids in zip(asked, answers, strict=True)]
        with times.phase("reward"):
            scores = self.scores(asked, answers)
        with times.phase("experience"):
            logprobs, reference = (
                self._infer(self.policy, items, "logprobs"),
                self._infer(self.reference, items, "logprobs"),
            )
            values = self._infer(self.critic, items, "values")
        with times.phase("update"):
            self.update(items, scores, logprobs, reference, values)
        return times

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """One answer per prompt, all in one left-padded batch that runs until the last has ended."""
        sampling = self.config.ppo.sampling
        rows = [self._item(prompt, []) for prompt in prompts]
        batch = collate(rows, self.pad, side="left")
        sampled = self.policy.causal.eval().generate(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            **batch.video,
            do_sample=True,
            temperature=sampling.temperature,
            top_k=0,
            max_new_tokens=sampling.max_tokens,
            suppress_tokens=list(self.policy.banned_ids),
            use_cache=True,
            eos_token_id=self.encoder.eos_id,
            pad_token_id=self.pad,
        )
        return [_until(row, self.encoder.eos_id) for row in sampled[:, batch.ids.shape[1] :].numpy()]

    @torch.no_grad()
    def scores(self, prompts: Sequence[Prompt], answers: Sequence[np.ndarray]) -> torch.Tensor:
        """[B], by the reward model."""
        items = [
            self.prompt.encode(
                self.encoder, p.question, p.captions, self.encoder.text(ids), self.encoder.video(p.video)
            )
            for p, ids in zip(prompts, answers, strict=True)
        ]
        scores = self.reward.eval()(collate(items, self.pad), "score", head="reward")["score"]
        return scores.reshape(len(items), -1) @ self.weights

    def update(self, items: list[Encoded], scores, logprobs, reference, values) -> None:
        """The policy and critic steps of `learners/ppo.py`, in minibatches, one process."""
        ppo = self.config.ppo
        mask = collate(items, self.pad).mask
        advantages, returns = gae(
            token_rewards(scores, k1(logprobs, reference) * mask, ppo.kl.coef, mask), values, mask, ppo.gamma, ppo.lam
        )
        moments = Moments.of(advantages, mask)
        advantages = whiten(advantages, mask, moments.mean, moments.var, eps_on=ppo.whiten_eps)
        scale = Moments.of(returns, mask).scale
        policy_loss, critic_loss = losses.policy_objective(ppo).loss, losses.critic_objective(ppo, scale).loss
        for start in range(0, len(items), ppo.minibatch_size):
            rows = slice(start, start + ppo.minibatch_size)
            batch = collate(items[rows], self.pad)
            width = batch.mask.shape[1]
            named = {"old_logprobs": logprobs, "advantages": advantages, "returns": returns, "values": values}
            batch.extras = {name: tensor[rows, :width] for name, tensor in named.items()}
            batch.extras["after_video"] = torch.ones(len(batch.mask))
            for name, module, loss, output in (
                ("critic", self.critic, critic_loss, "values"),
                ("policy", self.policy, policy_loss, "logprobs"),
            ):
                found = module.train()(batch, output, head="critic" if name == "critic" else None)
                loss(found, batch, float(batch.mask.sum())).loss.backward()
                torch.nn.utils.clip_grad_norm_(module.parameters(), ppo.optim.max_grad_norm)
                self.optimizers[name].step()
                self.optimizers[name].zero_grad()

    @torch.no_grad()
    def _infer(self, module: VideoLM, items: list[Encoded], output: str) -> torch.Tensor:
        """[B, T], one forward over everything in batches of the update's size."""
        width, size = max(len(item.mask) for item in items), self.config.ppo.minibatch_size
        out = torch.zeros(len(items), width)
        for start in range(0, len(items), size):
            batch = collate(items[start : start + size], self.pad)
            found = module.eval()(batch, output, head="critic" if output == "values" else None)[output]
            out[start : start + size, : found.shape[1]] = found
        return out

    def _item(self, prompt: Prompt, ids: Sequence[int]) -> Encoded:
        return self.encoder.prompt_and_response(prompt.question, ids, self.encoder.video(prompt.video))


def _until(ids: np.ndarray, eos: int) -> np.ndarray:
    """Up to and with the first end of sequence."""
    ends = np.flatnonzero(ids == eos)
    return ids[: ends[0] + 1] if len(ends) else ids
