"""Precomputed vision features against pixels, in every family: computed once, under a key of tower and video."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import BUILDERS, NoiseFrames, build

from rlaif.config.schema import Lora
from rlaif.errors import ContractError
from rlaif.models.batch import collate
from rlaif.models.encode import Encoder
from rlaif.models.family import FAMILIES
from rlaif.models.vision import Features, VisionCache, check_features, map_tensors, tower_key, tower_output
from rlaif.models.vlm import VideoLM, load_tower, load_vlm

CPU, QUESTION = torch.device("cpu"), "what do you see ?"


class Scene:
    def __init__(self, family, folder):
        self.path = str(build(family, folder, tied=False))
        self.encoder = Encoder(self.path, NoiseFrames())
        self.model = VideoLM(load_vlm(self.path, "float32")).eval()
        answers = [[10, 11, 12], [13, 14, 15, 16], [17, 11]]
        self.items = [
            self.encoder.prompt_and_response(QUESTION, ids, self.encoder.video(name))
            for ids, name in zip(answers, ("a", "b", "a"), strict=True)
        ]
        self.videos = [item.video for item in self.items]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return Scene("qwen2_5_vl", tmp_path_factory.mktemp("scene"))


@pytest.mark.parametrize("family", BUILDERS)
def test_features_computed_once_give_the_log_probs_of_pixels(family, tmp_path):
    scene, cache = Scene(family, tmp_path), VisionCache(2**30)
    vision = cache.for_batch(scene.model.causal, "weights", scene.videos, CPU)
    with torch.no_grad():
        pixels = scene.model(collate(scene.items, 0), "logprobs")["logprobs"].numpy()
        cached = scene.model(collate(scene.items, 0, vision=vision), "logprobs")["logprobs"].numpy()
        swapped = cache.for_batch(scene.model.causal, "weights", [scene.videos[i] for i in (1, 0, 1)], CPU)
        other = scene.model(collate(scene.items, 0, vision=swapped), "logprobs")["logprobs"].numpy()
    np.testing.assert_allclose(cached, pixels, atol=2e-6)
    assert np.abs(other - pixels).max() > 1e-4  # another video's features change the result
    assert (cache.passes, len(cache.keys)) == (2, 2)
    assert collate(scene.items, 0, vision=vision).video == {}


def test_features_are_cached_by_weights_and_within_the_budget(scene):
    cache = VisionCache(2**30)
    cache.for_batch(scene.model.causal, "weights", scene.videos[:1], CPU)
    cache.for_batch(scene.model.causal, "other weights", scene.videos[:1], CPU)
    assert (cache.passes, len(cache.keys)) == (2, 2)
    small = VisionCache(
        cache.for_video(scene.model.causal, "weights", scene.videos[0], CPU).nbytes
    )  # room for one video
    for _ in range(2):
        small.for_batch(scene.model.causal, "weights", scene.videos, CPU)
    assert (small.passes, len(small.keys)) == (5, 2)  # a, b, a, then a again without a pass, b, a
    assert small.for_batch(scene.model.causal, "weights", [], CPU) is None


def test_tower_key_depends_on_tower_and_projector_only(scene):
    key = tower_key(scene.model.causal)
    adapted = VideoLM(load_vlm(scene.path, "float32"), adapters={"policy": Lora(r=4)})
    assert tower_key(adapted.causal) == key
    assert tower_key(VideoLM(load_vlm(scene.path, "bfloat16")).causal) != key
    for part, same in (
        ("language_model.layers.0.mlp.up_proj", True),
        ("visual.patch_embed.proj", False),
        ("visual.merger.mlp.0", False),
    ):
        model = load_vlm(scene.path, "float32")
        with torch.no_grad():
            model.get_submodule(f"model.{part}").weight.add_(0.1)
        assert (tower_key(model) == key) is same, part


ABLE = [name for name in BUILDERS if FAMILIES[name].engine_video]


@pytest.mark.parametrize("family", ABLE)
def test_load_tower_equals_the_tower_of_the_whole_model(family, tmp_path):
    scene = Scene(family, tmp_path)
    tower, whole = load_tower(scene.path, "float32"), scene.model.causal
    key = tower_key(whole)
    assert tower_key(tower) == key
    assert not [name for name, _ in tower.named_parameters() if "visual" not in name]
    pairs = [tower_output(model, key, scene.videos[0], CPU) for model in (tower, whole)]
    for alone, together in zip(*(leaves(features) for features in pairs), strict=True):
        assert torch.equal(alone, together)


def leaves(features: Features) -> list[torch.Tensor]:
    tensors = []
    map_tensors(features.output, lambda tensor: tensors.append(tensor) or tensor)
    return tensors


class Drawer:
    """A store that ignores the key, as if two keys were equal by mistake."""

    def __init__(self):
        self.features = None

    def get(self, key, compute):
        self.features = self.features or compute()
        return self.features

    def seen(self, keys):
        self.told = keys


def test_shared_features_are_used_instead_of_computing(scene):
    drawer, key = Drawer(), tower_key(scene.model.causal)
    first, second = VisionCache(2**30, drawer), VisionCache(2**30, drawer)
    one, other = (cache.for_video(scene.model.causal, key, scene.videos[0], CPU) for cache in (first, second))
    assert (first.passes, second.passes) == (1, 0)
    assert all(torch.equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))
    second.seen("policy", scene.videos)
    assert drawer.told == [("policy", video.spec.hash) for video in scene.videos]


def test_features_of_another_tower_video_dtype_or_length_are_an_error(scene, tmp_path):
    drawer, video = Drawer(), scene.videos[0]
    elsewhere = load_vlm(str(build("qwen2_5_vl", tmp_path, seed=1)), "float32")
    mine, theirs = tower_key(scene.model.causal), tower_key(elsewhere)
    VisionCache(2**30, drawer).for_video(elsewhere, theirs, video, CPU)
    with pytest.raises(ContractError, match=f"tower {mine}(.|\n)*tower {theirs}"):
        VisionCache(2**30, drawer).for_video(scene.model.causal, mine, video, CPU)

    right = tower_output(scene.model.causal, mine, video, CPU)
    check_features(right, scene.model.causal, mine, video)
    with pytest.raises(ContractError, match=f"FrameSpec {scene.videos[1].spec.hash}(.|\n)*FrameSpec {video.spec.hash}"):
        check_features(right, scene.model.causal, mine, scene.videos[1])
    with pytest.raises(ContractError, match=r"dtype float32(.|\n)*dtype bfloat16"):
        check_features(right.to(torch.bfloat16), scene.model.causal, mine, video)
    longer = replace(video, visual_tokens=video.visual_tokens + 1)
    with pytest.raises(ContractError, match=rf"\({longer.visual_tokens}, 64\)(.|\n)*\({video.visual_tokens}, 64\)"):
        check_features(right, scene.model.causal, mine, longer)
