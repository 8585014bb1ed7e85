"""Tiny models of every family, and videos of noise."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from families import WORDS, build

from rlaif.errors import DataError
from rlaif.models.encode import Encoder
from rlaif.models.tiny import build_tiny
from rlaif.video.spec import FrameSpec


class NoiseFrames:
    """Videos of noise: the name decides the pixels; `broken` cannot be decoded."""

    def __init__(self, frames: int = 8, fps: float = 8.0, size: int = 56):
        self.frames, self.fps, self.size = frames, fps, size

    def spec(self, video: str) -> FrameSpec:
        if video == "broken":
            raise DataError("a video that decodes", "garbage", "the file")
        return FrameSpec(
            f"{video:0>64}", tuple(range(0, 3 * self.frames, 3)), self.size, self.size, self.fps, 3 * self.frames
        )

    def get(self, video: str, spec: FrameSpec) -> np.ndarray:
        shape = (self.frames, self.size, self.size, 3)
        frames = np.random.default_rng([ord(letter) for letter in video]).integers(0, 255, shape, dtype=np.uint8)
        frames.setflags(write=False)
        return frames


@pytest.fixture(scope="session")
def noise():
    return NoiseFrames


@pytest.fixture(scope="session")
def qwen_path(tmp_path_factory) -> str:
    return str(build_tiny(tmp_path_factory.mktemp("qwen"), WORDS, seed=3))


@pytest.fixture(scope="session")
def path_of(tmp_path_factory):
    """Return path_of(family), which makes a tiny random model of that family once and returns its folder."""
    return lru_cache(lambda family: str(build(family, tmp_path_factory.mktemp(family))))


@pytest.fixture(scope="session")
def llava_path(path_of) -> str:
    return path_of("llava_next_video")


@pytest.fixture(scope="session")
def qwen(qwen_path) -> Encoder:
    return Encoder(qwen_path, NoiseFrames())


@pytest.fixture(scope="session")
def llava(llava_path) -> Encoder:
    return Encoder(llava_path, NoiseFrames())


@pytest.fixture(params=["qwen", "llava", "qwen3_vl", "llava_onevision", "internvl"])
def encoder(request, path_of) -> Encoder:
    """Return the encoder of each family in turn."""
    if request.param in ("qwen", "llava"):
        return request.getfixturevalue(request.param)
    return Encoder(path_of(request.param), NoiseFrames())
