"""Decode the frames of a video that a run would use: `rlaif data check --decode`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rlaif.config.schema import Video


def decoder(video: Video | None = None) -> Callable[[Path], np.ndarray]:
    """Return a function that decodes the frames of a file that a run with these options uses; it raises DataError.

    Without options it decodes as many frames as their default, spread over the whole video, or all of a shorter one.
    """
    from rlaif.video.decode import spec_of
    from rlaif.video.workers import Decoders

    options = video or Video()
    decoders = Decoders(os.cpu_count() or 1, options.decode_timeout_s)

    def decode(path: Path) -> np.ndarray:
        info = decoders.probe(path)
        if video is not None:
            spec = spec_of(path, info, video.num_frames, video.height, video.width, "")
        else:
            # a spec of one frame asks for no more than there are; the part of it is spread over the video
            whole = spec_of(path, info, 1, None, None, "")
            spec = whole.part(whole.sparse(options.num_frames))
        return decoders.decode(path, spec)

    return decode
