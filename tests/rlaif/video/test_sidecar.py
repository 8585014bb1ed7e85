"""Tests that a folder's `frames.json` without a frame rate is an error that names it."""

import os

import numpy as np
import pytest
from PIL import Image

from rlaif.errors import DataError
from rlaif.video.decode import probe_video

TEXTS = {
    "null": "null",
    "list": "[1]",
    "truth": '{"fps": true}',
    "deep": "[" * 100_000,
    "digits": '{"fps": 1' + "0" * 5000 + "}",
    "large": '{"fps": 1' + "0" * 400 + "}",
    "nan": '{"fps": NaN}',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_sidecar_without_a_frame_rate_is_named(tmp_path, text):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "frames.json").write_text(text)
    with pytest.raises(DataError, match=r"frames\.json"):
        probe_video(tmp_path)


def test_a_sidecar_that_is_a_pipe_is_not_read(tmp_path):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "0.png")
    os.mkfifo(tmp_path / "frames.json")
    with pytest.raises(DataError, match="no regular file"):
        probe_video(tmp_path)
