"""Tests of the files that open as a video, of the stream that is used, and of its orientation."""

import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from video_corpus import HEIGHT, WIDTH, encode, in_order, picture

from rlaif.errors import DataError
from rlaif.video.decode import decode, probe_video, sample_spec

NO_CONTAINERS = {
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nv.mp4\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile v.mp4\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 96\n",
    "dash": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>v.mp4</BaseURL></MPD>',
    "asx": b'<asx version="3.0"><entry><ref href="v.mp4"/></entry></asx>',
    "pls": b"[playlist]\nFile1=v.mp4\nNumberOfEntries=1\n",
    "text": b"a video is what this is not\n" * 50,
}


@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".txt", ".ffconcat", ".sdp", ".mkv"])
@pytest.mark.parametrize("kind", NO_CONTAINERS)
def test_a_text_that_names_other_files_is_no_video(tmp_path, kind, suffix):
    encode(tmp_path / "v.mp4", length=10)
    path = tmp_path / f"list{suffix}"
    path.write_bytes(NO_CONTAINERS[kind])
    with pytest.raises(DataError, match="video") as raised:
        probe_video(path)
    assert str(path) in raised.value.expected


def test_file_names_that_look_like_protocols_or_options_open(tmp_path):
    encode(tmp_path / "v.mp4", length=10)
    for name in ("concat:v.mp4", "http:x.mp4", "a%03d.mp4", "-i.mp4", "ünï cödé.mp4"):
        (tmp_path / name).write_bytes((tmp_path / "v.mp4").read_bytes())
        assert probe_video(tmp_path / name).total_frames == 10


def test_an_image_named_as_a_video_and_pipes_are_refused(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", tmp_path / "a.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("a.mp4", "pipe.mp4", "pipe.png"):
        with pytest.raises(DataError, match=name):
            probe_video(tmp_path / name)


STILL = ("cover", "thumbnail")


def write_streams(path, *kinds: str, default: int | None = None):
    """Write a file with several video streams: `cover` a picture, `thumbnail` one that is not marked, else a video."""
    with av.open(str(path), "w") as container:
        streams = [add_stream(container, kind, place, default) for place, kind in enumerate(kinds)]
        for number in range(20):
            for place, (stream, kind) in enumerate(zip(streams, kinds, strict=True)):
                if number and kind in STILL:
                    continue
                frame = av.VideoFrame.from_ndarray(picture(number + place), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    return path


def add_stream(container, kind: str, place: int, default: int | None):
    """Add a stream; default: place of the stream that is marked as default, None if no stream has a mark."""
    still = kind in STILL
    stream = container.add_stream("mjpeg" if still else "libx264", rate=25)
    stream.height, stream.width = 48, 80
    stream.pix_fmt = "yuvj420p" if still else "yuv420p"
    if kind == "cover":
        stream.disposition = av.stream.Disposition.attached_pic
    elif default is not None:
        is_default = place == default
        stream.disposition = av.stream.Disposition.default if is_default else av.stream.Disposition(0)
    return stream


@pytest.mark.parametrize("container", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("kinds", [("video", "cover"), ("thumbnail", "video"), ("video", "thumbnail")])
def test_attached_pictures_and_thumbnails_are_no_video(tmp_path, container, kinds):
    path = write_streams(tmp_path / f"a.{container}", *kinds)
    assert probe_video(path).total_frames == 20


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("default", [0, 1])
def test_default_stream_is_used_when_there_are_several(tmp_path, container, default):
    path = write_streams(tmp_path / f"a.{container}", "video", "video", default=default)
    spec = sample_spec(path, 5)
    expected = in_order(path)
    assert spec.total_frames == len(expected) == 20
    for number, frame in zip(spec.indices, decode(path, spec), strict=True):
        assert np.array_equal(frame, expected[number])


TURNS = {
    "none": ((1, 0, 0, 1), lambda image: image),
    "quarter": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "half": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "three quarters": ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda image: image[::-1]),
    "transposed": ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    "transposed the other way": ((0, -1, -1, 0), lambda image: image.transpose(1, 0, 2)[::-1, ::-1]),
}


@pytest.mark.parametrize("turn", TURNS)
def test_files_are_turned_and_mirrored_upright(tmp_path, turn):
    (a, b, c, d), expected = TURNS[turn]
    path = encode(tmp_path / "a.mp4", length=10)
    before = in_order(path)
    data = path.read_bytes()
    # An MP4's display matrix begins like this: a, b, 0, c, d as 16.16 fixed-point numbers.
    level = struct.pack(">5i", 1 << 16, 0, 0, 0, 1 << 16)
    start = data.index(level, data.index(b"tkhd"))
    matrix = struct.pack(">5i", a << 16, b << 16, 0, c << 16, d << 16)
    path.write_bytes(data[:start] + matrix + data[start + len(level) :])
    spec = sample_spec(path, 3)
    upright = expected(before[0]).shape
    assert (spec.height, spec.width) == upright[:2] and {spec.height, spec.width} == {HEIGHT, WIDTH}
    for number, frame in zip(spec.indices, decode(path, spec), strict=True):
        assert np.array_equal(frame, expected(before[number]))
