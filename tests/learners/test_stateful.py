"""Test that a checkpoint holds everything that a learner remembers between iterations."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import LORA, NoiseFrames, answer, cluster, model
from statewalk import differences, leaves

from cluster.checkpoint import CheckpointRef, Checkpoints
from learners.ppo_state import PpoState
from learners.spec import LearnerSpec, RoleSpec
from learners.worker import LearnerWorker
from rlaif.config.schema import Kl, Optim, Ppo
from rlaif.models.encode import Encoder
from rlaif.records import Experience, Sample

OPTIM = Optim(lr=1e-2, warmup_steps=3, schedule="cosine")
PPO = Ppo(
    prompts_per_iteration=2,
    samples_per_prompt=2,
    minibatch_size=4,
    epochs=2,
    kl=Kl(controller="adaptive", target=0.1, horizon=10),
)

CACHES = ("learner._encoders.", "learner.vision.", "learner.counters.")
"""What the learner makes again at its next use (tokenizers, processed videos, towers' output) and what it only reports."""


class Remembers(LearnerWorker):
    """A rank's worker as in a run, in a process group that exists already."""

    def __init__(self, path: str, lora, zero_stage: int):
        roles = [
            RoleSpec("policy", path, lora, OPTIM, 20),
            RoleSpec("critic", path, lora, OPTIM, 20, "value"),
            RoleSpec("reference", path),
        ]
        spec = LearnerSpec(tuple(roles), model(), cluster(zero_stage), 512, 2**28, 150, seed=5)
        super().__init__(spec, dist.get_rank(), dist.get_world_size())
        self.start(("127.0.0.1", int(os.environ["MASTER_PORT"])), NoiseFrames, PPO)

    def iterate(self, iteration: int) -> None:
        samples = _samples(self.learner.encoder("policy"), iteration)[dist.get_rank() :: 2]
        self.train_ppo(Experience(tuple(samples), (1.0, -1.0)), PPO, seed=3)


def saved(worker: LearnerWorker, folder) -> tuple[Checkpoints, CheckpointRef]:
    """Write a checkpoint on every rank, as the driver does."""
    checkpoints = Checkpoints(folder)
    box = [checkpoints.begin(1) if worker.rank == 0 else None]
    dist.broadcast_object_list(box)
    state = worker.save(box[0])
    dist.barrier()
    if worker.rank == 0:
        box = [checkpoints.commit(box[0], {"learner": state})]
    dist.broadcast_object_list(box)
    return checkpoints, box[0]


def _samples(encoder: Encoder, iteration: int) -> list[Sample]:
    rng = np.random.default_rng(iteration)
    samples = []
    for number in range(4):
        ids = [*rng.integers(11, 30, rng.integers(2, 9)), encoder.eos_id]
        samples.append(answer(encoder, number, ids, rng.normal(-3.5, 0.2, len(ids)), iteration))
    return samples


def forgotten(path, folder, lora, zero_stage):
    """Return the differences between a rank after two iterations and a new one that loads its checkpoint.

    Also return the differences if the new one loads nothing, and those after the third iteration of both.
    """
    old = Remembers(path, lora, zero_stage)
    for iteration in (0, 1):
        old.iterate(iteration)
    old.learner.roles["critic"].skipped = 1  # as after a step without a finite gradient
    checkpoints, ref = saved(old, folder)
    new = Remembers(path, lora, zero_stage)
    untrained = _without_caches(differences(vars(old), vars(new)))
    new.load(checkpoints, ref, ref.meta["learner"])
    missing = _without_caches(differences(vars(old), vars(new)))
    old.iterate(2)
    for generator in (torch.manual_seed, np.random.seed, random.seed):
        generator(12345)  # every use of these is seeded by (run seed, step): their states need no saving
    new.iterate(2)
    return missing, untrained, _without_caches(differences(vars(old), vars(new)))


def _without_caches(paths: list[str]) -> list[str]:
    return [path for path in paths if not path.startswith(CACHES)]


DROPOUT = LORA.model_copy(update={"dropout": 0.2})


@pytest.mark.parametrize(
    "lora, zero_stage",
    [(DROPOUT, 2), pytest.param(None, 2, marks=pytest.mark.slow), pytest.param(LORA, 3, marks=pytest.mark.slow)],
    ids=["lora-dropout", "full", "lora-zero3"],
)
def test_a_checkpoint_holds_everything_that_an_iteration_changes(two_ranks, tiny, tmp_path, lora, zero_stage):
    for missing, untrained, later in two_ranks.run(
        forgotten, path=tiny, folder=tmp_path, lora=lora, zero_stage=zero_stage
    ):
        assert missing == [] and later == []
        for part in (
            "moments",
            "module.",
            "ppo_state.kl.value",
            "ppo_state.returns.mean",
            "ppo_state.iteration",
            ".steps",
        ):
            assert any(part in path for path in untrained), part


def test_state_walk_finds_attributes_added_to_a_class():
    class State(PpoState):
        pass

    State.__module__ = "learners.ppo_state"
    one, other = State.of(PPO), State.of(PPO)
    assert differences(one, other) == []
    one.momentum = {"x": [torch.zeros(2)]}
    other.momentum = {"x": [torch.ones(2)]}
    assert differences(one, other) == ["momentum.x.0"]
    assert dict(leaves(replace(one)))["kl.value"] == PPO.kl.coef
