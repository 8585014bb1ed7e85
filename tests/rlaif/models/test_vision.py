"""Precomputed vision features against pixels, in every family; what is computed once, and what makes it different."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import BUILDERS, NoiseFrames, build

from rlaif.config.schema import Lora
from rlaif.models.batch import collate
from rlaif.models.encode import Encoder
from rlaif.models.vision import VisionCache, nbytes, tower_key
from rlaif.models.vlm import VideoLM, load_vlm

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
    vision = cache.of(scene.model.causal, "weights", scene.videos, CPU)
    with torch.no_grad():
        pixels = scene.model(collate(scene.items, 0), "logprobs")["logprobs"].numpy()
        cached = scene.model(collate(scene.items, 0, vision=vision), "logprobs")["logprobs"].numpy()
        swapped = cache.of(scene.model.causal, "weights", [scene.videos[i] for i in (1, 0, 1)], CPU)
        other = scene.model(collate(scene.items, 0, vision=swapped), "logprobs")["logprobs"].numpy()
    np.testing.assert_allclose(cached, pixels, atol=2e-6)
    assert np.abs(other - pixels).max() > 1e-4  # another video's features are seen
    assert (cache.passes, len(cache.keys)) == (2, 2)
    assert collate(scene.items, 0, vision=vision).video == {}


def test_other_weights_are_another_key_and_the_budget_holds(scene):
    cache = VisionCache(2**30)
    one = cache.of(scene.model.causal, "weights", scene.videos[:1], CPU)
    cache.of(scene.model.causal, "other weights", scene.videos[:1], CPU)
    assert (cache.passes, len(cache.keys)) == (2, 2)
    small = VisionCache(nbytes(next(iter(one.values()))))  # room for one video
    for _ in range(2):
        small.of(scene.model.causal, "weights", scene.videos, CPU)
    assert (small.passes, len(small.keys)) == (5, 2)  # a, b, a, then a again without a pass, b, a
    assert small.of(scene.model.causal, "weights", [], CPU) is None


def test_the_key_is_that_of_tower_and_projector_alone(scene):
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
