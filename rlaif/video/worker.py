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
from rlaif.video.decode import decode, probe
from rlaif.video.known import KnownVideos
from rlaif.video.spec import FrameSpec

LINE = 2**20


def main(descriptor: int, timeout_s: float, known: str | None = None) -> None:
    """Answer requests until the parent closes its end."""
    videos = KnownVideos(known)
    with socket.socket(fileno=descriptor) as connection:
        while request := _receive(connection):
            signal.setitimer(signal.ITIMER_REAL, timeout_s)  # by default its signal ends the process
            answer = _answer(*request, videos)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.sendall(json.dumps(answer).encode() + b"\n")


def _receive(connection: socket.socket) -> tuple[dict, int | None] | None:
    line, memory = b"", None
    while not line.endswith(b"\n"):
        part, descriptors, _, _ = socket.recv_fds(connection, LINE, 1)
        if not part:
            return None
        line += part
        memory = descriptors[0] if descriptors else memory
    return json.loads(line), memory


def _answer(request: dict, memory: int | None, known: KnownVideos) -> dict:
    path = request["path"]
    try:
        if memory is None:
            return {"result": asdict(probe(path, known))}
        frames = decode(path, FrameSpec.from_json(request["spec"]), known)
        with mmap.mmap(memory, frames.nbytes) as target:
            target.write(frames.data)
        return {"result": {}}
    except DataError as error:
        return {"error": [error.expected, error.found, error.fix]}
    except Exception as error:  # the parent has no other way to see it; a fault of ours must not look like a hang
        found = f"{type(error).__name__}: {error}"
        return {"error": [f"a readable video at {path}", found, "Report this video, or remove it."]}
    finally:
        if memory is not None:
            os.close(memory)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
