"""Which weights the critic starts from, however the paths to the reward model's base and to the policy are spelt."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import pytest

from rlaif.config.schema import Lora, Reward
from rlaif.errors import ConfigError
from rlaif.io.storage import locate
from rlaif.models.bases import RECORD
from rlaif.models.model_dir import ModelDir
from rlaif.models.reward import CARD, card_text
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.stages.train.workers import (
    critic_start,
    describe_critic_start,
    identity,
    learner_spec,
    require_inputs,
    start_workers,
)

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
    folder.mkdir(parents=True)
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


class Full(Exception):
    """There is no room for actors here."""


def test_a_run_prints_what_the_critic_starts_from(make_config, world, tmp_path, capsys):
    def place(*roles):
        raise Full

    reward = reward_on(tmp_path / "reward", world / "base")
    config = make_config(tmp_path, f"ppo.reward={reward}")
    with pytest.raises(Full):
        start_workers(config, SimpleNamespace(topology=SimpleNamespace(place=place)), learner_spec(config))
    assert f"critic starts from the reward model {reward}" in capsys.readouterr().out


@pytest.mark.parametrize("record", [True, False], ids=["record", "no record"])
def test_a_run_that_moved_is_the_one_of_its_checkpoints(make_config, world, tmp_path, record):
    """Old runs have no record of their bases; their cards hold absolute paths alone."""
    options = ["ppo.policy={run}/sft/export", "ppo.reward={run}/reward/export"]
    first = make_config(tmp_path, "name=first", *options)
    here, there = tmp_path / "runs" / "first", tmp_path / "runs" / "second"
    shutil.copytree(world / "base", here / "sft" / "export")
    reward_on(here / "reward" / "export", here / "sft" / "export")
    if record:
        target = locate(tmp_path / "runs") / "first/reward/export"
        (here / "reward" / "export" / RECORD).write_text(ModelDir(str(here / "sft" / "export")).record_text(target))
    before = identity(first)
    assert before["critic"]["lora"]["r"] == ADAPTER.r != first.ppo.lora.r
    here.rename(there)
    second = make_config(tmp_path, "name=second", *options)
    assert identity(second) == before
    assert critic_start(second) == (f"{there}/sft/export", ADAPTER, f"{there}/reward/export")


def test_a_reward_model_without_its_base_stops_a_run_before_anything_starts(make_config, world, tmp_path):
    base = _made(tmp_path / "base", lambda copy: shutil.copytree(world / "base", copy))
    reward = reward_on(tmp_path / "reward", base)
    shutil.rmtree(base)
    with pytest.raises(ConfigError) as caught:
        require_inputs(make_config(tmp_path, f"ppo.reward={reward}"))
    assert "ppo.reward, its base" in caught.value.expected and str(base) in caught.value.expected
    assert "no such folder" in caught.value.found and "move it along" in caught.value.fix
