"""Nothing a learner remembers between iterations is missing from its checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import LORA, NoiseFrames, answer, cluster, model
from statewalk import differences, leaves

from learners.learner import Learner
from learners.ppo import PpoState, train_on
from learners.spec import LearnerSpec, RoleSpec
from learners.state import load_role, save_role
from rlaif.config.schema import Kl, Optim, Ppo
from rlaif.models.encode import Encoder
from rlaif.records import Sample

OPTIM = Optim(lr=1e-2, warmup_steps=3, schedule="cosine")
PPO = Ppo(
    prompts_per_iteration=2,
    samples_per_prompt=2,
    minibatch_size=4,
    epochs=2,
    kl=Kl(controller="adaptive", target=0.1, horizon=10),
)

CACHES = ("learner._encoders.", "learner.vision.", "learner.work.", "learner.world")
"""What the learner makes again when it needs it (tokenizers, processed videos, towers' output) and what it only reports."""


class Remembers:
    """What a rank's worker holds between iterations."""

    def __init__(self, path: str, lora, zero_stage: int):
        roles = [
            RoleSpec("policy", path, lora, OPTIM, 20),
            RoleSpec("critic", path, lora, OPTIM, 20, "value"),
            RoleSpec("reference", path),
        ]
        spec = LearnerSpec(tuple(roles), model(), cluster(zero_stage), 512, 2**28, 150, seed=5)
        self.learner = Learner(spec, NoiseFrames(), torch.device("cpu"))
        self.ppo = PpoState.of(PPO)

    def iterate(self, iteration: int) -> None:
        samples = _samples(self.learner.encoder("policy"), iteration)[dist.get_rank() :: 2]
        train_on(self.learner, self.ppo, samples, [1.0, -1.0], PPO, seed=3)

    def save(self, folder) -> dict:
        for role in self.learner.roles.values():
            if role.engine is not None:
                save_role(role, folder if dist.get_rank() == 0 else None)
        dist.barrier()
        return self.ppo.state_dict()

    def load(self, folder, state: dict) -> None:
        for role in self.learner.roles.values():
            if role.engine is not None:
                load_role(role, folder)
        self.ppo.load_state_dict(state)


def _samples(encoder: Encoder, iteration: int) -> list[Sample]:
    rng, made = np.random.default_rng(iteration), []
    for number in range(4):
        ids = [*rng.integers(11, 30, rng.integers(2, 9)), encoder.eos_id]
        made.append(answer(encoder, number, ids, rng.normal(-3.5, 0.2, len(ids)), iteration))
    return made


def forgotten(path, folder, lora, zero_stage):
    """What differs between a rank that has done two iterations and a new one that loads its checkpoint; what differs
    when the new one loads nothing; and what is different after the third iteration of both."""
    old = Remembers(path, lora, zero_stage)
    for iteration in (0, 1):
        old.iterate(iteration)
    state = old.save(folder)
    new = Remembers(path, lora, zero_stage)
    untrained = _without_caches(differences(vars(old), vars(new)))
    new.load(folder, state)
    missing = _without_caches(differences(vars(old), vars(new)))
    old.iterate(2)
    new.iterate(2)
    return missing, untrained, _without_caches(differences(vars(old), vars(new)))


def _without_caches(paths: list[str]) -> list[str]:
    return [path for path in paths if not path.startswith(CACHES)]


@pytest.mark.parametrize("lora, zero_stage", [(LORA, 2), (None, 2), (LORA, 3)], ids=["lora", "full", "lora-zero3"])
def test_a_checkpoint_holds_everything_that_an_iteration_changes(two_ranks, tiny, tmp_path, lora, zero_stage):
    for missing, untrained, later in two_ranks.run(
        forgotten, path=tiny, folder=tmp_path, lora=lora, zero_stage=zero_stage
    ):
        assert missing == [] and later == []
        for part in ("moments", "module.", "ppo.kl.value", "ppo.returns.mean", "ppo.iteration", ".steps"):
            assert any(part in found for found in untrained), part


def test_the_walk_sees_what_is_added_to_a_class():
    class State(PpoState):
        pass

    State.__module__ = "learners.ppo"
    one, other = State.of(PPO), State.of(PPO)
    assert differences(one, other) == []
    one.momentum = {"x": [torch.zeros(2)]}
    other.momentum = {"x": [torch.ones(2)]}
    assert differences(one, other) == ["momentum.x.0"]
    assert dict(leaves(replace(one)))["kl.value"] == PPO.kl.coef
