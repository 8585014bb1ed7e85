"""Test weights and optimizer state by parameter name: a resumed step equals the uninterrupted one on any number of ranks."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import LORA, NoiseFrames, cluster, model, plain_optim, responses, shard_above, weights
from safetensors.numpy import load_file

from learners import losses
from learners.learner import Learner
from learners.spec import LearnerSpec, RoleSpec
from learners.state import load_role, save_role
from rlaif.config.schema import Lora, Optim, Ppo
from rlaif.errors import CheckpointError

ADAM = Optim(lr=1e-2, warmup_steps=5, weight_decay=0.01)
APART = ADAM.model_copy(update={"projector_lr": 3e-2, "schedule": "cosine"})
OBJECTIVES = {"policy": losses.SUPERVISED, "critic": losses.critic_objective(Ppo(), None)}


def build(path, zero_stage, optim=ADAM, lora=LORA, projector=False, **changes) -> Learner:
    roles = (
        RoleSpec("policy", path, lora, optim, 10, train_projector=projector),
        RoleSpec("critic", path, lora, optim, 10, "value"),
        RoleSpec("reference", path),
    )
    spec = LearnerSpec(roles, model(**changes), cluster(zero_stage), 512, 2**28, 10**6, seed=5)
    return Learner(spec, NoiseFrames(), torch.device("cpu"))


def advance(learner, steps, roles=("critic", "policy")) -> None:
    """Take steps on six items, which all ranks share."""
    items = responses(learner.encoder("policy"), 6)
    mine = [(item,) for item in items[dist.get_rank() :: dist.get_world_size()]]
    for _ in range(steps):
        for role in roles:
            learner.step(role, mine, OBJECTIVES[role])


def save_all(learner, folder) -> None:
    for role in ("policy", "critic"):
        save_role(learner.roles[role], Path(folder) if dist.get_rank() == 0 else None)
    dist.barrier()


def load_all(learner, folder) -> None:
    for role in ("policy", "critic"):
        load_role(learner.roles[role], Path(folder))


def both(learner) -> dict[str, np.ndarray]:
    return weights(learner.roles["policy"]) | weights(learner.roles["critic"])


def run_through(path, folder, zero_stage, whole=0, **settings):
    """Take two steps, save, and take a third."""
    shard_above(whole)
    learner = build(path, zero_stage, **settings)
    advance(learner, 2)
    saved = both(learner)
    save_all(learner, folder)
    advance(learner, 1)
    return saved, both(learner)


def resume(path, folder, zero_stage, whole=0, steps=1, **settings):
    """Load the saved state into another learner, and take a third step."""
    shard_above(whole)
    learner = build(path, zero_stage, **settings)
    load_all(learner, folder)
    loaded = both(learner)
    advance(learner, steps)
    return loaded, both(learner)


def largest(a, b) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"zero_stage": 2, "dtype": "bfloat16"},
        {"zero_stage": 2, "lora": None},
        {"zero_stage": 2, "lora": None, "optim": APART, "projector": True},
        pytest.param({"zero_stage": 3, "lora": None, "optim": APART, "projector": True}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: "-".join(str(getattr(value, "projector_lr", value)) for value in settings.values()),
)
def test_a_resumed_step_is_bit_equal(two_ranks, tiny, tmp_path, settings):
    runs = two_ranks.run(run_through, path=tiny, folder=str(tmp_path), **settings)
    resumed = two_ranks.run(resume, path=tiny, folder=str(tmp_path), **settings)
    for (saved, ended), (loaded, again) in zip(runs, resumed, strict=True):
        assert largest(saved, loaded) == 0.0 and largest(ended, again) == 0.0
        assert largest(saved, ended) > 1e-3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "critic.json",
        "critic.safetensors",
        "policy.json",
        "policy.safetensors",
    ]
    saved = load_file(tmp_path / "policy.safetensors")
    assert {str(array.dtype) for array in saved.values()} == {"float32"}
    assert {name.split("/")[0] for name in saved} == {"weight", "exp_avg", "exp_avg_sq"}
    of_tower = [name for name in saved if ".visual." in name and ".merger." not in name]
    assert not of_tower and all(".critic." not in name for name in saved)
    assert any(".merger." in name for name in saved) == settings.get("projector", False)


SMOOTH = plain_optim()


def test_resume_on_another_number_of_ranks_gives_the_same_step(two_ranks, one_rank, tiny, tmp_path):
    """Use ZeRO-3 that keeps small tensors whole, as it does by default; in the other test all of them are sharded."""
    three = {"zero_stage": 3, "whole": 10**5}
    there, back = (str(tmp_path / name) for name in ("there", "back"))
    for folder in (there, back):
        os.mkdir(folder)
    saved, ended = two_ranks.run(run_through, path=tiny, folder=there, optim=SMOOTH, **three)[0]
    loaded, again = one_rank.run(resume, path=tiny, folder=there, optim=SMOOTH, zero_stage=2)[0]
    assert largest(saved, loaded) == 0.0
    assert largest(saved, ended) > 1e-2 and largest(ended, again) < 1e-5

    saved, ended = one_rank.run(run_through, path=tiny, folder=back, optim=SMOOTH, zero_stage=2)[0]
    for loaded, again in two_ranks.run(resume, path=tiny, folder=back, optim=SMOOTH, **three):
        assert largest(saved, loaded) == 0.0 and largest(ended, again) < 1e-5


def warm_up(path, folder, resumed):
    """Step the critic, save, and step both roles, in the same learner or another. The policy has no Adam state when saved."""
    learner = build(path, 2)
    if not resumed:
        advance(learner, 1, ["critic"])
        save_all(learner, folder)
    else:
        load_all(learner, folder)
    advance(learner, 1)
    return both(learner)


def test_resume_from_a_checkpoint_saved_before_the_policy_stepped(two_ranks, tiny, tmp_path):
    first = two_ranks.run(warm_up, path=tiny, folder=str(tmp_path), resumed=False)[0]
    assert json.loads((tmp_path / "policy.json").read_text())["steps"] == 0
    assert not any(
        array.any() for name, array in load_file(tmp_path / "policy.safetensors").items() if name.startswith("exp_avg")
    )
    assert largest(first, two_ranks.run(warm_up, path=tiny, folder=str(tmp_path), resumed=True)[0]) == 0.0


def refused(path, folder, lora, only=None):
    """Return the error of loading into this kind of learner."""
    learner = build(path, 2, lora=lora)
    before = both(learner)
    with pytest.raises(CheckpointError) as caught:
        load_role(learner.roles[only], Path(folder)) if only else load_all(learner, folder)
    assert largest(before, both(learner)) == 0.0
    return str(caught.value)


class Payload:
    """An object that leaves a folder when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_load_role_rejects_other_shapes_another_base_and_pickles(one_rank, tiny, tmp_path):
    one_rank.run(run_through, path=tiny, folder=str(tmp_path), zero_stage=2)
    message = one_rank.run(refused, path=tiny, folder=str(tmp_path), lora=Lora(r=2, alpha=8))[0]
    assert ".lora_A.policy.weight" in message
    assert "(4, " in message and "(2, " in message
    message = one_rank.run(
        refused, path=tiny, folder=str(tmp_path), lora=Lora(r=4, alpha=8, targets=("q_proj", "k_proj"))
    )[0]
    assert "missing" in message

    meta = json.loads((tmp_path / "critic.json").read_text())
    (tmp_path / "critic.json").write_text(json.dumps(meta | {"base": "0123456789abcdef"}))
    message = one_rank.run(refused, path=tiny, folder=str(tmp_path), lora=LORA, only="critic")[0]
    assert "'critic'" in message and "another base (0123456789abcdef)" in message
    (tmp_path / "critic.json").write_text(json.dumps(meta))

    marker = tmp_path / "executed"
    for name in ("policy.pt", "optimizer.pkl", "policy.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(marker)))
    message = one_rank.run(refused, path=tiny, folder=str(tmp_path), lora=LORA)[0]
    assert "a safetensors file" in message and not marker.exists()


def test_payload_leaves_a_folder_when_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()
