"""A reward model without Ray: what is saved beside its weights, the checks of it, and the scores it gives.

Its base, the form of its prompt and the names of its outputs are saved in its card, so that scoring cannot differ from training.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rlaif.config.schema import Config, Lora, Model
from rlaif.config.section import Function
from rlaif.data.rows import OVERALL
from rlaif.errors import ConfigError, ContractError, DataError
from rlaif.io.storage import fetch, locate
from rlaif.io.tensors import load_tensors
from rlaif.models.bases import absolute_path
from rlaif.models.batch import collate
from rlaif.models.check import require_base, require_model
from rlaif.models.digest import add_weights
from rlaif.models.encode import Encoded, Encoder
from rlaif.models.model_dir import ModelDir, find_base
from rlaif.models.packing import pack
from rlaif.models.reward_prompt import RewardPrompt, contexts
from rlaif.models.video_features import Frames
from rlaif.models.vision import SharedFeatures, VisionCache, tower_key
from rlaif.models.vlm import ADAPTER, VideoLM, load_adapter, load_vlm
from rlaif.records import SCORE, Key, Masked, Outcome, Prompt, RewardInput, reward_outcome

log = logging.getLogger(__name__)

CARD = "reward.json"

HEAD = "head.safetensors"


# ------------------------------------------------------------------------------------------------------- the card


def card_text(base: str, lora: Lora | None, prompt: RewardPrompt, dimensions: Sequence[str] = (OVERALL,)) -> str:
    """Return what CARD holds."""
    card = {
        "base": absolute_path(base),
        "lora": lora.model_dump(mode="json") if lora else None,
        "prompt": vars(prompt),
        "dimensions": list(dimensions),
    }
    return json.dumps(card, indent=2)


def read_card(export: str, option: str = "ppo.reward") -> dict:
    """Return what CARD says, with the base's path as it is now: run directories are moved and copied.

    Raises ConfigError, naming the option, if there is no reward model.
    """
    # read where it is: no weights are copied to this node for a look at the card
    location = locate(export) / CARD
    if not location.exists():
        raise ConfigError(
            f"a reward model exported by `rlaif reward` at {export}",
            f"no {CARD} there",
            f"Set {option} to a reward model, or train one first.",
        )
    card = json.loads(location.read())
    return card | {"base": find_base(export, card["base"]).path}


def dimensions_of(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the outputs of a reward model's head, in their order."""
    return tuple(card.get("dimensions", (OVERALL,)))


def reward_fingerprint(export: str) -> str:
    """Return what tells two reward models apart, wherever they are stored: 16 hex digits over card, base and weights."""
    card = read_card(export)
    # the base counts by its contents, not by its path; full weights need none
    card["base"] = ModelDir(card["base"]).fingerprint if card["lora"] else ""
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    add_weights(digest, Path(fetch(export)))
    return digest.hexdigest()[:16]


# ----------------------------------------------------------------------------------------------------- the checks


def require_reward_model(option: str, export: str) -> dict:
    """Return the card of a reward model all of whose files are there, its base included.

    Raises ConfigError, naming the option, before an actor would fail to load it.
    """
    card = read_card(export, option)
    # an adapter has no configuration of its own, full weights need no base
    if card["lora"]:
        require_base(f"{option}, its base", export, ModelDir(card["base"]))
    else:
        require_model(option, export)
    for name in (HEAD, ADAPTER) if card["lora"] else (HEAD,):
        if not (locate(export) / name).exists():
            raise ConfigError(
                f"{option}: {name} in {export}",
                "no such file",
                f"Set {option} to another reward model, or run `rlaif reward` again.",
            )
    return card


def check_weights(card: Mapping[str, Any], weights: Mapping[str, float], taken: Collection[str] = ()) -> None:
    """Check `ppo.reward_weights`: they are empty or name every dimension of the reward model.

    taken: names of other parts of the reward, which no dimension may have.
    Raises ConfigError.
    """
    dimensions = dimensions_of(card)
    if weights and set(weights) != set(dimensions):
        raise ConfigError(
            f"a weight for each dimension of the reward model: {', '.join(dimensions)}",
            f"weights for {', '.join(weights)}",
            "Correct ppo.reward_weights (0 leaves a dimension out), or leave it empty: each counts 1.",
        )
    # the part of a single dimension is called SCORE, which cannot clash
    clash = sorted(set(dimensions) & set(taken)) if len(dimensions) > 1 else []
    if clash:
        raise ConfigError(
            f"parts of the reward with different names beside ppo.terms.{clash[0]}",
            f"a dimension {clash[0]!r} of the reward model",
            f"Set ppo.terms.{clash[0]}=0, or train the dimension under another name.",
        )


