"""The rollout actor as Ray runs it, with the real engine, real video files and the pool in front of it."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch

from actors.engine import EngineSpec
from actors.feature_store import start_feature_store
from actors.features import FeatureClient
from actors.frames import FrameClient, LocalFrames, start_frame_store
from actors.pool import RolloutPool
from actors.rollout import start_rollout
from cluster.publish import pack_weights
from cluster.remote import ask
from rlaif.config.cluster import Rollout
from rlaif.config.schema import Sampling
from rlaif.errors import ConfigError, ContractError
from rlaif.models.encode import Encoder
from rlaif.models.tiny import build_tiny
from rlaif.models.vision import VisionCache, tower_key, tower_output
from rlaif.models.vlm import load_vlm
from rlaif.records import Prompt, Sample
from rlaif.worlds.shapes.render import write_mp4

WORDS = ["a", "red", "blue", "circle", "moves", "left", "right", "and", "what", "do", "you", "see", "?"]
SAMPLING = Sampling(max_tokens=6)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for seed in range(4):
        frames = np.random.default_rng(seed).integers(0, 255, (12, 56, 56, 3), dtype=np.uint8)
        write_mp4(root / f"{seed}.mp4", frames)
    (root / "broken.mp4").write_bytes(b"no video")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a model directory with pickles in it, which the actors must not touch."""
    import bombs  # here, because actors that run a function of this file import the file

    path = build_tiny(tmp_path_factory.mktemp("tiny"), WORDS, seed=0)
    canary = tmp_path_factory.mktemp("canary") / "executed"
    bombs.plant(path, canary)
    yield str(path)
    assert not canary.exists()


@pytest.fixture(scope="module")
def start(ray_session, root, model):
    """Return start(), which returns a new rollout actor."""
    store = start_frame_store(num_frames=8)
    spec = EngineSpec(model, "float32", rollout=Rollout(max_model_len=256, cpu_kv_cache_gib=0.1, max_num_seqs=8))
    return lambda: start_rollout(spec, partial(FrameClient, store, root), options={"num_cpus": 0})


@pytest.fixture(scope="module")
def actor(start):
    return start()


@pytest.fixture(scope="module")
def fellows(start, actor):
    """Return two more actors, with the weights of their model directory."""
    more = [start(), start()]
    ask([fellow.version.remote() for fellow in more])
    return more


def noisy(model: str) -> dict[str, torch.Tensor]:
    """Return the model's weights with noise on them, head included."""
    from transformers import AutoModelForImageTextToText

    state = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).state_dict()
    state = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in state.items()}
    return state | {"lm_head.weight": state["model.language_model.embed_tokens.weight"]}


def prompts():
    good = [Prompt(f"p{i}", f"{i}.mp4", "what do you see ?") for i in range(3)]
    return [*good, Prompt("bad", "broken.mp4", "what ?"), Prompt("long", "0.mp4", "what do you see ? " * 60)]


def test_prompts_become_samples_and_bad_ones_failures(actor, root):
    answers = ask(actor.generate.remote(prompts(), 4, 0, SAMPLING, 0))
    assert {s.key for s in answers.samples} == {(f"p{i}", j) for i, j in product(range(3), range(4))}
    assert {f.prompt_id for f in answers.failures} == {"bad", "long"}
    local = LocalFrames(root, 8)
    for s in answers.samples:
        assert s.frames_hash == local.spec(s.prompt.video).hash and s.visual_tokens == 16 and s.policy_version == 0
        assert len(s.response_ids) == len(s.logprobs) and (s.prompt_ids[-4:] >= 0).all()
    assert len({tuple(s.response_ids) for s in answers.samples}) > 9
    stats = ask(actor.stats.remote())
    assert stats["tokens"] == sum(len(s.response_ids) for s in answers.samples) and stats["tokens_per_s"] > 0


@pytest.fixture(scope="module")
def features(ray_session):
    return start_feature_store(2**24)


@pytest.fixture(scope="module")
def handed(ray_session, root, model, features):
    """Start an actor whose engine gets features instead of frames."""
    rollout = Rollout(max_model_len=256, cpu_kv_cache_gib=0.1, max_num_seqs=8, vision="shared")
    frames = partial(LocalFrames, root, 8)
    spec = EngineSpec(model, "float32", rollout=rollout)
    return start_rollout(spec, frames, options={"num_cpus": 0}, make_features=partial(FeatureClient, features))


