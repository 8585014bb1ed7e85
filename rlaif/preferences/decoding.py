"""Decode what a run would use of a video: `rlaif data check --decode`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from rlaif.config.schema import Video


def decoder(video: Video | None = None) -> Callable[[Path], np.ndarray]:
    """Return a function that decodes the frames of a file that a run with these options uses; it raises DataError.

    Without options, as many frames as the options' default over the whole video, or all of a shorter one.
    """
    from rlaif.video.decode import decode, sample_spec

    def decoded(path: Path) -> np.ndarray:
        if video is not None:
            return decode(path, sample_spec(path, video.num_frames, video.height, video.width))
        spec = sample_spec(path, 1)
        return decode(path, spec.part(spec.sparse(Video().num_frames)))

    return decoded
