"""The device that each role hands its vision tower: the model's own, wherever the features are kept and go.

The model's device is `meta` here, so that a wrong one shows without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from transformers.utils import ModelOutput

from actors import tower as towers
from actors.tower import FrozenTower
from learners.learner import Learner
from rlaif.models import vision
from rlaif.models.reward import ModelScorer
from rlaif.models.vision import Features, VisionCache

META, CPU = torch.device("meta"), torch.device("cpu")
TOKENS, WIDTH = 4, 8
VIDEO = SimpleNamespace(spec=SimpleNamespace(hash="clip"), visual_tokens=TOKENS, tensors={})
CONFIG = SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=WIDTH))
MODEL = SimpleNamespace(config=CONFIG, dtype=torch.float32)


@dataclass
class Output(ModelOutput):
    pooler_output: torch.Tensor | None = None


class Drawer:
    """A feature client that shares as other processes do: features travel through the host's memory."""

    def __init__(self):
        self.held = {}

    def get(self, key, compute):
        if key not in self.held:
            self.held[key] = compute()
            return self.held[key]
        return self.held[key].to(CPU)

    def seen(self, keys):
        pass


@pytest.fixture
def computed_on(monkeypatch):
    """Record the devices that towers are run on, in order. Features of another device than the model's are returned as CPU ones."""
    devices = []

    def compute(model, weights, video, device):
        devices.append(device)
        return Features(weights, video.spec.hash, "video", Output(torch.zeros(TOKENS, WIDTH)))

    for module in (vision, towers):
        monkeypatch.setattr(module, "tower_output", compute)
    return devices


def device_of(output) -> torch.device:
    return output["pooler_output"].device


def frozen_tower(shared) -> FrozenTower:
    tower = object.__new__(FrozenTower)
    tower.device, tower.model, tower.key, tower.cache = META, MODEL, "key", VisionCache(2**20, shared)
    tower._engine_video = lambda output, video, config: output
    return tower


@pytest.mark.parametrize("shared", [None, Drawer()], ids=["alone", "shared"])
@pytest.mark.parametrize("fresh", [True, False])
def test_rollout_actor_computes_features_on_its_device_and_returns_cpu_features(computed_on, fresh, shared):
    tower = frozen_tower(shared)
    for _ in range(2):
        assert device_of(tower.video(VIDEO, fresh=fresh)) == CPU
    assert set(computed_on) == {META} and len(computed_on) == (2 if fresh else 1)


@pytest.mark.parametrize("shared", [None, Drawer()], ids=["alone", "shared"])
@pytest.mark.parametrize("keep_on", [None, META, CPU])
def test_features_kept_on_another_device_are_computed_on_the_models_device(computed_on, keep_on, shared):
    cache = VisionCache(2**20, shared)
    for _ in range(2):
        assert device_of(cache.for_video(MODEL, "key", VIDEO, META, keep_on=keep_on).output) == (keep_on or META)
    assert device_of(cache.for_batch(MODEL, "key", [VIDEO, VIDEO], META)["video"]) == META
    assert set(computed_on) <= {META}


def test_learners_and_reward_actors_compute_and_store_features_on_their_own_device(computed_on):
    for number, role in enumerate((learner_vision, reward_vision)):
        assert device_of(role(f"key {number}")["video"]) == META
    assert computed_on == [META, META]


def learner_vision(key):
    role = SimpleNamespace(tower_frozen=True, tower=key, module=SimpleNamespace(causal=MODEL))
    learner = SimpleNamespace(roles={"policy": role}, vision=VisionCache(2**20), device=META)
    return Learner._vision(learner, "policy", [SimpleNamespace(video=VIDEO)])


def reward_vision(key):
    """Return the vision input that a reward actor gives its model for one answer."""
    batches = []
    item = SimpleNamespace(video=VIDEO, ids=[1, 2])

    def model(batch, output, head):
        batches.append(batch)
        return {"score": torch.zeros(1)}

    model.causal = MODEL
    scorer = object.__new__(ModelScorer)
    scorer.vision, scorer._tower, scorer.device, scorer.budget = VisionCache(2**20), key, META, 100
    scorer.model, scorer._encode, scorer._outcome = model, lambda answer: item, lambda values: values
    scorer.encoder = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "rlaif.models.reward.collate", lambda items, pad, device, vision: vision if device == META else None
        )
        scorer([SimpleNamespace(key=("p", 0))])
    return batches[0]
