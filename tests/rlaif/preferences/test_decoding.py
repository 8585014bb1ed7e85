"""`--decode` finds what looking at the structure of a file does not."""

from __future__ import annotations

import pytest
from half_broken import half_broken
from PIL import Image

from rlaif.config.schema import Video
from rlaif.errors import DataError
from rlaif.preferences.decoding import decoder
from rlaif.video.decode import probe


def test_a_video_that_breaks_off_is_found_by_decoding_alone(tmp_path):
    half_broken(tmp_path / "half")
    probe(tmp_path / "half")
    for options in (None, Video()):
        with pytest.raises(DataError, match="7.png"):
            decoder(options)(tmp_path / "half")


def test_what_is_decoded_are_the_frames_that_a_run_uses(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (28, 14), (number, 0, 0)).save(folder / f"{number}.png")
    assert decoder(Video(num_frames=4, height=28, width=56))(folder).shape == (4, 28, 56, 3)
    assert decoder()(folder).shape == (8, 14, 28, 3)
    with pytest.raises(DataError):
        decoder(Video(num_frames=11))(folder)
    for number in range(2, 10):
        (folder / f"{number}.png").unlink()
    assert decoder()(folder).shape == (2, 14, 28, 3), "without a rule, a shorter video shows what it has"
