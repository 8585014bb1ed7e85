"""Find the frames of a video file by their numbers. FFmpeg (PyAV) decodes, on one thread unless the file is sound.

Frame i is the i-th frame that comes out when the file is decoded from its start. If the file's index knows where
decoding may start, and that saves enough, decoding jumps there; each frame that comes out after a jump is checked by
its timestamp, and on any doubt the file is decoded in order, as all other files are.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from rlaif.video import container as containers
from rlaif.video.container import DAMAGED, decoded, opened, upright
from rlaif.video.index import Index, Start

WORTH = 0.7
"""Jump if that decodes less than this share of the frames up to the last one."""


class Doubt(Exception):
    """A jump did not show what the index promised."""


def frames(path: Path, numbers: Sequence[int], index: Index) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, uint8 [H, W, 3]) for each of `numbers` (ascending, different), upright.

    A frame that is yielded again replaces the earlier one: then a jump or a thread was in doubt. Raises one of DAMAGED.
    """
    jumps = _jumps(index.starts, numbers)
    effort = sum(group[-1] + 1 - start.frame for start, group in jumps)
    if jumps and effort < WORTH * (numbers[-1] + 1):
        try:
            yield from _jumping(path, index.stream, jumps)
            return
        except (Doubt, *DAMAGED):
            pass  # the decode in order says what there is
    if index.sound and containers.THREADS > 1:
        try:
            yield from _in_order(path, index.stream, numbers, containers.THREADS)
            return
        except DAMAGED:
            pass  # one thread says what there is
    yield from _in_order(path, index.stream, numbers, 1)


def _in_order(path: Path, stream: int, numbers: Sequence[int], threads: int) -> Iterator[tuple[int, np.ndarray]]:
    wanted, last = set(numbers), numbers[-1]
    for number, frame in enumerate(decoded(path, stream, threads)):
        if number in wanted:
            if frame.is_corrupt:
                raise RuntimeError(f"frame {number} is damaged")
            yield number, upright(frame)
        if number == last:
            return
    raise RuntimeError(f"no frame {last}")


def _jumps(starts: Sequence[Start], numbers: Sequence[int]) -> list[tuple[Start, list[int]]]:
    """Return where to jump to, and which frames to take from there on."""
    jumps: list[tuple[Start, list[int]]] = []
    places = [start.frame for start in starts]
    for number in numbers if starts else ():
        start = starts[bisect_right(places, number) - 1]
        if jumps and start.frame <= jumps[-1][1][-1] + 1:
            jumps[-1][1].append(number)
        else:
            jumps.append((start, [number]))
    return jumps


def _jumping(path: Path, stream: int, jumps: list[tuple[Start, list[int]]]) -> Iterator[tuple[int, np.ndarray]]:
    with opened(path) as container:
        video = container.streams[stream]
        video.codec_context.thread_count = 1
        # what is wrong in a picture is concealed with earlier ones, which a jump has not decoded
        video.codec_context.options = {"err_detect": "explode"}
        for start, numbers in jumps:
            wanted = set(numbers)
            for number, frame in enumerate(_from(container, video, start), start.frame):
                if number in wanted:
                    yield number, upright(frame)
                if number == numbers[-1]:
                    break
            else:
                raise Doubt(f"no frame {numbers[-1]}")


def _from(container: InputContainer, stream: VideoStream, start: Start) -> Iterator[VideoFrame]:
    """Yield the frames from `start` on. Each must be the earliest of those that were handed to the decoder before it."""
    due: list[int] = []
    for packet in _packets_from(container, stream, start):
        if packet.size:
            heapq.heappush(due, packet.pts)
        for frame in packet.decode():
            if frame.is_corrupt or not due or frame.pts != heapq.heappop(due):
                raise Doubt("another frame")
            yield frame


def _packets_from(container: InputContainer, stream: VideoStream, start: Start) -> Iterator[Packet]:
    # MP4 and Matroska look for presentation times; what comes before the packet is passed over
    container.seek(start.pts, stream=stream, backward=True)
    packets = container.demux(stream)
    for packet in packets:
        if (packet.pts, packet.pos, packet.size) == (start.pts, start.pos, start.size):
            yield packet
            break
        if packet.pos is None or packet.pos >= start.pos:
            raise Doubt("another packet")
    yield from packets
