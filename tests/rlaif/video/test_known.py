"""Tests that facts about a video are kept, shared, and learned again as soon as the video or an entry changed."""

import json
import multiprocessing
import os
import time
from itertools import product
from pathlib import Path

import pytest

from rlaif.errors import DataError
from rlaif.video import decode as decoding
from rlaif.video.decode import decode, probe_video, sample_spec
from rlaif.video.known import KnownVideos


@pytest.fixture
def learned(monkeypatch):
    """Return the names of the videos that were read, not looked up."""
    names = []
    original = decoding._facts

    def facts(path):
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(decoding, "_facts", facts)
    return names


def age(path, seconds=100):
    """Set the times of a video, so that it was not written just now."""
    then = time.time() - seconds
    for file in [*path.iterdir(), path] if path.is_dir() else [path]:
        os.utime(file, (then, then))
    return path


def entries(folder):
    return [file for file in folder.rglob("*") if file.is_file()]


def test_videos_are_learned_once_for_all_processes(tmp_path, clip, folder, learned):
    known = tmp_path / "known"
    for path in (age(clip()), age(folder())):
        first = sample_spec(path, 4, known=KnownVideos(known))
        frames = decode(path, first, KnownVideos(known))
        other_process = KnownVideos(known)
        assert sample_spec(path, 4, known=other_process) == first
        assert (decode(path, first, other_process) == frames).all()
    assert learned == ["a.mp4", "frames"] and len(entries(known)) == 2


def test_a_changed_video_is_learned_again_and_refused(tmp_path, clip, folder, learned):
    known = tmp_path / "known"
    path, images = age(clip()), age(folder())
    specs = [sample_spec(video, 4, known=KnownVideos(known)) for video in (path, images)]
    clip(length=23)
    (images / "frame7.png").write_bytes((images / "frame8.png").read_bytes())
    for video, spec in zip((path, images), specs, strict=True):
        with pytest.raises(DataError, match="that was probed"):
            decode(video, spec, KnownVideos(known))
    assert learned == ["a.mp4", "frames"] * 2


def test_a_video_that_was_written_just_now_is_read_again(tmp_path, clip, learned):
    # Its time would not show a second change within the same tick of the clock.
    path, known = clip(), KnownVideos(tmp_path / "known")
    spec = sample_spec(path, 4, known=known)
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DataError, match="that was probed"):
        decode(path, spec, known)


def test_problems_are_remembered_but_missing_files_are_not(tmp_path, learned):
    known, path = tmp_path / "known", tmp_path / "bad.mp4"
    with pytest.raises(DataError, match="nothing there"):
        probe_video(path, KnownVideos(known))
    path.write_bytes(b"no video" * 99)
    age(path)
    errors = []
    for _ in range(2):
        with pytest.raises(DataError) as raised:
            probe_video(path, KnownVideos(known))
        errors.append(str(raised.value))
    assert errors[0] == errors[1] and learned == ["bad.mp4"]


DAMAGES = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "binary": lambda text: "\0\1\2",
    "another kind": lambda text: "[1, {}]",
    "other numbers": lambda text: text.replace('"total_frames": 24', '"total_frames": 25'),
    "other libraries": lambda text: text.replace("FFmpeg", "FFmpreg"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_entry_is_learned_again(tmp_path, clip, learned, kind):
    known, path = tmp_path / "known", age(clip())
    info = probe_video(path, KnownVideos(known))
    (entry,) = entries(known)
    text = entry.read_text()
    entry.write_text(DAMAGES[kind](text))
    assert entry.read_text() != text
    assert probe_video(path, KnownVideos(known)) == info and len(learned) == 2
    assert json.loads(entry.read_text())[1]["facts"]["info"]["total_frames"] == 24


def test_unwritable_folder_is_logged_once(tmp_path, clip, caplog):
    (tmp_path / "file").write_text("")
    known = KnownVideos(tmp_path / "file" / "below")
    for name in ("a.mp4", "b.mp4"):
        assert probe_video(age(clip(name)), known).total_frames == 24
    assert len(caplog.records) == 1 and "cannot be cached" in caplog.text


def _probe_all(folder: str, paths: list[str]) -> list[str]:
    known = KnownVideos(folder)
    return [probe_video(path, known).sha256 for path, _ in product(paths, range(5))]


def test_many_processes_may_learn_at_once(tmp_path, clip):
    known = tmp_path / "known"
    # They were just written, so each look writes an entry.
    paths = [str(clip(f"{number}.mp4")) for number in range(4)]
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        results = pool.starmap(_probe_all, [(str(known), paths)] * 3)
    assert results[0] == results[1] == results[2]
    names = set()
    for entry in entries(known):
        _, content = json.loads(entry.read_text())
        names.add(Path(content["path"]).name)
    assert names == {"0.mp4", "1.mp4", "2.mp4", "3.mp4"}
