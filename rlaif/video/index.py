"""Read a video file's packets once: how many frames it has, their rate and size, and where decoding may start.

If the packets prove that (rlaif/video/h264.py), nothing is decoded but the first frame. Otherwise all
frames are decoded once and counted: packets are no frames (fields, hidden frames, frames whose references were cut
away), and timestamps may be missing or wrong.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import av
from av.packet import Packet
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
from rlaif.video.h264 import Pictures, UnprovenError
from rlaif.video.whole import require_whole

SMALL = 2**20
"""Pixels of a video that decodes from start to end in a few milliseconds: nothing is worth proving there."""
RAW = ("h264", "hevc", "m4v", "mpegvideo", "vc1", "obu")
"""Formats of a bare stream."""
RATES_DIFFER = 0.05
"""Share by which the rate that a file states may differ from that of its timestamps."""
APART = 16
"""Frames between two points to jump to: closer ones save less than a jump costs."""


@dataclass(frozen=True)
class Start:
    """An IDR picture: decoding may start at this packet."""

    frame: int
    pts: int
    pos: int
    size: int


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
        table = _Table(stream)
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


def _rate(stream: VideoStream, table: _Table) -> float:
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


class _Shown(NamedTuple):
    """When a picture is shown: first by the headers, then by the container."""

    order: int
    pts: int


class _Packet(NamedTuple):
    """A packet with an IDR picture, as it is recognised after a jump."""

    pts: int
    pos: int
    size: int


@dataclass
class _Table:
    """The packets of a stream, and the proof that they are its frames as long as there is one."""

    stream: VideoStream
    packets: int = 0
    hidden: int = 0
    """Packets whose frames an edit list hides."""
    cut: int | None = None
    """Number of the first packet that the container marks as damaged."""
    _pictures: Pictures | None = None
    """The proof; None as soon as there is none."""
    _filter: av.bitstream.BitStreamFilterContext | None = None
    _periods: list[list[_Shown]] = field(default_factory=list)
    """The pictures from each IDR picture to the next, in decoding order."""
    _starts: list[_Packet] = field(default_factory=list)
    """The first packet of each period."""
    _times: list[int] = field(default_factory=list)
    _place: int = -1
    """Place of the last packet in the file."""

    def __post_init__(self) -> None:
        context = self.stream.codec_context
        if context.name == "h264" and context.extradata:
            try:
                self._pictures = Pictures(context.extradata)
                # The filter reads each header to its end and raises for a damaged one, which the decoder would refuse.
                self._filter = av.bitstream.BitStreamFilterContext("h264_metadata", self.stream)
            except (UnprovenError, *DAMAGED):
                self._pictures = None

    def add(self, packet: Packet) -> None:
        """Add the next packet in decoding order."""
        # A transport stream also marks what follows a gap in its counters; its decoder says what that costs.
        transport_stream = self.stream.container.format.name == "mpegts"
        if packet.is_corrupt and self.cut is None and not transport_stream:
            self.cut = self.packets
        self.packets += 1
        self.hidden += packet.is_discard
        if packet.pts is not None:
            self._times.append(packet.pts)
        if self._pictures:
            try:
                self._prove(packet, self._pictures)
            except (UnprovenError, *DAMAGED):
                self._pictures = None

    def check(self) -> None:
        """Raise RuntimeError if the file ends too early or shows nothing."""
        if self.cut is not None:
            raise RuntimeError(f"cut off in frame {self.cut}")
        if self.hidden == self.packets:
            raise RuntimeError("no frames")

    def rate(self) -> float:
        """Return the mean frame rate by the timestamps, for files that state none; 0 without timestamps."""
        if len(self._times) < 2 or not self.stream.time_base:
            return 0.0
        ticks = max(self._times) - min(self._times)
        span = float(ticks * self.stream.time_base)
        return (len(self._times) - 1) / span if span > 0 else 0.0

    def starts(self, depth: int) -> tuple[Start, ...]:
        """Return the places to start decoding at, the first frame included; empty without a proof.

        depth: that of the decoder's reordering. A decoder drops pictures that it learns of too late, so this has to
        suffice from the first picture on.
        """
        if not self._pictures or any(_depth(period) > depth for period in self._periods):
            return ()
        starts: list[Start] = []
        frame = 0
        last_time = None
        for packet, period in zip(self._starts, self._periods, strict=True):
            times = _display_times(period)
            # The IDR picture is the first of its period that is shown, and the period follows the one before it.
            if not times or times[0] != packet.pts or (last_time is not None and packet.pts <= last_time):
                return ()
            if not starts or frame - starts[-1].frame >= APART:
                starts.append(Start(frame, *packet))
            frame += len(period)
            last_time = times[-1]
        return tuple(starts)

    def _prove(self, packet: Packet, pictures: Pictures) -> None:
        """Add the packet's picture to the proof. Raises UnprovenError, or one of DAMAGED."""
        if packet.pts is None or packet.pos is None or packet.pos <= self._place or packet.is_discard:
            raise UnprovenError("no timestamps, or packets out of order")
        self._place = packet.pos
        if packet.has_sidedata("new_extradata"):
            raise UnprovenError("parameter sets change")
        picture = pictures.next(memoryview(packet))
        if picture.idr:
            self._periods.append([])
            self._starts.append(_Packet(packet.pts, packet.pos, packet.size))
        self._periods[-1].append(_Shown(picture.order, packet.pts))
        self._filter.filter(packet)


def _display_times(period: Sequence[_Shown]) -> list[int]:
    """Return the timestamps of a period's pictures by their order counts; empty if the two contradict each other."""
    times = [picture.pts for picture in sorted(period)]
    rising = all(early < late for early, late in itertools.pairwise(times))
    orders = {picture.order for picture in period}
    return times if rising and len(orders) == len(period) else []


def _depth(period: Sequence[_Shown]) -> int:
    """Return the most pictures that precede another in decoding order and follow it when shown."""
    orders: list[int] = []
    depth = 0
    for picture in period:
        later = len(orders) - bisect_right(orders, picture.order)
        depth = max(depth, later)
        insort(orders, picture.order)
    return depth
