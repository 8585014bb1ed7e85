"""Open a video file safely and choose its video stream.

Only containers are opened: no playlist, session description or pattern that names other files, no text and no still
image, whatever the file's name says. FFmpeg may read the file itself and nothing else.

**Which stream.** Attached pictures (cover art, thumbnails), tiles of a larger picture and streams that FFmpeg cannot
decode are not used. Of the other video streams it is the one that FFmpeg prefers (`av_find_best_stream`: marked as
default, then more than a single picture, then the higher bit rate); if that one is a picture, the first that is marked
as default, else the first. In an AVIF it is the first: its transparency is a stream of its own, which
is not applied and may have the higher bit rate. Counting and decoding both use it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from rlaif.video.images import on_white

REFERENCES = {"hls", "dash", "concat", "concatf", "sdp", "webm_dash_manifest", "imf", "vapoursynth", "avisynth"}
"""Formats that name other files."""
NO_VIDEOS = {"image2pipe", "tty", "bin", "xbin", "adf", "idf", "ffmetadata", "data", "rawvideo", "bitpacked", "ico"}
"""Texts and pictures that FFmpeg would play, and raw data that it would guess by the file's name."""
THREADS = min(4, os.cpu_count() or 1)
"""Of one decoder. More help little, and each holds frames of its own."""
PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
"""Of streams that are no video by themselves; a photo of a phone (HEIC) is many dependent tiles."""
AVIF = ("avif", "avis")


def _allow_unknown_side_data() -> None:
    """Let PyAV read frames with side data of types that its enumeration lacks.

    FFmpeg knows more types than PyAV (EXIF and 3D displays among them), and PyAV raises ValueError for a frame that has
    one, also if only the display matrix is asked for.
    """
    kinds = av.sidedata.sidedata.Type

    def unknown(cls: type, value: int) -> object:
        member = object.__new__(cls)
        member._name_, member._value_ = f"UNKNOWN_{value}", value
        return member

    kinds._missing_ = classmethod(unknown)


_allow_unknown_side_data()


class NotVideo(Exception):
    """A file that is no video; the message says what it is instead."""


DAMAGED = (av.error.FFmpegError, NotVideo, RuntimeError, ValueError, StopIteration)
"""Raised for files that FFmpeg cannot open or decode (PyAV has no class of its own for some)."""


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """Open a container. Raises NotVideo, or av.error.FFmpegError if it does not open."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):  # reading a pipe or a device may never return
        raise NotVideo("no regular file")
    options = {"protocol_whitelist": "file", "format_whitelist": _containers()}
    try:
        # the prefix keeps FFmpeg from reading a name such as "concat:a" as another protocol
        container = av.open(f"file:{path}", container_options=options, metadata_errors="replace")
    except av.error.ArgumentError as error:  # what FFmpeg answers for a format off the list
        raise NotVideo("a playlist, text or still image by its content, or a damaged header") from error
    with container:
        yield container


def video_stream(container: InputContainer) -> VideoStream:
    """Return the stream that is used. Raises NotVideo if there is none."""
    every = list(container.streams.video)
    streams = [stream for stream in every if not stream.disposition & PICTURES]
    if every and not streams:
        raise NotVideo("no video stream (attached pictures and the tiles of a larger picture are none)")
    if streams and all(stream.codec_context is None for stream in streams):
        raise NotVideo("a video of a codec that this FFmpeg cannot decode")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise NotVideo("no video stream")
    # a thumbnail that nobody marked as one
    streams = [stream for stream in streams if stream.frames != 1] or streams
    if container.metadata.get("major_brand") in AVIF:
        return streams[0]
    best = container.streams.best("video")
    if best in streams:
        return best
    default = [stream for stream in streams if stream.disposition & Disposition.default]
    return (default or streams)[0]


def decoded(path: Path, stream: int, threads: int = 1) -> Iterator[VideoFrame]:
    """Decode a stream from its start. Raises what FFmpeg raises; what it conceals is marked in the frame.

    Several threads give the same frames as one for streams without errors. With an error they do not: what is concealed
    depends on which thread is ahead, so they raise for what one thread would conceal, and may miss frames at the end.
    """
    with opened(path) as container:
        video = container.streams[stream]
        silent = video.codec_context.name == "ffv1"
        video.codec_context.thread_count = 1 if silent else threads
        if threads > 1 and not silent:
            video.codec_context.thread_type = "AUTO"
            video.codec_context.options = {"err_detect": "explode"}
        frames = container.decode(video)
        yield from _up_to_a_logged_error(frames) if silent else frames


def _up_to_a_logged_error(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    """Yield frames until the decoder logs an error; then raise RuntimeError.

    FFV1's decoder reports a damaged slice in its log alone, and shows whatever its memory held in that place.
    """
    level = av.logging.get_level()
    while True:
        av.logging.set_level(av.logging.ERROR)
        try:
            with av.logging.Capture() as logged:  # of this thread, in which the decoder runs
                frame = next(frames, None)
        finally:
            av.logging.set_level(level)
        if errors := [text.strip() for severity, _, text in logged if severity <= av.logging.ERROR]:
            raise RuntimeError(errors[0])
        if frame is None:
            return
        yield frame


def upright(frame: VideoFrame) -> np.ndarray:
    """Return uint8 [H, W, 3] RGB: turned and mirrored as the display matrix says, transparent pixels on white."""
    if any(component.is_alpha for component in frame.format.components):
        pixels = on_white(Image.fromarray(frame.to_ndarray(format="rgba")))
    else:
        pixels = frame.to_ndarray(format="rgb24")
    matrix = display_matrix(frame)
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]
    if abs(int(b)) + abs(int(c)) > abs(int(a)) + abs(int(d)):  # a quarter turn: rows become columns
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def display_matrix(frame: VideoFrame) -> bytes | None:
    """Return how a player turns and mirrors a frame, as FFmpeg's nine 32-bit numbers; None: it is shown as it is."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else bytes(matrix)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@cache
def _containers() -> str:
    """Return the names of the formats that may be opened, as FFmpeg's option takes them."""
    names = []
    for name in sorted(av.formats_available):
        try:
            form = av.ContainerFormat(name, "r")
        except ValueError:  # it can only be written
            continue
        pictures = form.name.endswith("_pipe")
        if not (form.no_file or pictures or form.name in REFERENCES or form.name in NO_VIDEOS):
            names.append(name)
    return ",".join(names)
