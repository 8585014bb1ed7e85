"""Draw scenes as frames and write frames as real MP4 files (H.264)."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np

from rlaif.worlds.shapes.scene import COLORS, FPS, FRAMES, RADIUS, SIZE, Scene, trajectory

CRF = "8"
"""x264 quality: near lossless, so that what is learned is the scene and not the codec."""


def render_frames(scene: Scene, span: slice = slice(None)) -> np.ndarray:
    """Return uint8 [T, SIZE, SIZE, 3] RGB: T frames of `span`; edges are anti-aliased over one pixel."""
    indices = range(FRAMES)[span]
    video = np.full((len(indices), SIZE, SIZE, 3), scene.background, np.float32)
    for thing in scene.things:
        color = np.array(COLORS[thing.color])
        centres = trajectory(thing)
        for t, index in enumerate(indices):
            x, y = centres[index].tolist()
            cover = coverage(thing.shape, x, y)[..., None]
            video[t] = video[t] * (1 - cover) + cover * color
    return video.round().astype(np.uint8)


# Things rest on a lattice, so most frames repeat.
@lru_cache(maxsize=4096)
def coverage(shape: str, x: float, y: float) -> np.ndarray:
    """Return [SIZE, SIZE] in 0..1: how much of each pixel a shape centred at (x, y) covers, from its distance field."""
    # Distances are those of the pixels' centres.
    row, column = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    distance = signed_distance(shape, column - x, row - y)
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Return the distance in pixels (negative inside) from the outline of a shape at the origin. Raises ValueError."""
    r = RADIUS
    if shape == "circle":
        return np.hypot(dx, dy) - r
    if shape == "square":
        return np.maximum(abs(dx), abs(dy)) - 0.88 * r
    if shape == "cross":
        arm = 0.34 * r
        upright_bar = np.maximum(abs(dx) - arm, abs(dy) - r)
        level_bar = np.maximum(abs(dx) - r, abs(dy) - arm)
        return np.minimum(upright_bar, level_bar)
    if shape == "triangle":
        slope = np.array([2.0, 1.0]) / np.hypot(2, 1)
        base = dy - r
        sides = abs(dx) * slope[0] - (dy + r) * slope[1]
        return np.maximum(base, sides)
    raise ValueError(f"no shape named {shape!r}")


def video_name(scene: Scene, half: str | None = None) -> str:
    """Return the path of a scene's video, or of the clip of one half, relative to the dataset's folder."""
    suffix = f"_{half}" if half else ""
    return f"videos/{scene.scene_id}{suffix}.mp4"


def write_mp4(file: Path, video: np.ndarray, fps: int = FPS) -> None:
    """Encode uint8 [T, H, W, 3] as H.264 into `file`; H and W are even. Raises av.error.FFmpegError.

    The same frames are the same bytes.
    """
    import av

    with av.open(str(file), mode="w") as container:
        # x264's macroblock tree is off: with assembly it picks slightly different quantisers from run to run on frames this
        # small (52 of 8,356 videos in one trial), so the bytes would differ.
        options = {"crf": CRF, "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in video:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
