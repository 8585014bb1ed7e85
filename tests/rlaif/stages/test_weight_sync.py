"""Versions that go from learner to engine over a vLLM transport: whole or not at all, and nobody waits for ever."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from cluster.ledger import Ledger
from cluster.remote import ask
from rlaif.config.cluster import Rollout
from rlaif.errors import ContractError, PlacementError
from rlaif.stages.run import datasets
from rlaif.stages.run.run import open_run
from rlaif.stages.train.deck import Deck
from rlaif.stages.train.experience import ExperienceMaker
from rlaif.stages.train.parity import Gate
from rlaif.stages.train.ppo import learn
from rlaif.stages.train.weight_sync import WeightSync
from rlaif.stages.train.workers import enough_prompts, learner_spec, parity_gate, start_workers

pytestmark = pytest.mark.slow

LAYER = "model.language_model.layers.0.mlp.up_proj.weight"


class Started:
    """Real learners and three real rollout actors that share a transport."""

    def __init__(self, config, run):
        self.config = config
        self.prompts = enough_prompts(config, datasets.load(run, config.data.prompts, "prompts"))
        workers = start_workers(config, run, learner_spec(config))
        pool = workers.rollouts
        support = str(Path(__file__).parents[2] / "support")
        actors = [*pool.fleet.handles.values(), *workers.learners.ranks]
        ask([actor.__ray_call__.remote(_register, support) for actor in actors])
        options = Rollout.model_construct(**dict(Rollout(), transport="loopback"))
        self.weight_sync = WeightSync(workers.learners, pool, options, deadline_s=20.0)
        self.workers = replace(workers, weight_sync=self.weight_sync)
        self.weight_sync.publish(0)
        self.gate: Gate = parity_gate(config, self.workers, self.prompts)
        deck = Deck(self.prompts, config.ppo.prompts_per_iteration, config.seed)
        self.maker = ExperienceMaker(config, run, self.workers, deck, Ledger(), 0)

    def step(self, version: int) -> None:
        self.maker.submit(version)
        learn(self.config, self.workers, self.maker, self.maker.collect(version))

    def agree(self) -> bool:
        return max(self.gate.check().values()) < 1e-4

    def damage(self, name: str | None) -> None:
        ask([rank.__ray_call__.remote(_damage, name) for rank in self.workers.learners.ranks])


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
    before = ask(list(started.workers.rollouts.fleet.handles.values())[0].version.remote())
    started.step(0)
    metrics = started.weight_sync.publish(1)
    started.weight_sync.wait()
    versions = ask([actor.version.remote() for actor in started.workers.rollouts.fleet.handles.values()])
    assert (before, versions) == (0, [1, 1, 1])
    assert started.agree()
    assert metrics["publish/rerouted"] == 0 and metrics["publish/bytes"] > 1e6 and started.weight_sync.apply_s > 0


def test_a_flipped_bit_is_named_and_the_version_comes_through_the_object_store(started, caplog):
    started.damage(LAYER)
    started.step(1)
    with caplog.at_level("WARNING"):
        metrics = started.weight_sync.publish(2)
    assert metrics["publish/rerouted"] == 3 and LAYER in caplog.text and "rollout-1" in caplog.text
    with pytest.raises(ContractError, match=r"rollout\.transport"):  # all are well: the transport itself is bad
        started.weight_sync.wait()
    assert started.agree()
    started.damage(None)
    started.weight_sync.publish(3)
    started.weight_sync.wait()
    assert started.agree() and started.weight_sync.rerouted == 3


def test_an_actor_that_dies_or_hangs_is_ended_and_the_others_go_on(started):
    pool = started.workers.rollouts
    ray.kill(pool.fleet.handles["rollout-2"])
    pool.fleet.handles["rollout-1"].__ray_call__.remote(lambda actor: time.sleep(600))
    started.weight_sync.deadline_s = 5.0
    began = time.monotonic()
    metrics = started.weight_sync.publish(4)
    started.weight_sync.wait()
    assert time.monotonic() - began < 60
    assert (
        metrics["publish/rerouted"] == 5
        and pool.fleet.names == ["rollout-0"]
        and set(pool.fleet.dead) == {"rollout-1", "rollout-2"}
    )
    assert started.agree()
    started.weight_sync.publish(5)
    started.weight_sync.wait()
    assert started.agree() and started.weight_sync.rerouted == 5
    with pytest.raises(ContractError, match="object store"):
        pool.fleet.add("late", None)


def test_the_last_actor_dying_stops_the_run(started):
    ray.kill(started.workers.rollouts.fleet.handles["rollout-0"])
    started.weight_sync.publish(6)
    with pytest.raises(PlacementError, match="rollout-0"):
        started.weight_sync.wait()
