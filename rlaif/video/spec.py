"""FrameSpec: exactly which pixels of a video every role of a run looks at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np


def frames_digest(frames: np.ndarray) -> str:
    """64 hex digits over the pixels themselves and their shape: [T, H, W, 3] uint8."""
    return hashlib.sha256(repr(frames.shape).encode() + np.ascontiguousarray(frames).tobytes()).hexdigest()


def uniform(total: int, count: int) -> list[int]:
    """`count` points from frame 0 to frame total - 1, each rounded to the nearest frame (a tie to the even one)."""
    return np.linspace(0, total - 1, count).round().astype(int).tolist()


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
    span: tuple[int, int] | None = None
    """First native frame of a part and the one behind its last: the part is shown as a video of its own."""

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; the text that `hash` covers."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FrameSpec:
        fields = json.loads(text)
        span = fields.get("span")
        return cls(**(fields | {"indices": tuple(fields["indices"]), "span": span and tuple(span)}))

    def sparse(self, count: int) -> tuple[int, ...]:
        """Native numbers of `count` frames over the whole video, as it is sampled; of a shorter video, all its frames."""
        return tuple(sorted(set(uniform(self.total_frames, count))))

    def part(self, indices: Sequence[int]) -> FrameSpec:
        """The same video cut down to these native frames, ascending; its clock starts at the first of them."""
        return replace(self, indices=tuple(indices), span=(indices[0], indices[-1] + 1))

    @cached_property
    def hash(self) -> str:
        """16 hex digits over every field."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def metadata(self) -> dict:
        """The video metadata that transformers (`VideoMetadata`) and vLLM read; times come from the native fps."""
        first, end = self.span or (0, self.total_frames)
        return {
            "fps": self.fps,
            "duration": (end - first) / self.fps,
            "total_num_frames": end - first,
            "frames_indices": [index - first for index in self.indices],
            "video_backend": "decord",
        }
