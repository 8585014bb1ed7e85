"""Versions that go from learner to engine over a vLLM transport: whole or not at all, and nobody waits for ever."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import ray

from cluster.remote import ask
from rlaif.config.cluster import Rollout
from rlaif.errors import ContractError, PlacementError
from rlaif.stages.run import datasets
from rlaif.stages.run.run import open_run
from rlaif.stages.train.experience import ask_for, collect, learn
from rlaif.stages.train.parity import Gate
from rlaif.stages.train.weight_sync import Publisher
from rlaif.stages.train.workers import enough_prompts, learner_spec, parity_gate, start_roles

pytestmark = pytest.mark.slow

LAYER = "model.language_model.layers.0.mlp.up_proj.weight"


class Started:
    """Real learners and three real rollout actors that share a transport."""

    def __init__(self, config, run):
        self.config = config
        self.prompts = enough_prompts(config, datasets.load(run, config.data.prompts, "prompts"))
        self.roles = start_roles(config, run, self.prompts, learner_spec(config))
        pool = self.roles.rollouts
        support = str(Path(__file__).parents[2] / "support")
        actors = [*pool.handles.values(), *self.roles.learners.ranks]
        ask([actor.__ray_call__.remote(_register, support) for actor in actors])
        options = Rollout.model_construct(**dict(Rollout(), transport="loopback"))
        self.publisher = self.roles.publisher = Publisher(self.roles.learners, pool, options, deadline_s=20.0)
        self.publisher.publish(0)
        self.gate: Gate = parity_gate(config, self.roles, self.prompts)

    def step(self, version: int) -> None:
        ask_for(self.config, self.roles, version)
        learn(self.config, self.roles, collect(self.config, self.roles, version))

    def agree(self) -> bool:
        return max(self.gate.check().values()) < 1e-4

    def damage(self, name: str | None) -> None:
        ask([rank.__ray_call__.remote(_damage, name) for rank in self.roles.learners.ranks])


def _register(actor, folder: str) -> None:
    sys.path.insert(0, folder)
    import loopback

    loopback.register()


def _damage(actor, name: str | None) -> None:
    import loopback

    loopback.Sending.damage = name


@pytest.fixture(scope="module")
def started(world, make_config, tmp_path_factory):
    overrides = ["ppo.lora=null", "ppo.advantage=leave_one_out", "cluster.rollout.actors=3"]
    config = make_config(tmp_path_factory.mktemp("publishing"), *overrides)
    with open_run(config) as run:
        yield Started(config, run)


def test_versions_reach_every_engine_and_agree_with_the_learner(started):
    before = ask(list(started.roles.rollouts.handles.values())[0].version.remote())
    started.step(0)
    metrics = started.publisher.publish(1)
    started.publisher.wait()
    versions = ask([actor.version.remote() for actor in started.roles.rollouts.handles.values()])
    assert (before, versions) == (0, [1, 1, 1])
    assert started.agree()
    assert metrics["publish/rerouted"] == 0 and metrics["publish/bytes"] > 1e6 and started.publisher.apply_s > 0


def test_a_flipped_bit_is_named_and_the_version_comes_through_the_object_store(started, caplog):
    started.damage(LAYER)
    started.step(1)
    with caplog.at_level("WARNING"):
        metrics = started.publisher.publish(2)
    assert metrics["publish/rerouted"] == 3 and LAYER in caplog.text and "rollout-1" in caplog.text
    with pytest.raises(ContractError, match=r"rollout\.transport"):  # all are well: the transport itself is bad
        started.publisher.wait()
    assert started.agree()
    started.damage(None)
    started.publisher.publish(3)
    started.publisher.wait()
    assert started.agree() and started.publisher.rerouted == 3


def test_an_actor_that_dies_or_hangs_is_ended_and_the_others_go_on(started):
    pool = started.roles.rollouts
    ray.kill(pool.handles["rollout-2"])
    pool.handles["rollout-1"].__ray_call__.remote(lambda actor: time.sleep(600))
    started.publisher.deadline_s = 5.0
    began = time.monotonic()
    metrics = started.publisher.publish(4)
    started.publisher.wait()
    assert time.monotonic() - began < 60
    assert (
        metrics["publish/rerouted"] == 5
        and pool.actors == ["rollout-0"]
        and set(pool.dead) == {"rollout-1", "rollout-2"}
    )
    assert started.agree()
    started.publisher.publish(5)
    started.publisher.wait()
    assert started.agree() and started.publisher.rerouted == 5
    with pytest.raises(ContractError, match="object store"):
        pool.add("late", None)


def test_the_last_actor_dying_stops_the_run(started):
    ray.kill(started.roles.rollouts.handles["rollout-0"])
    started.publisher.publish(6)
    with pytest.raises(PlacementError, match="rollout-0"):
        started.publisher.wait()
