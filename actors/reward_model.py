"""Scores of a reward model that reads the video and its captions. No Ray in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rlaif.config.schema import Lora, Model
from rlaif.errors import ContractError, DataError
from rlaif.io.storage import fetch
from rlaif.io.tensors import load_tensors
from rlaif.models.batch import collate
from rlaif.models.encode import Encoded, Encoder, Frames
from rlaif.models.packing import pack
from rlaif.models.reward_card import HEAD, dimensions_of, read_card
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.models.vision import Shared, VisionCache, tower_key
from rlaif.models.vlm import VideoLM, load_adapter, load_vlm
from rlaif.records import SCORE, Answer, Key, Masked, Outcome, scored


class ModelScorer:
    """A reward model loaded from an export of `rlaif reward`."""

    def __init__(
        self,
        export: str,
        frames: Frames,
        model: Model,
        tokens_per_microbatch: int,
        cache_bytes: int,
        features: Shared | None = None,
        weights: Mapping[str, float] | None = None,
        threads: int | None = None,
    ):
        """`weights`: of each dimension, 1 if None. `threads`: of torch in this process, as they are if None."""
        if threads:
            torch.set_num_threads(threads)
        card, export = read_card(export), fetch(export)
        self.dimensions = dimensions_of(card)
        self.weights = [(weights or {}).get(name, 1.0) for name in self.dimensions]
        self.prompt = RewardPrompt(**card["prompt"])
        self.encoder = Encoder(card["base"] if card["lora"] else export, frames, cache_bytes, model.dtype)
        self.device = torch.device("cuda" if model.device != "cpu" and torch.cuda.is_available() else "cpu")
        self.budget = tokens_per_microbatch
        self.model = load_reward_model(export, card, model).to(self.device).eval()
        self.vision, self._tower = VisionCache(cache_bytes, features), tower_key(self.model.causal)

    @torch.no_grad()
    def __call__(self, answers: Sequence[Answer]) -> dict[Key, Outcome]:
        outcomes: dict[Key, Outcome] = {}
        ready = []
        for answer in answers:
            try:
                ready.append((answer.key, self._encode(answer)))
            except (DataError, ContractError) as error:
                outcomes[answer.key] = Masked(f"{error.found}, not {error.expected}")
        pad = self.encoder.tokenizer.pad_token_id
        for group in pack([len(item.ids) for _, item in ready], self.budget):
            items = [ready[i][1] for i in group]
            vision = self.vision.of(self.model.causal, self._tower, [item.video for item in items], self.device)
            batch = collate(items, self.encoder.eos_id if pad is None else pad, self.device, vision=vision)
            scores = self.model(batch, "score", head="reward")["score"].reshape(len(items), -1).cpu().tolist()
            outcomes |= {ready[i][0]: self._outcome(values) for i, values in zip(group, scores, strict=True)}
        return outcomes

    def _outcome(self, scores: Sequence[float]) -> Outcome:
        """Each dimension's score times its weight is a part of its name; of a single dimension it is called `score`."""
        names = self.dimensions if len(self.dimensions) > 1 else (SCORE,)
        return scored({n: weight * score for n, weight, score in zip(names, self.weights, scores, strict=True)})

    def _encode(self, answer: Answer) -> Encoded:
        prompt = answer.prompt
        features = self.encoder.video(prompt.video) if prompt.video else None
        return self.prompt.encode(self.encoder, prompt.question, answer.captions, answer.response, features)


def load_reward_model(export: str, card: dict, model: Model) -> VideoLM:
    """Backbone (full weights, or base and adapter) and scalar head."""
    lora = Lora(**card["lora"]) if card["lora"] else None
    backbone = load_vlm(card["base"] if lora else export, model.dtype, model.attention)
    module = VideoLM(backbone, {"reward": len(dimensions_of(card))}, {"reward": lora} if lora else None)
    if lora:
        load_adapter(module, "reward", export)
        module.activate("reward")
    module.heads["reward"].load_state_dict(load_tensors(Path(export) / HEAD))
    return module
