"""Every family through the real parts: vLLM samples, the learner's model gives the same log-probs; also after publishes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import BUILDERS, NoiseFrames, build
from safetensors.torch import load_file

from actors.engine import Engine, EngineSpec
from actors.requests import Request
from actors.tower import FrozenTower
from cluster.publish import pack_weights
from learners.export import adapter_config, export_role
from learners.roles import Role
from learners.spec import RoleSpec
from learners.state import published_weights
from rlaif.config.cluster import Rollout
from rlaif.config.schema import Lora, Sampling, Video
from rlaif.errors import ConfigError
from rlaif.models.batch import collate
from rlaif.models.encode import Encoder
from rlaif.models.family import FAMILIES
from rlaif.models.vlm import VideoLM, load_vlm

QUESTION = "what do you see ?"
ROLLOUT = Rollout(max_model_len=768, cpu_kv_cache_gib=0.05, max_num_seqs=8)
SAMPLING = Sampling(max_tokens=10)
LORA = Lora(r=4, alpha=8)
FAST = ("qwen2_5_vl", "llava_next_video")
"""Families whose adapters are tried every time."""
WITH_ADAPTERS = [name for name in BUILDERS if FAMILIES[name].adapters]


@dataclass
class World:
    """One family's model directory, its encoder, and an engine that serves it."""

    family: str
    tied: bool
    path: str
    encoder: Encoder
    engine: Engine

    def role(self, lora: Lora | None = None) -> Role:
        """Return the policy as a learner has it, without its optimizer."""
        adapters = {"policy": lora} if lora else None
        module = VideoLM(load_vlm(self.path, "float32"), adapters=adapters).eval()
        return Role(RoleSpec("policy", self.path, lora), module, "policy" if lora else None)

    def request(self, video: str | None) -> Request:
        if video is None:
            return Request(self.encoder.unexpanded(QUESTION, video=False), (1, 2))
        spec = self.encoder.frames.spec(video)
        frames = self.encoder.frames.get(video, spec)
        return Request(self.encoder.unexpanded(QUESTION), (1, 2), frames, spec.metadata(), frames_hash=spec.hash)

    def deviation(self, role: Role) -> float:
        """Return the largest difference between the engine's log-probs and the role's, over samples with and without a video."""
        videos = ["a", None]
        answers = self.engine.generate([self.request(video) for video in videos], SAMPLING, self.engine.weights.version)
        parts = []
        for video, group in zip(videos, answers, strict=True):
            features = self.encoder.video(video) if video else None
            items = [self.encoder.prompt_and_response(QUESTION, answer.response_ids, features) for answer in group]
            for answer, item in zip(group, items, strict=True):
                assert answer.prompt_ids.tolist() == item.ids[: item.start].tolist()
                assert answer.visual_tokens == (features.visual_tokens if features else 0)
            logprobs = logprobs_of(role, items)
            parts += [abs(own - answer.logprobs) for own, answer in zip(logprobs, group, strict=True)]
        differences = np.concatenate(parts)
        version = self.engine.weights.version
        print(f"{self.family} version {version}: max {differences.max():.1e}, mean {differences.mean():.1e}")
        return float(differences.max())

    def publish(self, role: Role, version: int) -> None:
        """Publish as a learner does; the engine refuses weights that leave one of its parameters unchanged."""
        kind, lora = ("adapter", adapter_config(role)) if role.adapter else ("full", None)
        self.engine.weights.publish(
            *pack_weights(published_weights(role), 1 << 20, version=version, kind=kind, lora=lora)
        )


@torch.no_grad()
def logprobs_of(role: Role, items: list) -> list[np.ndarray]:
    """Return log-probs [T] of each sequence, all computed in one batch."""
    rows = role.forward(collate(items, 0), "logprobs")["logprobs"].numpy()
    return [row[: len(item.mask)] for row, item in zip(rows, items, strict=True)]