@pytest.mark.slow
def test_shared_features_give_the_answers_of_pixels_and_are_computed_once(actor, handed, features, root, model):
    pixels, shared = (ask(one.generate.remote(prompts(), 4, 0, SAMPLING, 0)) for one in (actor, handed))
    assert [f.prompt_id for f in shared.failures] == [f.prompt_id for f in pixels.failures]
    assert len(shared.samples) == 12
    for one, other in zip(pixels.samples, shared.samples, strict=True):
        assert (one.key, one.frames_hash, one.visual_tokens) == (other.key, other.frames_hash, other.visual_tokens)
        assert np.array_equal(one.prompt_ids, other.prompt_ids)
        assert np.array_equal(one.response_ids, other.response_ids)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
    assert ask(handed.__ray_call__.remote(lambda actor: actor._engine.encoded)) == 0
    learner = VisionCache(2**24, FeatureClient(features))
    vlm, encoder = load_vlm(model, "float32"), Encoder(model, LocalFrames(root, 8))
    learner.for_batch(vlm, tower_key(vlm), [encoder.video(f"{i}.mp4") for i in range(3)], torch.device("cpu"))
    counters = ask(features.counters.remote())
    assert learner.passes == 0 and (counters["passes"], counters["keys"], counters["hits"]) == (3, 3, 3)


def test_features_of_another_tower_under_this_ones_key_are_an_error(handed, features, root, tmp_path):
    rival = load_vlm(str(build_tiny(tmp_path, WORDS, seed=1)), "float32")
    encoder, key = Encoder(str(tmp_path), LocalFrames(root, 8)), ask(handed.__ray_call__.remote(_tower_of))
    video = encoder.video("3.mp4")
    theirs = tower_output(rival, tower_key(rival), video, torch.device("cpu"))
    FeatureClient(features).get((key, video.spec.hash), lambda: theirs)
    with pytest.raises(ContractError, match=f"tower {key}(.|\n)*tower {theirs.tower}"):
        ask(handed.generate.remote([Prompt("p", "3.mp4", "what ?")], 1, 0, SAMPLING, 0))


def test_a_published_tower_other_than_the_features_tower_is_refused(ray_session, handed, model):
    from transformers import AutoModelForImageTextToText

    state = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).state_dict()
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    other = state | {"model.visual.merger.mlp.0.weight": state["model.visual.merger.mlp.0.weight"] + 0.1}
    for version, tensors in ((1, other), (2, state)):
        manifest, buckets = pack_weights(tensors.items(), 1 << 20, version=version, put=ray_session.put)
        if version == 1:
            with pytest.raises(ContractError, match="merger.mlp.0.weight(.|\n)*Set rollout.vision=engine"):
                ask(handed.publish.remote(manifest, buckets))
        else:
            assert ask(handed.publish.remote(manifest, buckets)).version == 2


def _tower_of(actor) -> str:
    return actor._tower.key


def test_an_answer_depends_on_its_key_and_seed_not_on_the_call(actor):
    def texts(prompts, seed):
        samples = ask(actor.generate.remote(prompts, 2, seed, SAMPLING, 0)).samples
        return {s.key: s.response_ids.tolist() for s in samples}

    both, one = texts(prompts()[:2], 0), texts(prompts()[1:2], 0)
    assert all(both[key] == ids for key, ids in one.items())
    assert texts(prompts()[:2], 1) != both


def samples_of(pool: RolloutPool, batch: str, timeout: float = 60) -> list[Sample]:
    """Return the samples of a batch, once all its parts are there."""
    samples = []
    for part in pool.results(batch, timeout=timeout):
        samples += part.samples
    return samples


def test_pool_publishes_weights_to_the_actor(ray_session, actor, model):
    pool, state = RolloutPool({"only": actor}), noisy(model)
    pool.submit("before", prompts()[:3], 2, 0, SAMPLING)
    pool.fleet.publish(*pack_weights(state.items(), 1 << 20, version=5, put=ray_session.put))
    receipt = pool.fleet.committed(timeout=120)["only"]
    assert (receipt.version, ask(actor.version.remote())) == (5, 5)
    pool.submit("after", prompts()[:3], 2, 0, SAMPLING)
    before = {s.key: s for s in samples_of(pool, "before", timeout=120)}
    after = {s.key: s for s in samples_of(pool, "after", timeout=120)}
    assert {s.policy_version for s in before.values()} == {0} and {s.policy_version for s in after.values()} == {5}
    assert any(before[key].response_ids.tolist() != after[key].response_ids.tolist() for key in before)
    with pytest.raises(ContractError, match="version 5"):
        ask(actor.generate.remote(prompts()[:1], 1, 0, SAMPLING, 0))


