"""Tests that frame i is frame i of a decode in order, for every kind of file (files: tests/support/video_corpus.py)."""

import random

import numpy as np
import pytest
from video_corpus import LENGTH, X264, encode, in_order, number_of, odd, plain, remux

from rlaif.errors import DataError
from rlaif.video import container, files, index, packets
from rlaif.video.decode import decode, probe_video
from rlaif.video.known import KnownVideos
from rlaif.video.spec import FrameSpec, uniform

PARTS = ("h264_", "closed_", "open_", "one_idr_", "no_b_", "variable", "")
"""Beginnings of names: the corpus is checked in parts, so that a failure names one."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    paths = [make() for make in plain(folder)]
    paths += [make() for make in odd(folder)]
    assert len(paths) > 150
    return {path: in_order(path) for path in paths}


@pytest.fixture
def jumping(monkeypatch):
    """Jump to every proven start, however little it saves, and decode sound files on several threads."""
    monkeypatch.setattr(container, "THREADS", 4)
    monkeypatch.setattr(index, "SMALL", 0)
    monkeypatch.setattr(packets, "APART", 1)
    monkeypatch.setattr(files, "WORTH", float("inf"))


def choices(total: int, seed: str) -> list[tuple[int, ...]]:
    """Return ascending numbers: sampled over the whole video, the last, and random ones that repeat."""
    chance = random.Random(seed)
    last = total - 1
    numbers = [tuple(uniform(total, min(8, total))), (last,), (0, 0, last, last)]
    for count in (1, 4, 9):
        drawn = chance.choices(range(total), k=count)
        numbers.append(tuple(sorted(drawn)))
    return numbers


def check(path, expected: list[np.ndarray]) -> None:
    """Assert that a file is refused, or shows the frames of a decode in order for every choice of numbers."""
    known = KnownVideos()
    try:
        info = probe_video(path, known)
    except DataError as error:
        assert not expected or "cut off" in error.found, f"{path.name}: {error}"
        return
    assert info.total_frames == len(expected) or info.damage, path.name
    for numbers in choices(info.total_frames, path.name):
        spec = FrameSpec(info.sha256, numbers, info.height, info.width, info.fps, info.total_frames)
        try:
            frames = decode(path, spec, known)
        except DataError as error:
            assert "_cut.ts" in path.name and "is damaged" in error.found, f"{path.name}: {error}"
            continue
        for number, frame in zip(numbers, frames, strict=True):
            assert np.array_equal(frame, expected[number]), f"{path.name}: frame {number}"


def part_of(path) -> str:
    return next(part for part in PARTS if path.name.startswith(part))


@pytest.mark.parametrize("part", PARTS)
def test_frames_are_those_of_a_decode_in_order(corpus, part):
    for path, expected in corpus.items():
        if part_of(path) == part:
            check(path, expected)


@pytest.mark.parametrize("part", PARTS)
def test_frames_after_a_jump_and_of_several_threads_are_those_of_a_decode_in_order(corpus, jumping, part):
    for path, expected in corpus.items():
        if part_of(path) == part:
            check(path, expected)


def test_corpus_frames_show_their_numbers(corpus):
    whole = [path for path in corpus if path.name.startswith("h264_") and path.suffix in (".mp4", ".mkv")]
    for path in whole:
        assert [number_of(frame) for frame in corpus[path]] == list(range(LENGTH)), path.name


PROVEN = {"closed": True, "no_b": True, "pyramid": True, "slices": True, "interlaced": False}


@pytest.mark.parametrize("structure", PROVEN)
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_plain_h264_is_proven_and_decoding_jumps(tmp_path, jumping, structure, container):
    path = encode(tmp_path / f"a.{container}", options=X264[structure])
    assert bool(index.read_index(path).starts) == PROVEN[structure]


def test_jumps_lead_to_idr_pictures_only(tmp_path, jumping):
    # Streams with open groups of pictures or intra refresh flag other packets as key frames.
    for structure in ("open", "recovery", "one_idr"):
        path = encode(tmp_path / f"{structure}.mkv", options=X264[structure])
        assert [start.frame for start in index.read_index(path).starts] == [0]
    everything = remux(path, tmp_path / "keys.mkv", change=lambda number, packet: setattr(packet, "is_keyframe", True))
    assert [start.frame for start in index.read_index(everything).starts] == [0]


def test_frames_are_right_when_the_index_is_of_another_file(tmp_path, jumping):
    path = encode(tmp_path / "a.mp4", options=X264["closed"])
    other = index.read_index(encode(tmp_path / "b.mp4", options=X264["closed"], gop=7, length=50))
    frames = dict(files.read_frames(path, [5, 33, 49], other))
    expected = in_order(path)
    assert all(np.array_equal(frame, expected[number]) for number, frame in frames.items())


def test_jumps_through_a_long_video_show_the_right_frames(tmp_path):
    path = encode(tmp_path / "a.mp4", options=X264["closed"], length=64, size=(256, 320))
    whole = index.read_index(path)
    assert len(whole.starts) > 2
    expected = in_order(path)
    jumps = files._plan_jumps(whole.starts, [3, 60])
    assert len(jumps) == 2
    for number, frame in files._read_with_jumps(path, whole.stream, jumps):
        assert np.array_equal(frame, expected[number])


def test_threads_decode_only_files_without_errors(tmp_path, jumping):
    whole = encode(tmp_path / "whole.mkv", "mpeg4", {"bf": "2"})
    assert index.read_index(whole).sound
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    (tmp_path / "damaged.mkv").write_bytes(data)
    assert not index.read_index(tmp_path / "damaged.mkv").sound
    check(tmp_path / "damaged.mkv", in_order(tmp_path / "damaged.mkv"))


def test_damage_that_the_decoder_only_logs_is_reported(tmp_path, jumping):
    # FFV1 checks its slices, logs what is wrong, and shows what was in memory.
    whole, damaged = tmp_path / "whole.mkv", tmp_path / "damaged.mkv"
    data = bytearray(encode(whole, "ffv1").read_bytes())
    whole_info = probe_video(whole)
    assert not whole_info.damage
    data[len(data) // 2 : len(data) // 2 + 30] = bytes(30)
    damaged.write_bytes(data)
    info = probe_video(damaged)
    assert "CRC mismatch" in info.damage
    size = {"height": info.height, "width": info.width, "fps": info.fps, "total_frames": info.total_frames}
    frames = decode(damaged, FrameSpec(info.sha256, (0, 3), **size))
    expected = decode(whole, FrameSpec(whole_info.sha256, (0, 3), **size))
    assert np.array_equal(frames, expected)
    with pytest.raises(DataError, match="does not decode to its last frame"):
        decode(damaged, FrameSpec(info.sha256, (3, LENGTH - 1), **size))


@pytest.mark.parametrize("numbers", [(LENGTH + 5,), (3, LENGTH + 5)])
def test_a_frame_of_another_size_is_never_stretched(tmp_path, numbers):
    # Two streams are joined into one, as adaptive streaming does.
    first = encode(tmp_path / "a.h264").read_bytes()
    second = encode(tmp_path / "b.h264", size=(64, 112)).read_bytes()
    (tmp_path / "joined.h264").write_bytes(first + second)
    info = probe_video(tmp_path / "joined.h264")
    spec = FrameSpec(info.sha256, numbers, info.height, info.width, info.fps, info.total_frames)
    with pytest.raises(DataError, match="Re-encode the video at one size"):
        decode(tmp_path / "joined.h264", spec)
