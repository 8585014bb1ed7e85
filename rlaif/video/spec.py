"""FrameSpec: exactly which pixels of a video each role of a run receives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np


def frames_digest(frames: np.ndarray) -> str:
    """Return 64 hex digits over the pixels themselves and their shape. frames: uint8 [T, H, W, 3]."""
    shape = repr(frames.shape).encode()
    pixels = np.ascontiguousarray(frames).tobytes()
    return hashlib.sha256(shape + pixels).hexdigest()


def uniform(total: int, count: int) -> list[int]:
    """Return `count` points from frame 0 to frame total - 1, each rounded to the nearest frame (a tie to the even one)."""
    points = np.linspace(0, total - 1, count)
    return points.round().astype(int).tolist()


@dataclass(frozen=True)
class FrameSpec:
    """The identity of a video's frames. Two roles with the same `hash` have the same pixels.

    Hashable and comparable by value; `to_json` and `from_json` are exact inverses.
    """

    sha256: str
    """Hash of the video file's bytes, or of a frame folder's images in order (rlaif/video/decode.py)."""
    indices: tuple[int, ...]
    """Native frame numbers, ascending: one per decoded frame."""
    height: int
    """Height of the decoded frames in pixels."""
    width: int
    """Width of the decoded frames in pixels."""
    fps: float
    """Native frames per second of the video, not of the sampled frames."""
    total_frames: int
    """Native length in frames."""
    processor: str = ""
    """Version of what turns these frames into model inputs; the caller names it."""
    span: tuple[int, int] | None = None
    """First native frame of a part and the one behind its last: the part is shown as a video of its own. None: no part."""

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, no spaces; the text that `hash` covers."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FrameSpec:
        """Return the FrameSpec of a text that `to_json` wrote."""
        fields = json.loads(text)
        span = fields.get("span")
        # JSON has no tuples: lists would make the FrameSpec unhashable.
        tuples = {"indices": tuple(fields["indices"]), "span": span and tuple(span)}
        return cls(**(fields | tuples))

    def sparse(self, count: int) -> tuple[int, ...]:
        """Return the native numbers of `count` frames, sampled uniformly over the whole video.

        A shorter video gives all its frames.
        """
        numbers = set(uniform(self.total_frames, count))
        return tuple(sorted(numbers))

    def part(self, indices: Sequence[int]) -> FrameSpec:
        """Return the same video cut down to these native frames, ascending; its clock starts at the first of them."""
        return replace(self, indices=tuple(indices), span=(indices[0], indices[-1] + 1))

    @cached_property
    def hash(self) -> str:
        """Return 16 hex digits over every field."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def metadata(self) -> dict:
        """Return the video metadata that transformers (`VideoMetadata`) and vLLM read; times come from the native fps."""
        first, end = self.span or (0, self.total_frames)
        return {
            "fps": self.fps,
            "duration": (end - first) / self.fps,
            "total_num_frames": end - first,
            "frames_indices": [index - first for index in self.indices],
            # The frames come from PyAV; this is the name under which both libraries give the same tokens and log-probs.
            "video_backend": "decord",
        }
