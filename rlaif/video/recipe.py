"""The frame recipe of an export: which frames the model was trained on, as numbers and in words, for those who serve it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from rlaif.config.schema import Video
from rlaif.errors import ConfigError
from rlaif.io.storage import fetch
from rlaif.video.decode import decode, sample_spec

RECIPE = "frame_recipe.json"
FORMAT = 1
"""Version of the recipe; it rises when a field changes its meaning."""


def processor_version() -> str:
    """Return the version of what turns frames into model inputs, as a run's FrameSpecs name it."""
    return f"transformers-{transformers.__version__}"


def recipe_of(video: Video) -> dict[str, Any]:
    """Return the recipe that the `video` section of a configuration describes."""
    resize = "by the processor alone"
    if video.height is not None or video.width is not None:
        resize = "bicubic, before the processor, which may resize again"
    return {
        "format": FORMAT,
        "num_frames": video.num_frames,
        "first_frame": 0,
        "last_frame": "total_frames - 1",
        "indices": "numpy.linspace(0, total_frames - 1, num_frames).round()",
        "rule": (
            f"{video.num_frames} frames, evenly spaced from the first to the last, each position rounded to the nearest "
            "frame (a tie to the even one). Frame numbers count the frames that decode, in order, from 0."
        ),
        "shorter_video": "refused",
        "height": video.height,
        "width": video.width,
        "resize": resize,
        "fps": "native",
        "fps_rule": (
            "fps, duration and total_num_frames in the video's metadata are those of the file, frames_indices the frame "
            "numbers chosen: the processor derives times from them."
        ),
        "colour": "RGB, uint8, [frames, height, width, 3]",
        "do_sample_frames": False,
        "processor": processor_version(),
    }


def recipe_text(video: Video) -> str:
    """Return the text of `frame_recipe.json`."""
    return json.dumps(recipe_of(video), indent=2) + "\n"


def read_recipe(export: str | Path) -> dict[str, Any]:
    """Return the recipe of an export. Raises ConfigError if the export has none, or one of a newer release."""
    file = Path(fetch(str(export))) / RECIPE
    if not file.is_file():
        raise ConfigError(
            f"{RECIPE} in the export at {export}",
            "no such file",
            "Name the folder of an export, or call rlaif.video.decode.sample_spec with the number of frames.",
        )
    recipe = json.loads(file.read_text(encoding="utf-8"))
    if recipe.get("format") != FORMAT:
        raise ConfigError(f"format {FORMAT} in {file}", f"{recipe.get('format')!r}", "Update rlaif.")
    return recipe


def frames_of(export: str | Path, video: str | Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the frames of a video that the exported model expects, and their metadata.

    The frames are uint8 [T, H, W, 3]. The metadata are what transformers' `VideoMetadata` takes; pass both with
    `do_sample_frames=False`. Raises DataError if the video does not decode or has too few frames.
    """
    recipe = read_recipe(export)
    spec = sample_spec(video, recipe["num_frames"], recipe["height"], recipe["width"], recipe["processor"])
    return decode(video, spec).copy(), spec.metadata()
