"""FrameSpec: exactly which pixels of a video every role of a run looks at."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np


def frames_digest(frames: np.ndarray) -> str:
    """64 hex digits over the pixels themselves and their shape: [T, H, W, 3] uint8."""
    return hashlib.sha256(repr(frames.shape).encode() + np.ascontiguousarray(frames).tobytes()).hexdigest()


@dataclass(frozen=True)
class FrameSpec:
    """The identity of a video's frames. Two roles that hold the same `hash` hold the same pixels.

    Hashable and comparable by value; `to_json` and `from_json` are exact inverses.
    """

    sha256: str
    """Of the video file's bytes, or of a frame folder's images in order (rlaif/video/decode.py)."""
    indices: tuple[int, ...]
    """Native frame numbers, ascending: one per decoded frame."""
    height: int
    """Of the decoded frames, in pixels; so is `width`."""
    width: int
    fps: float
    """Native frames per second of the video, not of the sampled frames."""
    total_frames: int
    """Native length in frames."""
    processor: str = ""
    """Version of what turns these frames into model inputs; the caller names it."""

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; the text that `hash` covers."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FrameSpec:
        fields = json.loads(text)
        return cls(**(fields | {"indices": tuple(fields["indices"])}))

    @cached_property
    def hash(self) -> str:
        """16 hex digits over every field."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def metadata(self) -> dict:
        """The video metadata that transformers (`VideoMetadata`) and vLLM read; times come from the native fps."""
        return {
            "fps": self.fps,
            "duration": self.total_frames / self.fps,
            "total_num_frames": self.total_frames,
            "frames_indices": list(self.indices),
            "video_backend": "decord",
        }
