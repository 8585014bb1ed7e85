"""Open a video file safely and choose its video stream.

Only containers are opened: no playlist, session description or pattern that names other files, no text and no still
image, whatever the file's name says. FFmpeg may read the file itself and nothing else.

**Which stream.** Attached pictures (cover art, thumbnails), tiles of a larger picture and streams that FFmpeg cannot
decode are not used. Among the other video streams the one that FFmpeg prefers is used (`av_find_best_stream`: marked as
default, then more than a single picture, then the higher bit rate). If FFmpeg prefers a picture, the first stream that
is marked as default is used, else the first. In an AVIF it is the first: its transparency is a stream of its own, which
is not applied and may have the higher bit rate. Counting and decoding both use this stream.
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

from rlaif.video.images import composite_on_white

REFERENCES = {"hls", "dash", "concat", "concatf", "sdp", "webm_dash_manifest", "imf", "vapoursynth", "avisynth"}
"""Formats that name other files."""
NO_VIDEOS = {"image2pipe", "tty", "bin", "xbin", "adf", "idf", "ffmetadata", "data", "rawvideo", "bitpacked", "ico"}
"""Texts and pictures that FFmpeg would play, and raw data that it would guess by the file's name."""
THREADS = min(4, os.cpu_count() or 1)
"""Threads of one decoder. More threads help little, and each holds frames of its own."""
PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
"""Marks of streams that are no video by themselves; a photo of a phone (HEIC) is many dependent tiles."""
AVIF_BRANDS = ("avif", "avis")


def _allow_unknown_side_data() -> None:
    """Let PyAV read frames with side data of types that its enumeration lacks.

    FFmpeg knows more types than PyAV (EXIF and 3D displays among them), and PyAV raises ValueError for a frame that has
    one, also if only the display matrix is requested.
    """
    kinds = av.sidedata.sidedata.Type

    def unknown_member(cls: type, value: int) -> object:
        member = object.__new__(cls)
        member._name_ = f"UNKNOWN_{value}"
        member._value_ = value
        return member

    kinds._missing_ = classmethod(unknown_member)


_allow_unknown_side_data()


class NotVideoError(Exception):
    """A file that is no video; the message says what it is instead."""


DAMAGED = (av.error.FFmpegError, NotVideoError, RuntimeError, ValueError, StopIteration)
"""Raised for files that FFmpeg cannot open or decode (PyAV has no class of its own for some)."""


@contextmanager
def open_container(path: Path) -> Iterator[InputContainer]:
    """Open a container. Raises NotVideoError, or av.error.FFmpegError if it does not open."""
    mode = path.stat().st_mode
    # Reading a pipe or a device may never return.
    if not stat.S_ISREG(mode):
        raise NotVideoError("no regular file")
    # FFmpeg judges a file by its content; the lists keep it from following references to others.
    options = {"protocol_whitelist": "file", "format_whitelist": _allowed_formats()}
    # The prefix keeps FFmpeg from reading a name such as "concat:a" as another protocol.
    url = f"file:{path}"
    try:
        # A title in another encoding than UTF-8 is no reason to refuse a video.
        container = av.open(url, container_options=options, metadata_errors="replace")
    except av.error.ArgumentError as error:
        # FFmpeg answers this for a format that is not on the list.
        raise NotVideoError("a playlist, text or still image by its content, or a damaged header") from error
    with container:
        yield container


def video_stream(container: InputContainer) -> VideoStream:
    """Return the stream that is used. Raises NotVideoError if there is none."""
    # decord picks the larger of two streams; a player shows the one that FFmpeg prefers, and so do we.
    every = list(container.streams.video)
    streams = [stream for stream in every if not stream.disposition & PICTURES]
    if every and not streams:
        raise NotVideoError("no video stream (attached pictures and the tiles of a larger picture are none)")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if streams and not decodable:
        raise NotVideoError("a video of a codec that this FFmpeg cannot decode")
    if not decodable:
        raise NotVideoError("no video stream")
    # A stream of one frame is a thumbnail that no mark calls one, unless there is nothing else.
    longer = [stream for stream in decodable if stream.frames != 1]
    return _preferred_stream(container, longer or decodable)