# ---------------------------------------------------------------------------------------------------- the context


def context_mode(config: Config) -> str:
    """Return which captions `ppo.reward` reads: those its card names; for a function those that `reward.context` names."""
    reward = config.ppo.reward
    return config.reward.context if isinstance(reward, Function) else read_card(reward)["prompt"]["context"]


def contextual_prompts(mode: str, prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    """Return the prompts with the captions that a reward is to read; see `contexts`."""
    rows = [(prompt.video, prompt.captions) for prompt in prompts]
    captions = contexts(mode, rows, seed)
    return [replace(prompt, captions=own) for prompt, own in zip(prompts, captions, strict=True)]


# ----------------------------------------------------------------------------------------------------- the scores


class ModelScorer:
    """A reward model loaded from an export of `rlaif reward`."""

    def __init__(
        self,
        export: str,
        frames: Frames,
        model: Model,
        tokens_per_microbatch: int,
        cache_bytes: int,
        features: SharedFeatures | None = None,
        weights: Mapping[str, float] | None = None,
        threads: int | None = None,
    ):
        """Load it.

        weights: of each dimension, 1 if None. threads: of torch in this process; None leaves them as they are.
        """
        if threads:
            torch.set_num_threads(threads)
        card, folder = read_card(export), fetch(export)
        self.dimensions = dimensions_of(card)
        self.weights = [(weights or {}).get(name, 1.0) for name in self.dimensions]
        self.prompt = RewardPrompt(**card["prompt"])
        self.encoder = Encoder(card["base"] if card["lora"] else folder, frames, cache_bytes, model.dtype)
        self.device = torch.device("cuda" if model.device != "cpu" and torch.cuda.is_available() else "cpu")
        self.budget = tokens_per_microbatch
        self.model = load_reward_model(folder, card, model).to(self.device).eval()
        # a reward model's tower is mostly the policy's: its features then come from the process that computed them first
        self.vision = VisionCache(cache_bytes, features)
        self._tower = tower_key(self.model.causal)

    @torch.no_grad()
    def __call__(self, inputs: Sequence[RewardInput]) -> dict[Key, Outcome]:
        """Return one outcome per input, by key; an input that cannot be read is Masked with the reason."""
        outcomes: dict[Key, Outcome] = {}
        keys, items = [], []
        for one in inputs:
            try:
                items.append(self._encode(one))
                keys.append(one.key)
            except (DataError, ContractError) as error:
                outcomes[one.key] = Masked(f"{error.found}, not {error.expected}")
        # by padded positions, as in a learner: what is scored together then depends on these inputs alone
        for group in pack([len(item.ids) for item in items], self.budget):
            members = [items[i] for i in group]
            scores = self._scores(members)
            for i, values in zip(group, scores, strict=True):
                outcomes[keys[i]] = self._outcome(values)
        return outcomes

    def _scores(self, items: Sequence[Encoded]) -> list[list[float]]:
        """Return the scores of each item in each dimension, by one forward."""
        pad = self.encoder.tokenizer.pad_token_id
        # padding is masked, so a model without a padding token can take any id for it
        videos = [item.video for item in items]
        vision = self.vision.for_batch(self.model.causal, self._tower, videos, self.device)
        batch = collate(items, self.encoder.eos_id if pad is None else pad, self.device, vision=vision)
        scores = self.model(batch, "score", head="reward")["score"]
        return scores.reshape(len(items), -1).cpu().tolist()

    def _outcome(self, scores: Sequence[float]) -> Outcome:
        """Return the weighted scores as parts named like their dimensions; a single dimension's part is named `score`."""
        names = self.dimensions if len(self.dimensions) > 1 else (SCORE,)
        parts = {}
        for name, weight, score in zip(names, self.weights, scores, strict=True):
            parts[name] = weight * score
        return reward_outcome(parts)

    def _encode(self, one: RewardInput) -> Encoded:
        prompt = one.prompt
        features = self.encoder.video(prompt.video) if prompt.video else None
        return self.prompt.encode(self.encoder, prompt.question, prompt.captions, one.response, features)


def load_reward_model(export: str, card: dict, model: Model) -> VideoLM:
    """Return the backbone (full weights, or base and adapter) with its scalar head, from a folder of this node."""
    lora = Lora(**card["lora"]) if card["lora"] else None
    backbone = load_vlm(card["base"] if lora else export, model.dtype, model.attention)
    adapters = {"reward": lora} if lora else None
    module = VideoLM(backbone, {"reward": len(dimensions_of(card))}, adapters)
    if lora:
        load_adapter(module, "reward", export)
        module.activate("reward")
    module.heads["reward"].load_state_dict(load_tensors(Path(export) / HEAD))
    return module
