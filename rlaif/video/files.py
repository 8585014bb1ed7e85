"""Video files: frames are counted with PyAV, and decoded with decord where that is exact, else with PyAV.

decord jumps between keyframes (four times faster where a long video gives few frames), but not always to the right
one: compared frame by frame with a decode from the start, it returns wrong frames, without an error, from MPEG and
Windows Media files and where an edit list hides frames (as in clips cut without re-encoding), varying ones at the end
of H.264 in AVI, and it cannot read AV1. `Index.exact` is the set in which every frame was right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import decord
import numpy as np

DAMAGED = (av.error.FFmpegError, decord.DECORDError, RuntimeError, AssertionError, IndexError, StopIteration)
"""What the two libraries raise on files they cannot open or decode (decord has no class of its own for some)."""
EXACT_CONTAINERS = ("mov,mp4", "matroska,webm")
EXACT_CODECS = ("h264", "mpeg4")

decord.logging.set_level(decord.logging.FATAL)  # FFmpeg's own lines name no file; the callers raise errors that do


@dataclass(frozen=True)
class Index:
    frames: int
    """Frames that a decode returns: those that an edit list hides don't count."""
    fps: float
    exact: bool
    """decord finds each frame by its number."""


def index(path: Path) -> Index:
    """Read through the packets without decoding them. Raises one of DAMAGED."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise RuntimeError("no video stream")
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        cut = [number for number, packet in enumerate(packets) if packet.is_corrupt]
        if cut:
            raise RuntimeError(f"cut off in frame {cut[0]}")
        hidden = sum(packet.is_discard for packet in packets)
        if hidden == len(packets):
            raise RuntimeError("no frames")
        known = container.format.name.startswith(EXACT_CONTAINERS) and stream.codec_context.name in EXACT_CODECS
        rate = stream.average_rate or stream.guessed_rate or 0
        return Index(len(packets) - hidden, float(rate), known and not hidden)


def frames(path: Path, indices: tuple[int, ...], exact: bool) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3] for each of `indices` (ascending), upright, one at a time. Raises one of DAMAGED."""
    return _by_number(path, indices) if exact else _in_order(path, indices)


def _by_number(path: Path, indices: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Not by decord's `get_batch`, which can spin for ever on H.264 files that this reads (dmlc/decord issue 375)."""
    reader = decord.VideoReader(str(path), num_threads=1)
    for number in indices:
        frame = reader[number].asnumpy()
        # for a few small widths (48 and 72 among them) decord counts the padding behind each row as channels
        height, width, channels = frame.shape
        yield frame.reshape(height, width * channels)[:, : width * 3].reshape(height, width, 3)


def _in_order(path: Path, indices: tuple[int, ...]) -> Iterator[np.ndarray]:
    wanted = set(indices)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise RuntimeError(f"frame {number} is damaged")
            if number in wanted:
                yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            if number == indices[-1]:
                return
    raise RuntimeError(f"no frame {indices[-1]}")