def _preferred_stream(container: InputContainer, streams: list[VideoStream]) -> VideoStream:
    if container.metadata.get("major_brand") in AVIF_BRANDS:
        return streams[0]
    best = container.streams.best("video")
    if best in streams:
        return best
    default = [stream for stream in streams if stream.disposition & Disposition.default]
    return (default or streams)[0]


def decode_frames(path: Path, stream: int, threads: int = 1) -> Iterator[VideoFrame]:
    """Decode a stream from its start. Raises what FFmpeg raises; what it conceals is marked in the frame.

    Several threads give the same frames as one for streams without errors. With an error they do not: what is concealed
    depends on which thread is ahead, so they raise for what one thread would conceal, and may miss frames at the end.
    """
    with open_container(path) as container:
        video = container.streams[stream]
        context = video.codec_context
        # FFV1 only logs damage, and a log can be captured in the thread that decodes alone.
        logs_damage = context.name == "ffv1"
        context.thread_count = 1 if logs_damage else threads
        if threads > 1 and not logs_damage:
            # What threads conceal differs from run to run, so every error is raised.
            context.thread_type = "AUTO"
            context.options = {"err_detect": "explode"}
        frames = container.decode(video)
        if logs_damage:
            frames = _raise_logged_errors(frames)
        yield from frames


def _raise_logged_errors(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    """Yield frames until the decoder logs an error; then raise RuntimeError.

    FFV1's decoder reports a damaged slice in its log alone, and shows whatever its memory held in that place.
    """
    level = av.logging.get_level()
    while True:
        av.logging.set_level(av.logging.ERROR)
        try:
            # The capture sees the messages of this thread, in which the decoder runs.
            with av.logging.Capture() as messages:
                frame = next(frames, None)
        finally:
            av.logging.set_level(level)
        for severity, _, text in messages:
            if severity <= av.logging.ERROR:
                raise RuntimeError(text.strip())
        if frame is None:
            return
        yield frame


def upright_pixels(frame: VideoFrame) -> np.ndarray:
    """Return uint8 [H, W, 3] RGB: turned and mirrored as the display matrix says, transparent pixels on white."""
    pixels = _rgb_pixels(frame)
    matrix = display_matrix(frame)
    if matrix is None:
        return pixels
    # The matrix has three rows of three numbers (a b u, c d v, x y w); a, b, c and d turn and mirror.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]
    quarter_turn = abs(int(b)) + abs(int(c)) > abs(int(a)) + abs(int(d))
    if quarter_turn:  # rows become columns
        pixels = pixels.transpose(1, 0, 2)
        a, d = c, b
    row_step = -1 if d < 0 else 1
    column_step = -1 if a < 0 else 1
    return pixels[::row_step, ::column_step]


def _rgb_pixels(frame: VideoFrame) -> np.ndarray:
    if any(component.is_alpha for component in frame.format.components):
        picture = Image.fromarray(frame.to_ndarray(format="rgba"))
        return composite_on_white(picture)
    return frame.to_ndarray(format="rgb24")


def display_matrix(frame: VideoFrame) -> bytes | None:
    """Return how a player turns and mirrors a frame, as FFmpeg's nine 32-bit numbers; None: it is shown as it is."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else bytes(matrix)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its name if it has none."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


@cache
def _allowed_formats() -> str:
    """Return the names of the formats that may be opened, as FFmpeg's option takes them."""
    names = []
    for name in sorted(av.formats_available):
        try:
            form = av.ContainerFormat(name, "r")
        except ValueError:  # it can only be written
            continue
        # FFmpeg's formats for one still image each have names such as png_pipe.
        pictures = form.name.endswith("_pipe")
        if not (form.no_file or pictures or form.name in REFERENCES or form.name in NO_VIDEOS):
            names.append(name)
    return ",".join(names)
