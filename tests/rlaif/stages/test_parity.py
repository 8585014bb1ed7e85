"""The parity gate on the real engine and learner: silent while both agree, and it names what is planted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from cluster.ledger import Ledger
from cluster.publish import from_wire, pack_weights, unpack_weights
from cluster.remote import ask
from rlaif.errors import ParityError
from rlaif.records import Probed
from rlaif.stages.run import datasets
from rlaif.stages.run.run import open_run
from rlaif.stages.train.deck import Deck
from rlaif.stages.train.experience import ExperienceMaker
from rlaif.stages.train.parity import Gate, differences
from rlaif.stages.train.ppo import learn
from rlaif.stages.train.workers import enough_prompts, learner_spec, parity_gate, start_workers


@pytest.fixture(
    scope="module",
    params=[pytest.param("{r: 4, alpha: 4}", id="lora"), pytest.param("null", id="full")],
)
def started(request, world, make_config, tmp_path_factory):
    """(config, maker, prompts, gate) of a run that trains adapters, or full weights with the tower."""
    full, folder = request.param == "null", tmp_path_factory.mktemp("parity")
    policy = quick_clock(world / "base", folder / "base")
    overrides = [f"ppo.policy={policy}", f"ppo.lora={request.param}", "ppo.advantage=leave_one_out"]
    overrides += ["video.num_frames=24", "video.height=28", "video.width=28"]
    overrides += ["ppo.train_vision=true", "ppo.train_projector=true"] if full else ["rollout.vision=shared"]
    config = make_config(folder, *overrides)
    with open_run(config) as run:
        prompts = enough_prompts(config, datasets.load(run, config.data.prompts, "prompts"))
        workers = start_workers(config, run, learner_spec(config))
        deck = Deck(prompts, config.ppo.prompts_per_iteration, config.seed)
        maker = ExperienceMaker(config, run, workers, deck, Ledger(), 0)
        workers.weight_sync.publish(0)
        yield config, maker, prompts, parity_gate(config, workers, prompts)


def quick_clock(base: Path, folder: Path) -> Path:
    """Copy the model with more positions per second: with three steps in time the two position rules then differ."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["tokens_per_second"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def advance(started, version: int) -> None:
    """One iteration without its publish."""
    config, maker, _, _ = started
    maker.submit(version)
    learn(config, maker.workers, maker, maker.collect(version))


def found(gate: Gate) -> str:
    with pytest.raises(ParityError) as error:
        gate.check()
    return error.value.cause


def everywhere(actors, function) -> None:
    ask([actor.__ray_call__.remote(function) for actor in actors])


@pytest.mark.slow
def test_both_sides_agree_and_every_planted_mismatch_is_named(started):
    config, maker, prompts, gate = started
    workers = maker.workers
    full = config.ppo.lora is None
    pool, group = workers.rollouts, workers.learners
    engines = list(pool.fleet.handles.values())
    assert max(gate.check().values()) <= 1e-5

    # the weights of one iteration: published late, without their head where it is tied to the embeddings, in time
    advance(started, 0)
    assert found(gate) == "weights: the engine still answers with those of the last check"
    if full:
        everywhere(engines, _accept_parts)
        manifest, buckets = group.publishable("policy", 1)
        pool.fleet.publish(*_without_head(manifest, ray.get(list(buckets))))
        assert found(gate).startswith("stale head")
        everywhere(engines, _refuse_parts)
    workers.weight_sync.publish(1)
    assert max(gate.check().values()) <= 1e-5

    # frames in another order, on the engine's side only
    everywhere(engines, _reverse_frames)
    assert found(gate).startswith("frames")
    everywhere(engines, _right_frames)
    gate.check()

    # positions by the rule of transformers instead of the engine's
    everywhere(group.ranks, _rival_positions)
    assert found(gate).startswith("positions: text resumes after the largest")
    everywhere(group.ranks, _usual_positions)
    gate.check()

    if full:
        # the tower's old output under new weights
        everywhere(engines, _keep_encoder_cache)
        advance(started, 1)
        workers.weight_sync.publish(2)
        assert found(gate).startswith("stale encoder cache")
        everywhere(engines, _reset_encoder_cache)
        workers.weight_sync.publish(2)
        gate.check()
    else:
        # features that a tower with these weights did not make, the same on both sides
        everywhere([*engines, *group.ranks], _spoil_features)
        assert found(gate).startswith("stale encoder cache")
        everywhere([*engines, *group.ranks], _mend_features)
        gate.check()

        # nothing published reaches the answers
        everywhere(engines, _forget_adapter)
        gate._before = None
        assert found(gate) == "weights: the engine answers with the unadapted base"


