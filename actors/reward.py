"""The reward actor: scores answers with a reward model that reads the video's captions, or with a function."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlaif.config.schema import Lora, Model
from rlaif.data import OVERALL
from rlaif.errors import ConfigError, ContractError, DataError
from rlaif.models.bases import absolute, find_base
from rlaif.models.batch import collate
from rlaif.models.check import fingerprint, require_base, require_model
from rlaif.models.digest import add_weights
from rlaif.models.encode import Encoded, Encoder, Frames
from rlaif.models.packing import pack
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.models.vision import Shared, VisionCache, tower_key
from rlaif.models.vlm import ADAPTER, VideoLM, load_adapter, load_vlm
from rlaif.objectives.rewards import total
from rlaif.records import Key, Masked, Outcome, Prompt
from rlaif.storage import fetch, locate
from rlaif.tensors import load_tensors

CARD = "reward.json"
"""Saved with every reward model: its base, the form of its prompt, and what the outputs of its head are called."""

HEAD = "head.safetensors"

SCORE = "score"
"""The part of a reward that has no other name."""


@dataclass(frozen=True)
class Answer:
    """One answer to be scored, with the captions that are its context."""

    key: Key
    prompt: Prompt
    captions: tuple[str, ...]
    response: str


class ModelScorer:
    """A reward model loaded from an export of `rlaif reward`. No Ray in here."""

    def __init__(
        self,
        export: str,
        frames: Frames,
        model: Model,
        tokens_per_microbatch: int,
        cache_bytes: int,
        features: Shared | None = None,
        weights: Mapping[str, float] | None = None,
    ):
        """`weights`: of each dimension, 1 if None."""
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


class FunctionScorer:
    """`f(prompt, response) -> float or dict of parts`. What it raises masks that sample, with the reason."""

    def __init__(self, path: str):
        self.path, self.function = path, load_function(path)

    def __call__(self, answers: Sequence[Answer]) -> dict[Key, Outcome]:
        return {answer.key: self._score(answer) for answer in answers}

    def _score(self, answer: Answer) -> Outcome:
        try:
            return scored(self.function(answer.prompt, answer.response))
        except Exception as error:  # a user's code: the failure is kept as the sample's typed outcome and counted
            return Masked(f"{self.path}: {type(error).__name__}: {error}")


class RewardActor:
    """The Ray actor's body."""

    def __init__(
        self,
        reward: str | dict,
        make_frames: Callable[[], Frames],
        model: Model,
        tokens_per_microbatch: int,
        cache_bytes: int,
        threads: int,
        make_features: Callable[[], Shared] | None = None,
        weights: Mapping[str, float] | None = None,
    ):
        features = make_features() if make_features else None
        torch.set_num_threads(max(1, threads))
        self.scorer: Callable[[Sequence[Answer]], dict[Key, Outcome]] = (
            ModelScorer(reward, make_frames(), model, tokens_per_microbatch, cache_bytes, features, weights)
            if isinstance(reward, str)
            else FunctionScorer(reward["path"])
        )

    def score(self, answers: Sequence[Answer]) -> dict[Key, Outcome]:
        """One outcome per answer, by key."""
        return self.scorer(answers)

    def score_timed(self, answers: Sequence[Answer]) -> tuple[dict[Key, Outcome], float]:
        """Return the same and the seconds it took."""
        began = time.perf_counter()
        return self.score(answers), time.perf_counter() - began

    def ready(self) -> bool:
        return True


def scored(result: float | dict[str, float]) -> Outcome:
    """Return the outcome of a number, or of named parts that add up to one.

    Masked, with the reason: a part or a sum that is not finite, and no parts at all.
    """
    parts = (
        {name: float(value) for name, value in result.items()} if isinstance(result, dict) else {SCORE: float(result)}
    )
    bad = [name for name, value in parts.items() if not math.isfinite(value)]
    if bad or not parts:
        return Masked(f"part {bad[0]!r} is {parts[bad[0]]}" if bad else "no parts")
    return total(parts, sum(parts.values()))


def read_card(export: str, option: str = "ppo.reward") -> dict:
    """Return what CARD says, with the base's path as it is now: run directories are moved and copied.

    Raises ConfigError, naming the option, if there is no reward model.
    """
    location = locate(export) / CARD
    if not location.exists():
        raise ConfigError(
            f"a reward model exported by `rlaif reward` at {export}",
            f"no {CARD} there",
            f"Set {option} to a reward model, or train one first",
        )
    card = json.loads(location.read())
    return card | {"base": find_base(export, card["base"])}


def require_reward_model(option: str, export: str) -> dict:
    """Return the card of a reward model all of whose files are there, its base included.

    Raises ConfigError, naming the option, before an actor would fail to load it.
    """
    card = read_card(export, option)
    if card["lora"]:
        require_base(f"{option}, its base", export, card["base"])
    else:
        require_model(option, export)
    for name in (HEAD, ADAPTER) if card["lora"] else (HEAD,):
        if not (locate(export) / name).exists():
            raise ConfigError(
                f"{option}: {name} in {export}",
                "no such file",
                f"Set {option} to another reward model, or run `rlaif reward` again",
            )
    return card


def card_text(base: str, lora: Lora | None, prompt: RewardPrompt, dimensions: Sequence[str] = (OVERALL,)) -> str:
    """What CARD holds."""
    form = {"base": absolute(base), "lora": lora.model_dump(mode="json") if lora else None, "prompt": vars(prompt)}
    return json.dumps(form | {"dimensions": list(dimensions)}, indent=2)


def dimensions_of(card: Mapping[str, Any]) -> tuple[str, ...]:
    """What the outputs of a reward model's head say, in their order."""
    return tuple(card.get("dimensions", (OVERALL,)))


def reward_fingerprint(export: str) -> str:
    """What tells two reward models apart, wherever they lie: 16 hex digits over card, base and weights."""
    card = read_card(export)
    card["base"] = fingerprint(card["base"]) if card["lora"] else ""
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    add_weights(digest, Path(fetch(export)))
    return digest.hexdigest()[:16]


def check_weights(card: Mapping[str, Any], weights: Mapping[str, float], taken: Collection[str] = ()) -> None:
    """`ppo.reward_weights` is empty or names every dimension of the reward model, of which none is called like another part
    of the reward (`taken`). Raises ConfigError."""
    dimensions = dimensions_of(card)
    if weights and set(weights) != set(dimensions):
        raise ConfigError(
            f"a weight for each dimension of the reward model: {', '.join(dimensions)}",
            f"weights for {', '.join(weights)}",
            "Correct ppo.reward_weights (0 leaves a dimension out), or leave it empty: each counts 1",
        )
    if len(dimensions) > 1 and (clash := sorted(set(dimensions) & set(taken))):
        raise ConfigError(
            f"parts of the reward with different names beside ppo.terms.{clash[0]}",
            f"a dimension {clash[0]!r} of the reward model",
            f"Set ppo.terms.{clash[0]}=0, or train the dimension under another name",
        )


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


def load_function(path: str) -> Callable:
    """`package.module:name`; ConfigError where there is none."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            "a function as `package.module:name`", f"{path!r} ({error})", "Correct the path, or set PYTHONPATH"
        ) from error
