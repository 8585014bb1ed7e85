import numpy as np
import pytest
from PIL import Image

from rlaif.worlds.shapes.render import write_mp4


def ramp(length: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Return [T, H, W, 3]: frame i has grey level 10 + 5 i, so that a decoded frame shows its number."""
    levels = (10 + 5 * np.arange(length)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (length, height, width, 3)).copy()


@pytest.fixture
def clip(tmp_path):
    """Return a factory of video files: clip("a.mp4", length=24)."""

    def make(name="a.mp4", length=24, fps=8, **size):
        write_mp4(tmp_path / name, ramp(length, **size), fps=fps)
        return tmp_path / name

    return make


@pytest.fixture
def folder(tmp_path):
    """Return a factory of frame folders with the same pictures as `clip`, in natural order (not in text order)."""

    def make(name="frames", length=24, suffix="png", **size):
        (tmp_path / name).mkdir()
        for number, frame in enumerate(ramp(length, **size)):
            Image.fromarray(frame).save(tmp_path / name / f"frame{number}.{suffix}")
        return tmp_path / name

    return make
