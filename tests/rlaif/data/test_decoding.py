"""`--decode` finds what looking at the structure of a file does not."""

from __future__ import annotations

import json

import pytest
from half_broken import half_broken
from PIL import Image

from rlaif.cli.main import main
from rlaif.config.schema import Video
from rlaif.data.decoding import decoder
from rlaif.errors import DataError
from rlaif.video.decode import probe_video


def test_a_video_that_breaks_off_is_found_by_decoding_alone(tmp_path):
    half_broken(tmp_path / "half")
    probe_video(tmp_path / "half")
    for options in (None, Video()):
        with pytest.raises(DataError, match="7.png"):
            decoder(options)(tmp_path / "half")


def test_decoding_uses_the_frames_of_a_run(tmp_path):
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


def test_data_check_decodes_on_demand(tmp_path, capsys):
    half_broken(tmp_path / "half")
    row = {"prompt_id": "p", "video": "half", "question": "what moves ?"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    file = str(tmp_path / "prompts.jsonl")
    (tmp_path / "run.yaml").write_text(f"name: run\nstorage: {tmp_path}/runs\ndata: {{root: {tmp_path}}}\n")
    with_config = ["--config", str(tmp_path / "run.yaml")]
    assert main(["data", "check", file]) == main(["data", "check", file, *with_config]) == 0
    for options in (["--decode"], ["--decode", *with_config]):
        capsys.readouterr()
        assert main(["data", "check", file, *options]) == 1
        printed = capsys.readouterr().out
        assert "0 of 1 rows kept, 1 video unusable" in printed and "7.png" in printed and "'p'" in printed
