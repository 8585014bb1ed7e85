"""A child of rlaif/video/workers.py: `python -m rlaif.video.worker SOCKET TIMEOUT_S [KNOWN]`."""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import sys
from dataclasses import asdict

from rlaif.errors import DataError
from rlaif.video.decode import decode, probe_video
from rlaif.video.known import KnownVideos
from rlaif.video.spec import FrameSpec

LINE = 2**20
"""Bytes of a request that are received at a time."""


def serve_requests(descriptor: int, timeout_s: float, known: str | None = None) -> None:
    """Answer requests until the parent closes its end.

    descriptor: of the socket that the parent opened. timeout_s: seconds for each request. known: folder of what was
    learned about videos.
    """
    videos = KnownVideos(known)
    with socket.socket(fileno=descriptor) as connection:
        while True:
            request = _receive(connection)
            if request is None:
                return
            # By default the signal of the alarm ends the process, also inside a library's loop.
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            answer = _answer(*request, videos)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.sendall(json.dumps(answer).encode() + b"\n")


def _receive(connection: socket.socket) -> tuple[dict, int | None] | None:
    """Return a request and the descriptor of its shared memory, if it has one; None when the parent closed its end."""
    # A request may come in parts; the descriptor comes with one of them.
    line = b""
    memory = None
    while not line.endswith(b"\n"):
        part, descriptors, _, _ = socket.recv_fds(connection, LINE, 1)
        if not part:
            return None
        line += part
        if descriptors:
            memory = descriptors[0]
    return json.loads(line), memory


def _answer(request: dict, memory: int | None, known: KnownVideos) -> dict:
    path = request["path"]
    try:
        if memory is None:
            info = probe_video(path, known)
            return {"result": asdict(info)}
        spec = FrameSpec.from_json(request["spec"])
        frames = decode(path, spec, known)
        with mmap.mmap(memory, frames.nbytes) as target:
            target.write(frames.data)
        return {"result": {}}
    except DataError as error:
        return {"error": [error.expected, error.found, error.fix]}
    except Exception as error:  # the parent has no other way to see it; a fault of ours must not look like a hang
        problem = f"{type(error).__name__}: {error}"
        return {"error": [f"a readable video at {path}", problem, "Report this video, or remove it."]}
    finally:
        if memory is not None:
            os.close(memory)


if __name__ == "__main__":
    serve_requests(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
