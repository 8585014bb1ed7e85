"""Frames -> model inputs, by the model's own processor, with a byte-bounded cache of processed videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from rlaif.byte_cache import ByteCache
from rlaif.video.spec import FrameSpec

NOT_FEATURES = ("attention_mask", "mm_token_type_ids")
"""Outputs of a processor that are neither token ids nor inputs of the vision tower."""


class Frames(Protocol):
    """A source of frames: the frame store's client, or a local decoder."""

    def spec(self, video: str) -> FrameSpec: ...

    def get(self, video: str, spec: FrameSpec) -> np.ndarray: ...


@dataclass(frozen=True)
class VideoFeatures:
    """A video as the processor prepared it for the model."""

    spec: FrameSpec
    expansion: np.ndarray
    """[E] int64: the ids that replace the video placeholder."""
    visual_tokens: int
    tensors: dict[str, np.ndarray]
    """Model inputs such as pixel_values_videos, video_grid_thw; concatenated along axis 0 in a batch."""

    @property
    def nbytes(self) -> int:
        """Return the size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class VideoProcessor:
    """Videos of one `Frames` source, processed for one model."""

    def __init__(
        self,
        processor: Any,
        placeholder: str,
        visual_id: int,
        frames: Frames | None,
        cache_bytes: int,
        dtype: torch.dtype,
    ):
        """Keep the model's processor and start with an empty cache.

        processor: of transformers, for texts and videos. placeholder: the family's text for a video; visual_id: the id of one
        visual position in its expansion. dtype: what the models compute in.
        """
        self.frames, self.dtype = frames, dtype
        self._processor, self._placeholder, self._visual_id = processor, placeholder, visual_id
        self._cache: ByteCache[str, VideoFeatures] = ByteCache(cache_bytes)
        self._blank: dict[tuple, VideoFeatures] = {}

    def get(self, video: str, part: Sequence[int] = ()) -> VideoFeatures:
        """Return the processed frames of a video, or of some native frames of it (cached).

        Raises DataError if the video cannot be decoded.
        """
        spec = self.frames.spec(video)
        if part:
            spec = spec.part(part)
        features = self._cache.get(spec.hash)
        if features is None:
            features = self._process(spec, self.frames.get(video, spec))
            self._cache.put(spec.hash, features, features.nbytes)
        return features

    def blank(self, spec: FrameSpec) -> VideoFeatures:
        """Return the features of a black video of this size, without pixels: enough to count and place visual tokens.

        The processor runs once per frame size, not once per video. Families that write times between the frames get the
        same number of tokens for times of the same length in characters.
        """
        # Qwen3-VL writes these times into the prompt with one digit: as many characters are as many tokens
        lengths = tuple(len(f"{index / spec.fps:.1f}") for index in spec.indices)
        key = (spec.height, spec.width, lengths)
        if key not in self._blank:
            shape = (len(spec.indices), spec.height, spec.width, 3)
            frames = np.zeros(shape, np.uint8)
            features = self._process(spec, frames)
            without_pixels = {name: array for name, array in features.tensors.items() if not name.startswith("pixel")}
            self._blank[key] = replace(features, tensors=without_pixels)
        return self._blank[key]

    def _process(self, spec: FrameSpec, frames: np.ndarray) -> VideoFeatures:
        output = self._processor(
            text=[self._placeholder],
            videos=[np.array(frames)],  # a copy: views of the object store are read-only
            video_metadata=[VideoMetadata(**spec.metadata())],
            do_sample_frames=False,  # they are chosen already, the same ones for all roles
            add_special_tokens=False,
            return_tensors="pt",  # InternVL's processor cannot return arrays
        )
        # The engine expands the placeholder by itself; these ids are for the learner, and for a check of what the engine did.
        expansion = np.asarray(output.pop("input_ids")[0], np.int64)
        visual_tokens = int((expansion == self._visual_id).sum())
        # `second_per_grid_ts` stays among them: without it transformers' Qwen2.5-VL raises StopIteration for a batch that is
        # larger than its prompts are long
        tensors = {}
        for name, value in output.items():
            if name not in NOT_FEATURES:
                tensors[name] = self.as_engine_holds(name, value)
        return VideoFeatures(spec, expansion, visual_tokens, tensors)

    def as_engine_holds(self, name: str, value: object) -> np.ndarray:
        """Return a processor's output as vLLM holds it: numbers that are not pixels are rounded to the models' dtype.

        A time rounded to 16 bits can move a position by one, so the learner has to round as the engine does.
        """
        array = np.asarray(value)
        if name.startswith("pixel") or not np.issubdtype(array.dtype, np.floating):
            return array
        rounded = torch.tensor(array, dtype=torch.float32).to(self.dtype)
        return rounded.float().numpy()
