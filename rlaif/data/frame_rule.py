"""What a run's configuration requires of a video: a number of frames and their size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rlaif.config.load import load_config
from rlaif.data.decoding import decoder
from rlaif.data.places import check_local


def frame_rule(path: Path, decode: bool = False) -> tuple[Path, dict[str, Any]]:
    """Return `data.root` of a configuration, and the options with which `check` opens, or decodes, videos as its stages do.

    Raise ConfigError for a configuration that cannot run.
    """
    # the decoders are imported late: `rlaif data check --no-videos` works without them
    from rlaif.video.decode import sample_spec

    check_local(config=path)
    config = load_config(path)
    video = config.video
    probe = partial(sample_spec, num_frames=video.num_frames, height=video.height, width=video.width)
    open_video: Callable[[Path], Any] = decoder(video) if decode else probe
    return Path(config.data.root), {"open_video": open_video, "least": video.num_frames}
