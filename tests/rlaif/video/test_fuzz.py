"""A small part of tests/studies/fuzz_video.py, which runs a thousand damaged files."""

from importlib import util
from pathlib import Path

STUDY = Path(__file__).parents[2] / "studies" / "fuzz_video.py"


def test_damaged_files_show_no_wrong_frame():
    spec = util.spec_from_file_location("fuzz_video", STUDY)
    study = util.module_from_spec(spec)
    spec.loader.exec_module(study)
    figures = study.fuzz(50, seed=7)
    assert figures["passed"], figures