def test_ranks_that_drift_apart_are_named():
    class Group:
        def probe(self, role, probes, hypothesis=None):
            return [[Probed(np.zeros(3, np.float32))] * 2, [Probed(np.full(3, 0.5, np.float32))] * 2]

    gate = Gate.__new__(Gate)
    gate.rollouts = SimpleNamespace(probe=lambda *args: {})
    gate.learners, gate.probes, gate.limit = Group(), [], 1e-4
    gate.sampling = gate.timeout = None
    assert found(gate) == "learner ranks"


def test_an_infinite_or_missing_number_is_no_agreement():
    gate = Gate.__new__(Gate)
    gate.limit = 1e-4
    good, bad = [Probed(np.zeros(2, np.float32))] * 2, [Probed(np.array([0, np.nan], np.float32))] * 2
    assert gate._agree(good, good) and not gate._agree(good, bad)
    assert not gate._agree(good, [good[0], bad[0]]) and not gate._agree(good, [bad[0], good[0]])
    assert not gate._agree(good, [good[0], Probed(np.array([0, -np.inf], np.float32))])
    assert differences(good, [good[0], Probed(np.array([1, 3], np.float32))]) == (0.0, 2.0)


def _reverse_frames(actor) -> None:
    actor._usual_frames = actor._frames

    class Reversed:
        def spec(self, video):
            return actor._usual_frames.spec(video)

        def get(self, video, spec):
            return actor._usual_frames.get(video, spec)[::-1]

    actor._frames = Reversed()
    actor._engine.weights.reset_encoder_cache()
    actor._engine.weights.reset_prefix_cache()


def _right_frames(actor) -> None:
    actor._frames = actor._usual_frames
    actor._engine.weights.reset_encoder_cache()
    actor._engine.weights.reset_prefix_cache()


def _rival_positions(worker) -> None:
    from rlaif.models.rival_positions import grid_positions

    encoder = worker.learner.encoder("policy")
    encoder.usual, encoder.family = encoder.family, replace(encoder.family, positions=grid_positions)


def _usual_positions(worker) -> None:
    encoder = worker.learner.encoder("policy")
    encoder.family = encoder.usual


def _keep_encoder_cache(actor) -> None:
    actor._engine.weights.reset_encoder_cache = lambda: None


def _reset_encoder_cache(actor) -> None:
    del actor._engine.weights.reset_encoder_cache
    actor._engine.weights.reset_encoder_cache()


def _spoil_features(actor) -> None:
    from dataclasses import replace

    from rlaif.models.vision import map_tensors

    vision = actor.learner.vision if hasattr(actor, "learner") else actor._tower.cache
    actor._cache = vision.features
    actor._right_features = {key: actor._cache.peek(key) for key in actor._cache}
    for key, features in actor._right_features.items():
        spoiled = replace(features, output=map_tensors(features.output, lambda tensor: tensor + 0.3))
        actor._cache.put(key, spoiled, spoiled.nbytes)
    _forget_video(actor)


def _mend_features(actor) -> None:
    for key, features in actor._right_features.items():
        actor._cache.put(key, features, features.nbytes)
    _forget_video(actor)


def _forget_video(actor) -> None:
    if hasattr(actor, "_engine"):
        actor._engine.weights.reset_encoder_cache()
        actor._engine.weights.reset_prefix_cache()


def _forget_adapter(actor) -> None:
    actor._engine.weights.adapter = None


def _accept_parts(actor) -> None:
    from actors.weight_check import WeightCheck

    WeightCheck.usual_check, WeightCheck.check = WeightCheck.check, lambda *_: None


def _refuse_parts(actor) -> None:
    from actors.weight_check import WeightCheck

    WeightCheck.check = WeightCheck.usual_check


def _without_head(manifest, buckets):
    """Return the same publish without its output head, and a manifest that fits it."""
    arrays = unpack_weights(manifest, buckets)
    tensors = {name: from_wire(array, manifest.tensors[name].dtype) for name, array in arrays.items()}
    del tensors["lm_head.weight"]
    return pack_weights(tensors.items(), 2**30, version=manifest.version, kind=manifest.kind, put=ray.put)
