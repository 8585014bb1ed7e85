"""Scenes to frames to real MP4 files (H.264)."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np

from rlaif.worlds.shapes.scene import COLORS, FPS, FRAMES, RADIUS, SIZE, Scene, path

CRF = "8"
"""x264 quality: near lossless, so that what is learned is the scene and not the codec."""


def frames(scene: Scene, span: slice = slice(None)) -> np.ndarray:
    """uint8 [T, SIZE, SIZE, 3] RGB, T frames of `span`; edges are anti-aliased over one pixel."""
    indices = range(FRAMES)[span]
    video = np.full((len(indices), SIZE, SIZE, 3), scene.background, np.float32)
    for thing in scene.things:
        centres = path(thing)
        for t, index in enumerate(indices):
            cover = coverage(thing.shape, *centres[index].tolist())[..., None]
            video[t] = video[t] * (1 - cover) + cover * np.array(COLORS[thing.color])
    return video.round().astype(np.uint8)


@lru_cache(maxsize=4096)  # things rest on a lattice, so most frames repeat
def coverage(shape: str, x: float, y: float) -> np.ndarray:
    """[SIZE, SIZE] in 0..1: how much of each pixel a shape centred at (x, y) covers, from its distance field."""
    row, column = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    return np.clip(0.5 - distance(shape, column - x, row - y), 0, 1).astype(np.float32)


def distance(shape: str, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Signed distance in pixels (negative inside) from the outline of a shape at the origin."""
    r = RADIUS
    if shape == "circle":
        return np.hypot(dx, dy) - r
    if shape == "square":
        return np.maximum(abs(dx), abs(dy)) - 0.88 * r
    if shape == "cross":
        arm = 0.34 * r
        return np.minimum(np.maximum(abs(dx) - arm, abs(dy) - r), np.maximum(abs(dx) - r, abs(dy) - arm))
    if shape == "triangle":
        slope = np.array([2.0, 1.0]) / np.hypot(2, 1)
        return np.maximum(dy - r, abs(dx) * slope[0] - (dy + r) * slope[1])
    raise ValueError(f"no shape named {shape!r}")


def write_mp4(file: Path, video: np.ndarray, fps: int = FPS) -> None:
    """Encode uint8 [T, H, W, 3] as H.264 into `file`; H and W are even. Raises av.error.FFmpegError.

    The same frames are the same bytes. x264's macroblock tree is off for that: its assembly picks slightly different
    quantisers from run to run on frames this small.
    """
    import av

    with av.open(str(file), mode="w") as container:
        options = {"crf": CRF, "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.width, stream.height, stream.pix_fmt = video.shape[2], video.shape[1], "yuv420p"
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
