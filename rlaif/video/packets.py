"""The packets of a video stream, and the proof that they are its frames.

Packets are no frames in general. For H.264 the headers may prove that each packet is one frame, in which order the
frames play and at which packets decoding may start (rlaif/video/h264.py). The proof ends at the first doubt.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import av
from av.packet import Packet
from av.video.stream import VideoStream

from rlaif.video.container import DAMAGED
from rlaif.video.h264 import Pictures, UnprovenError

APART = 16
"""Frames between two points to jump to: closer ones save less than a jump costs."""


@dataclass(frozen=True)
class Start:
    """An IDR picture: decoding may start at this packet."""

    frame: int
    """Number of the frame in the video."""
    pts: int
    """Presentation time in units of the stream's time base."""
    pos: int
    """Place in the file in bytes."""
    size: int
    """Size in bytes."""


class _Shown(NamedTuple):
    """When a picture is shown."""

    order: int
    """Picture order count, by the headers."""
    pts: int
    """Presentation time, by the container."""


class _Packet(NamedTuple):
    """A packet with an IDR picture, as it is recognised after a jump."""

    pts: int
    pos: int
    size: int


@dataclass
class PacketTable:
    """The packets of a stream, and the proof that they are its frames as long as there is one."""

    stream: VideoStream
    packets: int = 0
    """Number of packets so far."""
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
        # FFmpeg hands over parameter sets that replace those of the file's header.
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
        # `orders` is sorted: what is behind this picture's place was decoded earlier and is shown later.
        later = len(orders) - bisect_right(orders, picture.order)
        depth = max(depth, later)
        insort(orders, picture.order)
    return depth