@torch.no_grad()
def perturb(role: Role, part: str = "", scale: float = 0.05) -> Role:
    """Add noise to every parameter of the role whose name contains `part`."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in role.module.named_parameters():
        if part in name:
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return role


def start(family: str, tied: bool, folder, rank: int | None = None) -> Iterator[World]:
    """Build a world. No other engine is left: one that is collected later tears down the process groups that all share."""
    gc.collect()
    path = str(build(family, folder, tied))
    encoder = Encoder(path, NoiseFrames())
    # an engine that takes features takes frames too
    rollout = ROLLOUT.model_copy(update={"vision": "shared" if FAMILIES[family].engine_video else "engine"})
    spec = EngineSpec(path, "float32", rank, rollout, banned_ids=encoder.banned_ids)
    world = World(family, tied, path, encoder, Engine(spec))
    yield world
    world.engine.llm.llm_engine.engine_core.shutdown()
    del world.engine
    gc.collect()


def with_head(family: str, tied: bool):
    """Return a parameter of `world`. vLLM ties a head to the embeddings alike in all families, so only one of them is fast."""
    slow = tied and family != "qwen2_5_vl"
    return pytest.param((family, tied), id=f"{family}-{'tied' if tied else 'untied'}", marks=[pytest.mark.slow] * slow)


@pytest.fixture(scope="module", params=[with_head(name, tied) for name, tied in product(BUILDERS, (False, True))])
def world(request, tmp_path_factory):
    yield from start(*request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in WITH_ADAPTERS],
)
def adapted(request, tmp_path_factory):
    yield from start(request.param, False, tmp_path_factory.mktemp("model"), LORA.r)


def test_features_give_the_same_answers_as_frames(world):
    """Compare prompt ids, tokens and log-probs; vLLM's own tower is not run."""
    if FAMILIES[world.family].engine_video is None:
        with pytest.raises(ConfigError, match=f"engine for a {world.family}"):
            FrozenTower(world.path, "float32")
        return
    tower, engine, runs = FrozenTower(world.path, "float32"), world.engine, []
    frames = world.request("a")
    (pixels,) = engine.generate([frames], SAMPLING, 0)
    engine.llm.apply_model(lambda model: model.visual.register_forward_pre_hook(lambda *_: runs.append(1)) and None)

    def answers_from_features(name: str):
        video = world.encoder.video(name)
        request = replace(
            frames,
            frames=None,
            metadata={},
            features=tower.video(video),
            visual_tokens=video.visual_tokens,
            frames_hash=f"handed {name}",
        )
        return engine.generate([request], SAMPLING, 0)[0]

    for one, other in zip(pixels, answers_from_features("a"), strict=True):
        assert np.array_equal(one.prompt_ids, other.prompt_ids) and one.visual_tokens == other.visual_tokens
        assert np.array_equal(one.response_ids, other.response_ids)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
    assert np.abs(answers_from_features("b")[0].logprobs[0] - pixels[0].logprobs[0]) > 1e-4
    assert runs == []


def test_samples_have_the_learners_log_probs_before_and_after_a_full_publish(world):
    role = world.role()
    assert world.deviation(role) < 1e-4
    world.publish(perturb(role), 1)
    assert world.deviation(world.role()) > 1e-2  # the old weights' log-probs are others
    assert world.deviation(role) < 1e-4
    # the tower alone: what a stale encoder cache or a tower that is not published would get wrong
    stale = world.deviation(perturb(role, world.encoder.family.vision.split(".")[-1], scale=0.2))
    world.publish(role, 2)
    assert stale > 1e-3
    assert world.deviation(role) < 1e-4


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("kind", ["tied", "untied", "merged"])
def test_an_export_has_the_names_that_vllm_loads_and_transformers_reads_it_back(family, kind, tmp_path):
    """The names are those of the directory the engine was started with (the other tests start one from it)."""
    path = str(build(family, tmp_path / "start", tied=kind == "tied"))
    lora = LORA if kind == "merged" else None
    module = VideoLM(load_vlm(path, "float32"), adapters={"policy": lora} if lora else None)
    role = perturb(Role(RoleSpec("policy", path, lora), module, "policy" if lora else None), "lora_" if lora else "")
    learner = SimpleNamespace(
        roles={"policy": role},
        encoder=lambda name: Encoder(path),
        spec=SimpleNamespace(model=SimpleNamespace(dtype="float32"), video=Video()),
    )
    export_role(learner, "policy", tmp_path / "export", merge=lora is not None)
    names = [set(load_file(folder / "model.safetensors")) for folder in (tmp_path / "start", tmp_path / "export")]
    assert names[0] == names[1]
    encoder = Encoder(str(tmp_path / "export"), NoiseFrames())
    item = encoder.prompt_and_response(QUESTION, [10, 11, 12, encoder.eos_id], encoder.video("a"))
    loaded = Role(RoleSpec("policy", path), VideoLM(load_vlm(str(tmp_path / "export"), "float32")).eval(), None)
    role.module.eval()
    assert abs(logprobs_of(loaded, [item])[0] - logprobs_of(role, [item])[0]).max() < 1e-5


def test_adapter_samples_have_the_learners_logprobs(adapted):
    role = adapted.role(LORA)
    assert adapted.deviation(role) < 1e-4
    adapted.publish(perturb(role, "lora_", scale=0.2), 1)
    assert adapted.deviation(adapted.role(LORA)) > 1e-2
    assert adapted.deviation(role) < 1e-4
