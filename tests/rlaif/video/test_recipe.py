"""Tests that the frame recipe of an export names the frames that training used, and gives the same ones again."""

from __future__ import annotations

import numpy as np
import pytest

from rlaif.config.schema import Video
from rlaif.errors import ConfigError, DataError
from rlaif.video.decode import decode, sample_spec
from rlaif.video.recipe import RECIPE, frames_of, read_recipe, recipe_text


@pytest.fixture
def export(tmp_path):
    """Return a factory of folders with a recipe: export(num_frames=6)."""

    def make(**video):
        (tmp_path / RECIPE).write_text(recipe_text(Video(**video)))
        return tmp_path

    return make


@pytest.mark.parametrize("video", [{"num_frames": 6}, {"num_frames": 24}, {"num_frames": 5, "height": 16, "width": 24}])
def test_frames_of_an_export_are_those_of_training(export, clip, video):
    file = clip(length=24)
    spec = sample_spec(file, **video)
    frames, metadata = frames_of(export(**video), file)
    assert np.array_equal(frames, decode(file, spec)) and frames.flags.writeable
    assert metadata == spec.metadata()


def test_indices_follow_the_written_rule(export, clip):
    recipe = read_recipe(export(num_frames=7))
    total, num_frames = 24, recipe["num_frames"]
    indices = eval(recipe["indices"], {"numpy": np, "total_frames": total, "num_frames": num_frames})
    assert indices.astype(int).tolist() == list(sample_spec(clip(length=total), num_frames).indices)
    assert recipe["do_sample_frames"] is False and recipe["processor"].startswith("transformers-")


def test_a_video_that_training_would_refuse_is_refused(export, clip):
    with pytest.raises(DataError, match="at least 9 frames"):
        frames_of(export(num_frames=9), clip(length=8))


def test_a_folder_without_a_recipe_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="frame_recipe.json"):
        frames_of(tmp_path, "a.mp4")
    (tmp_path / RECIPE).write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="format 1"):
        frames_of(tmp_path, "a.mp4")
