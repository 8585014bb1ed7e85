"""What is saved beside a reward model's weights: its base, the form of its prompt, and what its outputs are called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.config.schema import Lora
from rlaif.data.rows import OVERALL
from rlaif.errors import ConfigError
from rlaif.io.storage import fetch, locate
from rlaif.models.bases import absolute, find_base
from rlaif.models.check import fingerprint, require_base, require_model
from rlaif.models.digest import add_weights
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.models.vlm import ADAPTER

CARD = "reward.json"

HEAD = "head.safetensors"


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
