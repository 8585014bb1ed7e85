"""Read a video file's packets once: how many frames it has, their rate and size, and where decoding may start.

Where that can be proven from the packets (rlaif/video/h264.py) nothing is decoded but the first frame. Otherwise all
frames are decoded once and counted: packets are no frames (fields, hidden frames, frames whose references were cut
away), and timestamps may be missing or wrong.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rlaif.video import container as containers
from rlaif.video.container import DAMAGED, decoded, display_matrix, first_line, opened, upright, video_stream
from rlaif.video.h264 import Picture, Pictures, Unproven
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
    """Of an upright frame, in pixels; so is `width`."""
    width: int
    starts: tuple[Start, ...] = ()
    """Where decoding may start; empty if nothing proves where."""
    damage: str = ""
    """Why the file does not decode to its last frame, if that is known."""
    sound: bool = False
    """Whether decoding it on several threads showed no error and a frame for each packet: then threads may decode it."""


def read_index(path: Path) -> Index:
    """Read the packets once; decode all frames unless the packets prove how many there are. Raises one of DAMAGED."""
    with opened(path) as container:
        stream = video_stream(container)
        require_whole(path, container.format.name)
        table = _Table(stream)
        for packet in container.demux(stream):
            if packet.size:
                table.add(packet)
        table.check()
        fps = _rate(stream, table)
        starts = table.starts(stream.codec_context.reorder_depth)
        number = stream.index
        pixels = table.packets * stream.codec_context.width * stream.codec_context.height
    if not starts or pixels <= SMALL:
        shown = table.packets - table.hidden
        several = containers.THREADS > 1 and pixels > SMALL
        return (several and _sound(path, number, fps, shown)) or _counted(path, number, fps, shown)
    first, *second = itertools.islice(decoded(path, number), 2)
    for frame in second:
        _require_same_orientation(first, frame, 1)
    return Index(number, table.packets, fps, *upright(first).shape[:2], starts)


def _rate(stream: VideoStream, table: _Table) -> float:
    """Return frames per second: what the file states, unless its timestamps say something else.

    Matroska states the duration of one frame, which says nothing about a file with pauses. A raw stream has no
    timestamps; there the decoder knows what the stream's own header states.
    """
    container, stated = stream.container.format.name, float(stream.average_rate or stream.guessed_rate or 0)
    if container in RAW and stream.codec_context.framerate:
        return float(stream.codec_context.framerate)
    measured = table.rate()
    if container.startswith("matroska") and measured and abs(measured / (stated or measured) - 1) > RATES_DIFFER:
        return measured
    return stated or measured


def _require_same_orientation(first: VideoFrame, other: VideoFrame, number: int) -> None:
    """Raise RuntimeError if two frames are turned in different ways: FFmpeg turns only frames that carry the message."""
    if display_matrix(first) != display_matrix(other):
        raise RuntimeError(f"the display orientation changes at frame {number}")


def _sound(path: Path, stream: int, fps: float, expected: int) -> Index | None:
    """Count frames on several threads. Returns None unless all `expected` ones decode without any error."""
    shape, count, first = (), 0, None
    try:
        for frame in decoded(path, stream, containers.THREADS):
            first = first or frame
            _require_same_orientation(first, frame, count)
            shape = shape or upright(frame).shape
            count += 1
            if frame.is_corrupt or count > expected:
                return None
    except DAMAGED:
        return None
    return Index(stream, count, fps, *shape[:2], sound=True) if count == expected else None


def _counted(path: Path, stream: int, fps: float, expected: int) -> Index:
    """Count frames by decoding all of them. expected: how many there would be if each packet held one."""
    shape, count, damage, first, turned = (), 0, "", None, None
    try:
        for frame in decoded(path, stream):
            first = first or frame
            if turned is None and display_matrix(frame) != display_matrix(first):
                turned = frame, count
            shape = shape or upright(frame).shape
            count += 1
    except DAMAGED as error:
        if not shape:
            raise
        # the frames behind the damage count too, so that asking for them is an error and no shorter video
        damage, count = first_line(error), max(expected, count + 1)
    if not shape:
        raise RuntimeError("no frames")
    if turned:
        _require_same_orientation(first, *turned)
    return Index(stream, count, fps, *shape[:2], (), damage)


@dataclass
class _Table:
    """The packets of a stream, and the proof that they are its frames as long as there is one."""

    stream: VideoStream
    packets: int = 0
    hidden: int = 0
    cut: int | None = None
    _pictures: Pictures | None = None
    _filter: av.bitstream.BitStreamFilterContext | None = None
    _periods: list[list[tuple[int, int]]] = field(default_factory=list)
    """(order, pts) of the pictures since each IDR picture."""
    _starts: list[tuple[int, int, int]] = field(default_factory=list)
    _times: list[int] = field(default_factory=list)
    _place: int = -1
    """Of the last packet in the file."""

    def __post_init__(self) -> None:
        context = self.stream.codec_context
        if context.name == "h264" and context.extradata:
            try:
                self._pictures = Pictures(context.extradata)
                # reads every header to its end, which the decoder would refuse a damaged one for
                self._filter = av.bitstream.BitStreamFilterContext("h264_metadata", self.stream)
            except (Unproven, *DAMAGED):
                self._pictures = None

    def add(self, packet: Packet) -> None:
        # a transport stream marks what follows a gap in its counters too; its decoder says what that costs
        if packet.is_corrupt and self.cut is None and self.stream.container.format.name != "mpegts":
            self.cut = self.packets
        self.packets += 1
        self.hidden += packet.is_discard
        if packet.pts is not None:
            self._times.append(packet.pts)
        if self._pictures:
            try:
                self._prove(packet, self._pictures)
            except (Unproven, *DAMAGED):
                self._pictures = None

    def check(self) -> None:
        """Raises RuntimeError if the file ends too early or shows nothing."""
        if self.cut is not None:
            raise RuntimeError(f"cut off in frame {self.cut}")
        if self.hidden == self.packets:
            raise RuntimeError("no frames")

    def rate(self) -> float:
        """Return the mean frame rate by the timestamps, for files that state none; 0 without timestamps."""
        if len(self._times) < 2 or not self.stream.time_base:
            return 0.0
        span = float((max(self._times) - min(self._times)) * self.stream.time_base)
        return (len(self._times) - 1) / span if span > 0 else 0.0

    def starts(self, depth: int) -> tuple[Start, ...]:
        """Return where decoding may start, the first frame included; empty without a proof.

        depth: of the decoder's reordering. A decoder drops pictures that it learns of too late, so this has to
        suffice from the first picture on.
        """
        if not self._pictures or any(_depth(period) > depth for period in self._periods):
            return ()
        starts, frame, last = [], 0, None
        for start, period in zip(self._starts, self._periods, strict=True):
            shown = [pts for _, pts in sorted(period)]
            rising = all(early < late for early, late in zip(shown, shown[1:], strict=False))
            orders = {order for order, _ in period}
            if (
                not rising
                or len(orders) < len(period)
                or shown[0] != start[0]
                or (last is not None and start[0] <= last)
            ):
                return ()
            if not starts or frame - starts[-1].frame >= APART:
                starts.append(Start(frame, *start))
            frame, last = frame + len(period), shown[-1]
        return tuple(starts)

    def _prove(self, packet: Packet, pictures: Pictures) -> None:
        if packet.pts is None or packet.pos is None or packet.pos <= self._place or packet.is_discard:
            raise Unproven("no timestamps, or packets out of order")
        self._place = packet.pos
        if packet.has_sidedata("new_extradata"):
            raise Unproven("parameter sets change")
        picture: Picture = pictures.next(memoryview(packet))
        if picture.idr:
            self._periods.append([])
            self._starts.append((packet.pts, packet.pos, packet.size))
        self._periods[-1].append((picture.order, packet.pts))
        self._filter.filter(packet)


def _depth(period: Sequence[tuple[int, int]]) -> int:
    """Return the most pictures that precede another in decoding order and follow it when shown."""
    orders, depth = [], 0
    for order, _ in period:
        depth = max(depth, len(orders) - bisect_right(orders, order))
        insort(orders, order)
    return depth
