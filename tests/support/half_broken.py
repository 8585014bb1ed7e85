"""Make a video whose structure is right but which does not decode: a problem that only a decode detects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def half_broken(path: Path, frames: int = 8, side: int = 56) -> None:
    """Write a folder of frames of which the last one is cut in the middle of its pixels."""
    path.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    for number in range(frames):
        Image.fromarray(noise).save(path / f"{number}.png")
    last = path / f"{frames - 1}.png"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