@pytest.mark.parametrize("fault", ["missing", "late", "flipped"])
def test_an_incomplete_publish_leaves_the_old_version_in_place(ray_session, actor, model, fault):
    from transformers import AutoModelForImageTextToText

    @ray_session.remote(num_cpus=0)
    class Sender:
        def hang(self):
            time.sleep(3600)

    before = ask(actor.version.remote())
    state = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).state_dict()
    manifest, buckets = pack_weights(state.items(), 1 << 19, version=before + 1)
    name = sorted(buckets[1])[0]
    if fault == "flipped":
        bits = buckets[1][name].copy()
        bits.reshape(-1).view(np.uint8)[3] ^= 1
        buckets[1] = buckets[1] | {name: bits}
    refs = [ray_session.put(bucket) for bucket in buckets]
    if fault == "late":
        sender = Sender.remote()
        refs[1:2] = [sender.hang.remote()]
    if fault == "missing":
        del refs[1]
    named = {"missing": rf"missing \({len(buckets[1])} in all", "late": "bucket 1 of the published", "flipped": name}
    with pytest.raises(ContractError, match=named[fault]):
        ask(actor.publish.remote(manifest, refs, 3.0))
    assert ask(actor.version.remote()) == before
    assert len(ask(actor.generate.remote(prompts()[:1], 2, 0, SAMPLING, before)).samples) == 2


def test_truncate_at_cuts_answers(actor, model):
    version = ask(actor.version.remote())

    def generate(sampling):
        return ask(actor.generate.remote(prompts()[:3], 4, 0, sampling, version)).samples

    whole = generate(SAMPLING)
    stop = next(sample for sample in whole if len(sample.response_ids) > 1).response_ids[0].item()
    cut = generate(SAMPLING.model_copy(update={"truncate_at": (stop,)}))
    for before, after in zip(whole, cut, strict=True):
        assert before.key == after.key
        tokens = before.response_ids.tolist()
        length = tokens.index(stop) + 1 if stop in tokens else len(tokens)
        assert after.response_ids.tolist() == tokens[:length] and len(after.logprobs) == length
        assert np.array_equal(after.logprobs, before.logprobs[:length])
        assert after.finish_reason == ("cut" if stop in tokens else before.finish_reason)
        assert after.response == (Encoder(model).text(tokens[:length]) if stop in tokens else before.response)
    assert any(sample.finish_reason == "cut" for sample in cut)
    with pytest.raises(ConfigError, match="truncate_at"):
        generate(SAMPLING.model_copy(update={"truncate_at": ("never",)}))


def damaged(ray_session, model: str, version: int, fault: str):
    """Return manifest and references of a publish that the learner damaged, and the tensor that it lost."""
    manifest, buckets = pack_weights(noisy(model).items(), 1 << 19, version=version)
    name = min(buckets[1])
    if fault == "flipped byte":
        bits = buckets[1][name].copy()
        bits.reshape(-1).view(np.uint8)[3] ^= 1
        buckets[1] = buckets[1] | {name: bits}
    else:
        del buckets[1]
    return manifest, [ray_session.put(bucket) for bucket in buckets], name


def versions(actors) -> list[int | None]:
    return ask([actor.version.remote() for actor in actors])


@pytest.mark.parametrize("fault", ["flipped byte", "missing bucket"])
def test_a_publish_broken_at_its_source_names_tensor_and_actor_and_the_old_version_stays(
    ray_session, actor, model, fault
):
    before = ask(actor.version.remote())
    pool = RolloutPool({"left": actor}, before)
    manifest, refs, tensor = damaged(ray_session, model, before + 1, fault)
    pool.fleet.publish(manifest, refs, 10.0)
    with pytest.raises(ContractError) as caught:
        pool.fleet.committed(timeout=60)
    assert tensor in caught.value.found and "rollout actor 'left', twice" in caught.value.found
    assert versions([actor]) == [before]
    assert len(ask(actor.generate.remote(prompts()[:1], 2, 0, SAMPLING, before)).samples) == 2
    pool.fleet.publish(*pack_weights(noisy(model).items(), 1 << 19, version=before + 1, put=ray_session.put))
    assert pool.fleet.committed(timeout=60)["left"].version == before + 1


