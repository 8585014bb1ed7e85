"""Which weights the critic starts from, however the paths to the reward model's base and to the policy are spelt."""

from __future__ import annotations

import os
import shutil

import pytest

from actors.reward import CARD, card_text
from rlaif.config.schema import Lora, Reward
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.stages.roles import critic_start, describe_critic_start

ADAPTER = Lora(r=8)
SPELLINGS = {
    "the same": lambda base, folder: base,
    "a trailing slash": lambda base, folder: f"{base}/",
    "through another folder": lambda base, folder: f"{base.parent}/./data/../{base.name}",
    "a relative path": lambda base, folder: os.path.relpath(base),
    "a symlink": lambda base, folder: _made(folder / "link", lambda link: link.symlink_to(base)),
    "a copy": lambda base, folder: _made(folder / "copy", lambda copy: shutil.copytree(base, copy)),
    "a file URI": lambda base, folder: f"file://{base}",
}


def _made(path, make):
    make(path)
    return path


def reward_on(folder, base: object, lora: Lora | None = ADAPTER):
    """A reward model's card alone."""
    folder.mkdir()
    text = card_text(str(base), lora, RewardPrompt.of(Reward()))
    (folder / CARD).write_text(text)
    return folder


@pytest.mark.parametrize("side", ["policy", "card"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_critic_starts_from_the_reward_model_whatever_the_spelling(make_config, world, tmp_path, spelling, side):
    base, other = world / "base", SPELLINGS[spelling](world / "base", tmp_path)
    policy, in_card = (other, base) if side == "policy" else (base, other)
    reward = reward_on(tmp_path / "reward", in_card)
    config = make_config(tmp_path, f"ppo.policy={policy}", f"ppo.reward={reward}")
    assert critic_start(config) == (str(policy), ADAPTER, str(reward))
    assert describe_critic_start(config).startswith(f"critic starts from the reward model {reward}")


def test_another_base_or_a_function_starts_the_critic_from_the_policy(make_config, world, tmp_path):
    policy = world / "base"
    other = _made(tmp_path / "other", lambda copy: shutil.copytree(policy, copy))
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"else")
    for number, reward in enumerate(
        [reward_on(tmp_path / "r1", other), reward_on(tmp_path / "r2", policy, None), None], start=1
    ):
        chosen = [f"ppo.reward={reward}"] if reward else []
        config = make_config(tmp_path, *chosen)
        assert critic_start(config) == (str(policy), config.ppo.lora, None), number
        assert describe_critic_start(config).startswith(f"critic starts from the policy {policy}: ")
