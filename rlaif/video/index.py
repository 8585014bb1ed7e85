"""Read a video file's packets once: how many frames it has, their rate and size, and where decoding may start.

If the packets prove that (rlaif/video/packets.py), nothing is decoded but the first frame or two. Otherwise all frames
are decoded once and counted: packets are no frames (fields, hidden frames, frames whose references were cut away), and
timestamps may be missing or wrong.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rlaif.video import container as containers
from rlaif.video.container import (
    DAMAGED,
    decode_frames,
    display_matrix,
    first_line,
    open_container,
    upright_pixels,
    video_stream,
)
from rlaif.video.packets import PacketTable, Start
from rlaif.video.whole import require_whole

SMALL = 2**20
"""Pixels of a video that decodes from start to end in a few milliseconds: nothing is worth proving there."""
RAW = ("h264", "hevc", "m4v", "mpegvideo", "vc1", "obu")
"""Formats of a bare stream."""
RATES_DIFFER = 0.05
"""Share by which the rate that a file states may differ from that of its timestamps."""


@dataclass(frozen=True)
class Index:
    """What one pass through a file shows."""

    stream: int
    """Number of the stream that is used."""
    frames: int
    """Frames that a decode returns: those that an edit list hides, or that need frames cut away, don't count."""
    fps: float
    height: int
    """Height of an upright frame in pixels."""
    width: int
    """Width of an upright frame in pixels."""
    starts: tuple[Start, ...] = ()
    """Places to start decoding at; empty if nothing proves one."""
    damage: str = ""
    """Why the file does not decode to its last frame, if that is known."""
    sound: bool = False
    """Whether decoding it on several threads showed no error and a frame for each packet: then threads may decode it."""


def read_index(path: Path) -> Index:
    """Read the packets once; decode all frames unless the packets prove how many there are. Raises one of DAMAGED."""
    with open_container(path) as container:
        stream = video_stream(container)
        require_whole(path, container.format.name)
        table = PacketTable(stream)
        for packet in container.demux(stream):
            # PyAV ends with an empty packet, which flushes decoders.
            if packet.size:
                table.add(packet)
        table.check()
        fps = _rate(stream, table)
        starts = table.starts(stream.codec_context.reorder_depth)
        number = stream.index
        pixels = table.packets * stream.codec_context.width * stream.codec_context.height
    if starts and pixels > SMALL:
        height, width = _proven_size(path, number)
        return Index(number, table.packets, fps, height, width, starts)
    expected = table.packets - table.hidden
    # Threads are faster but differ from one thread if there is any error; then one thread counts again.
    if containers.THREADS > 1 and pixels > SMALL:
        index = _count_on_threads(path, number, fps, expected)
        if index:
            return index
    return _count_in_order(path, number, fps, expected)


def _proven_size(path: Path, stream: int) -> tuple[int, int]:
    """Return height and width of the first frame, upright; the second must be turned in the same way."""
    first, *second = itertools.islice(decode_frames(path, stream), 2)
    for frame in second:
        _require_same_orientation(first, frame, 1)
    return upright_pixels(first).shape[:2]


def _rate(stream: VideoStream, table: PacketTable) -> float:
    """Return frames per second: what the file states, unless its timestamps say something else.

    Matroska states the duration of one frame, which says nothing about a file with pauses. A raw stream has no
    timestamps; there the decoder knows what the stream's own header states.
    """
    container = stream.container.format.name
    if container in RAW and stream.codec_context.framerate:
        return float(stream.codec_context.framerate)
    stated = float(stream.average_rate or stream.guessed_rate or 0)
    measured = table.rate()
    if not stated or not measured:
        return stated or measured
    if container.startswith("matroska") and abs(measured / stated - 1) > RATES_DIFFER:
        return measured
    return stated


def _require_same_orientation(first: VideoFrame, other: VideoFrame, number: int) -> None:
    """Raise RuntimeError if two frames are turned in different ways: FFmpeg turns only frames that carry the message."""
    if display_matrix(first) != display_matrix(other):
        raise RuntimeError(f"the display orientation changes at frame {number}")


def _count_on_threads(path: Path, stream: int, fps: float, expected: int) -> Index | None:
    """Count frames on several threads. Returns None unless all `expected` ones decode without any error."""
    first: VideoFrame | None = None
    shape: tuple[int, ...] = ()
    count = 0
    try:
        for frame in decode_frames(path, stream, containers.THREADS):
            if first is None:
                first = frame
                shape = upright_pixels(frame).shape
            _require_same_orientation(first, frame, count)
            count += 1
            if frame.is_corrupt or count > expected:
                return None
    except DAMAGED:
        return None
    if count != expected:
        return None
    height, width = shape[:2]
    return Index(stream, count, fps, height, width, sound=True)


def _count_in_order(path: Path, stream: int, fps: float, expected: int) -> Index:
    """Count frames by decoding all of them. expected: how many there would be if each packet held one."""
    first: VideoFrame | None = None
    turned: VideoFrame | None = None
    turned_at = 0
    shape: tuple[int, ...] = ()
    count = 0
    damage = ""
    try:
        for frame in decode_frames(path, stream):
            if first is None:
                first = frame
                shape = upright_pixels(frame).shape
            if turned is None and display_matrix(frame) != display_matrix(first):
                turned = frame
                turned_at = count
            count += 1
    except DAMAGED as error:
        if not shape:
            raise
        damage = first_line(error)
        # The frames behind the damage count too, so that asking for them is an error and no shorter video.
        count = max(expected, count + 1)
    if not shape:
        raise RuntimeError("no frames")
    # Only now: a file that does not decode at its start is an error of its own.
    if turned:
        _require_same_orientation(first, turned, turned_at)
    height, width = shape[:2]
    return Index(stream, count, fps, height, width, (), damage)