def test_a_broken_publish_is_replaced_by_later_ones_that_are_pending(ray_session, actor, model):
    """Publish again without waiting for the first version; later prompts are answered by the last one."""
    before = ask(actor.version.remote())
    pool = RolloutPool({"left": actor}, before)
    manifest, refs, _ = damaged(ray_session, model, before + 1, "flipped byte")
    pool.fleet.publish(manifest, refs)
    pool.fleet.publish(*pack_weights(noisy(model).items(), 1 << 19, version=before + 2, put=ray_session.put))
    pool.fleet.publish(*pack_weights(noisy(model).items(), 1 << 19, version=before + 3, put=ray_session.put))
    pool.submit("after", prompts()[:3], 2, 0, SAMPLING)
    assert pool.fleet.committed(timeout=60)["left"].version == before + 3 and versions([actor]) == [before + 3]
    samples = samples_of(pool, "after")
    assert len(samples) == 6 and {s.policy_version for s in samples} == {before + 3}


@pytest.mark.slow
def test_bytes_that_change_on_the_way_to_one_actor_are_sent_to_it_again(ray_session, actor, fellows, model):
    pool = RolloutPool({"left": actor, "right": fellows[0]}, 0)
    ask(fellows[0].__ray_call__.remote(_flip_once))
    pool.fleet.publish(*pack_weights(noisy(model).items(), 1 << 19, version=50, put=ray_session.put))
    assert sorted(pool.fleet.committed(timeout=60)) == ["left", "right"] and pool.fleet.dead == {}
    assert ask(fellows[0].__ray_call__.remote(lambda body: body.flipped)) == 1
    pool.submit("b", prompts()[:3], 2, 0, SAMPLING)
    assert {s.policy_version for s in samples_of(pool, "b")} == {50}


def _flip_once(body) -> None:
    """Flip one bit in the next bucket that this actor fetches."""
    import ray

    usual, body.flipped = ray.get, 0

    def get(ref, **options):
        arrays = usual(ref, **options)
        if isinstance(arrays, dict) and not body.flipped:
            body.flipped = 1
            name = min(arrays)
            bits = arrays[name].copy()
            bits.reshape(-1).view(np.uint8)[0] ^= 1
            arrays = arrays | {name: bits}
        return arrays

    ray.get = get


@pytest.mark.slow
def test_one_actor_finishes_a_publish_if_others_are_killed_or_hang(ray_session, actor, fellows, model):
    """The remaining actor loads the version, and answers the pending prompts of the other two."""

    @ray_session.remote(num_cpus=0)
    def slowly(bucket):
        time.sleep(2)
        return bucket

    killed, hung = ask([fellow.__ray_call__.remote(lambda _: os.getpid()) for fellow in fellows])
    actors = {"left": actor, "killed": fellows[0], "hung": fellows[1]}
    first = pack_weights(noisy(model).items(), 1 << 19, version=60, put=ray_session.put)
    pool = RolloutPool(actors, 0)
    pool.fleet.publish(*first)
    assert sorted(pool.fleet.committed(timeout=60)) == ["hung", "killed", "left"]
    manifest, refs = pack_weights(noisy(model).items(), 1 << 19, version=61, put=ray_session.put)
    refs[1] = slowly.remote(refs[1])
    try:
        os.kill(hung, signal.SIGSTOP)
        pool.submit("pending", prompts()[:3], 2, 0, SAMPLING)
        pool.fleet.publish(manifest, refs, 30.0)
        time.sleep(1)  # all of them wait for the second bucket now
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        receipts = pool.fleet.committed(timeout=8)
        assert time.monotonic() - began < 60
    finally:
        os.kill(hung, signal.SIGKILL)  # a stopped process does not end by itself
    assert list(receipts) == ["left"] and receipts["left"].version == 61 and pool.fleet.names == ["left"]
    assert (
        sorted(pool.fleet.dead) == ["hung", "killed"]
        and "did not take version 61 within 8 s" in pool.fleet.dead["hung"]
    )
    samples = samples_of(pool, "pending")
    assert {s.key for s in samples} == {(f"p{i}", j) for i, j in product(range(3), range(2))}
    assert {s.policy_version for s in samples} <= {60, 61} and versions([actor]) == [61]
    for prompt in ("p0", "p1", "p2"):
        assert len({s.policy_version for s in samples if s.prompt.prompt_id == prompt}) == 1
