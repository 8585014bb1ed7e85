"""Find the frames of a video file by their numbers. FFmpeg (PyAV) decodes, on one thread unless the file is sound.

Frame i is the i-th frame that comes out when the file is decoded from its start. If the file's index proves points to
start decoding at, and that saves enough, decoding jumps there; each frame that comes out after a jump is checked by
its timestamp, and on any doubt the file is decoded in order, as all other files are.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rlaif.video import container as containers
from rlaif.video.container import DAMAGED, decode_frames, open_container, upright_pixels
from rlaif.video.index import Index
from rlaif.video.packets import Start

# PyAV decodes, not decord: decord's seeking returns wrong frames without an error for open groups of pictures, MPEG-4
# with B-frames, streams without a second IDR picture, negative timestamps and clips cut from transport streams.

WORTH = 0.7
"""Jump if that decodes less than this share of the frames up to the last one."""


class JumpError(Exception):
    """A jump did not show what the index promised."""


@dataclass(frozen=True)
class _Jump:
    """A point to start decoding at, and the frames that are read from there on."""

    start: Start
    numbers: list[int]

    @property
    def effort(self) -> int:
        """Number of frames that it decodes."""
        return self.numbers[-1] + 1 - self.start.frame


def read_frames(path: Path, numbers: Sequence[int], index: Index) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, uint8 [H, W, 3]) for each of `numbers` (ascending, different), upright.

    A frame that is yielded again replaces the earlier one: then a jump or a thread was in doubt. Raises one of DAMAGED.
    """
    jumps = _plan_jumps(index.starts, numbers)
    effort = sum(jump.effort for jump in jumps)
    if jumps and effort < WORTH * (numbers[-1] + 1):
        try:
            yield from _read_with_jumps(path, index.stream, jumps)
            return
        except (JumpError, *DAMAGED):
            pass  # the decode in order says what there is
    if index.sound and containers.THREADS > 1:
        try:
            yield from _read_in_order(path, index.stream, numbers, containers.THREADS)
            return
        except DAMAGED:
            pass  # one thread says what there is
    yield from _read_in_order(path, index.stream, numbers, 1)


def _read_in_order(path: Path, stream: int, numbers: Sequence[int], threads: int) -> Iterator[tuple[int, np.ndarray]]:
    targets = set(numbers)
    last = numbers[-1]
    for number, frame in enumerate(decode_frames(path, stream, threads)):
        if number in targets:
            if frame.is_corrupt:
                raise RuntimeError(f"frame {number} is damaged")
            yield number, upright_pixels(frame)
        if number == last:
            return
    raise RuntimeError(f"no frame {last}")


def _plan_jumps(starts: Sequence[Start], numbers: Sequence[int]) -> list[_Jump]:
    """Return the jumps that lead to all frames; none if there is nowhere to jump to."""
    jumps: list[_Jump] = []
    if not starts:
        return jumps
    places = [start.frame for start in starts]
    for number in numbers:
        nearest = bisect_right(places, number) - 1
        start = starts[nearest]
        # A start that is decoded next anyway needs no jump.
        if jumps and start.frame <= jumps[-1].numbers[-1] + 1:
            jumps[-1].numbers.append(number)
        else:
            jumps.append(_Jump(start, [number]))
    return jumps


def _read_with_jumps(path: Path, stream: int, jumps: list[_Jump]) -> Iterator[tuple[int, np.ndarray]]:
    with open_container(path) as container:
        video = container.streams[stream]
        video.codec_context.thread_count = 1
        # Without this, damage in a picture is concealed with earlier pictures, which a jump has not decoded.
        video.codec_context.options = {"err_detect": "explode"}
        for jump in jumps:
            yield from _read_from(container, video, jump)


def _read_from(container: InputContainer, stream: VideoStream, jump: _Jump) -> Iterator[tuple[int, np.ndarray]]:
    targets = set(jump.numbers)
    last = jump.numbers[-1]
    for number, frame in enumerate(_decode_from(container, stream, jump.start), jump.start.frame):
        if number in targets:
            yield number, upright_pixels(frame)
        if number == last:
            return
    raise JumpError(f"no frame {last}")


def _decode_from(container: InputContainer, stream: VideoStream, start: Start) -> Iterator[VideoFrame]:
    """Yield the frames from `start` on. Each must be the earliest of those that were handed to the decoder before it."""
    # Timestamps of the packets whose frames have not come out yet.
    due: list[int] = []
    for packet in _packets_from(container, stream, start):
        # The last packet is empty: it makes the decoder return what it still holds.
        if packet.size:
            heapq.heappush(due, packet.pts)
        for frame in packet.decode():
            if frame.is_corrupt or not due or frame.pts != heapq.heappop(due):
                raise JumpError("another frame")
            yield frame


def _packets_from(container: InputContainer, stream: VideoStream, start: Start) -> Iterator[Packet]:
    """Yield the packets from `start` on. Raises JumpError if the first of them is not there."""
    # MP4 and Matroska seek by presentation times and may stop earlier; packets before the start are skipped.
    container.seek(start.pts, stream=stream, backward=True)
    packets = container.demux(stream)
    for packet in packets:
        if (packet.pts, packet.pos, packet.size) == (start.pts, start.pos, start.size):
            yield packet
            break
        if packet.pos is None or packet.pos >= start.pos:
            raise JumpError("another packet")
    yield from packets
