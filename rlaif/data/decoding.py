"""Decode what a run would use of a video: `rlaif data check --decode`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rlaif.config.schema import Video


def decoder(video: Video | None = None) -> Callable[[Path], np.ndarray]:
    """Return a function that decodes the frames of a file that a run with these options uses; it raises DataError.

    Without options, as many frames as the options' default over the whole video, or all of a shorter one.
    """
    from rlaif.video.decode import spec_of
    from rlaif.video.workers import Decoders

    options = video or Video()
    decoders = Decoders(os.cpu_count() or 1, options.decode_timeout_s)

    def decoded(path: Path) -> np.ndarray:
        info = decoders.probe(path)
        if video is not None:
            return decoders.decode(path, spec_of(path, info, video.num_frames, video.height, video.width, ""))
        spec = spec_of(path, info, 1, None, None, "")
        return decoders.decode(path, spec.part(spec.sparse(options.num_frames)))

    return decoded
