"""What a run's configuration asks of a video: so many frames, at that size."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rlaif.config.load import load_config
from rlaif.data.decoding import decoder
from rlaif.data.places import check_local


def frame_rule(path: Path, decode: bool = False) -> tuple[Path, dict[str, Any]]:
    """Return `data.root` of a configuration, and what `check` needs to open, or to decode, videos as its stages do.

    Raises ConfigError for a configuration that cannot run.
    """
    from rlaif.video.decode import sample_spec

    check_local(config=path)
    config = load_config(path)
    video = config.video
    if decode:
        return Path(config.data.root), {"open_video": decoder(video), "least": video.num_frames}
    open_video = partial(sample_spec, num_frames=video.num_frames, height=video.height, width=video.width)
    return Path(config.data.root), {"open_video": open_video, "least": video.num_frames}
