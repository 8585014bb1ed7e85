"""Probe and decode in child processes, so that a decoder that crashes or never returns is ended and its video named.

A thread inside FFmpeg, Pillow or a file system that hangs cannot be ended; a process can. Children start when they
are first needed and stay. Each arms the kernel's alarm before a request, which ends it even inside a library's loop and
when its parent is gone. Requests and answers are lines of JSON over a socket; frames come back in shared memory
that the parent hands along with its request, so they are not copied.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import Empty, LifoQueue

import numpy as np

import rlaif
from rlaif.errors import DataError
from rlaif.video.decode import VideoInfo
from rlaif.video.spec import FrameSpec

GRACE_S = 10.0
"""Seconds for an alarm to end a child. Later it cannot: the child hangs in the kernel, on a file system that is gone."""
END_S = 1.0
"""Seconds for a child to end after its socket is closed, and again after it is killed."""
_PACKAGES = str(Path(rlaif.__file__).parents[1])


class Decoders:
    """Up to `count` children. `probe` and `decode` are those of rlaif/video/decode.py; any number of threads may call.

    Raises DataError that names the video if it takes longer than `timeout_s`, or ends its child.
    """

    def __init__(self, count: int, timeout_s: float, known: str | None = None):
        self._timeout_s = timeout_s
        self._known = known
        self._slots = threading.BoundedSemaphore(count)
        self._idle: LifoQueue[_Child] = LifoQueue()

    def probe(self, path: str | Path) -> VideoInfo:
        """Return what is known about a video, as `probe_video` does."""
        facts = self._ask(path, {"path": str(path)})
        return VideoInfo(**facts)

    def decode(self, path: str | Path, spec: FrameSpec) -> np.ndarray:
        """Return the frames that `spec` names: uint8 [T, H, W, 3] RGB, contiguous, read-only."""
        shape = (len(spec.indices), spec.height, spec.width, 3)
        # An anonymous file: it is gone as soon as neither process uses it, also if one crashes.
        memory = os.memfd_create("frames")
        try:
            os.ftruncate(memory, int(np.prod(shape)))
            self._ask(path, {"path": str(path), "spec": spec.to_json()}, memory)
            pixels = mmap.mmap(memory, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(memory)
        return np.frombuffer(pixels, np.uint8).reshape(shape)

    def close(self) -> None:
        """End the idle children; those at work end when their answer finds no reader."""
        with suppress(Empty):
            while True:
                self._idle.get_nowait().end()

    def _ask(self, path: str | Path, request: dict, memory: int | None = None) -> dict:
        with self._slots:
            try:
                child = self._idle.get_nowait()
            except Empty:
                child = _Child(self._timeout_s, self._known)
            try:
                answer = child.ask(request, memory, self._timeout_s + GRACE_S)
            except (OSError, EOFError):
                code = child.end()
                raise self._end_error(path, code) from None
            except BaseException:
                # The child may still answer this request: it must not be used for another one.
                child.end()
                raise
            self._idle.put(child)
        if "error" in answer:
            raise DataError(*answer["error"])
        return answer["result"]

    def _end_error(self, path: str | Path, code: int | None) -> DataError:
        """Return the error that says how a child ended. code: its exit code; None if it had to be killed."""
        if code in (None, -signal.SIGALRM):
            return DataError(
                f"a video that decodes within {self._timeout_s:g} s at {path}",
                "no result by then; its decoder was ended",
                "Remove or re-encode this video, or raise `video.decode_timeout_s`.",
            )
        return DataError(
            f"a readable video at {path}",
            f"its decoder ended with code {code}",
            "Remove or re-encode this video.",
        )


class _Child:
    """A process that runs rlaif/video/worker.py."""

    def __init__(self, timeout_s: float, known: str | None):
        self._socket, child_socket = socket.socketpair()
        arguments = [str(child_socket.fileno()), str(timeout_s)]
        if known:
            arguments.append(known)
        # The child imports this very package, also if it is not installed.
        packages = [_PACKAGES]
        if os.environ.get("PYTHONPATH"):
            packages.append(os.environ["PYTHONPATH"])
        with child_socket:
            self._process = subprocess.Popen(
                # -P: a file in the current folder must not shadow a module.
                [sys.executable, "-P", "-m", "rlaif.video.worker", *arguments],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(packages)},
                pass_fds=[child_socket.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt from the terminal is the parent's to handle
            )
        self._answers = self._socket.makefile("rb")

    def ask(self, request: dict, memory: int | None, timeout_s: float) -> dict:
        """Send a request and return the answer.

        Raises EOFError if the child ended, and TimeoutError if it does neither end nor answer.
        """
        self._socket.settimeout(timeout_s)
        line = json.dumps(request).encode() + b"\n"
        descriptors = [] if memory is None else [memory]
        # The descriptor travels with the first bytes; a long line may need further ones.
        count = socket.send_fds(self._socket, [line], descriptors)
        self._socket.sendall(line[count:])
        answer = self._answers.readline()
        if not answer.endswith(b"\n"):
            raise EOFError
        return json.loads(answer)

    def end(self) -> int | None:
        """Close the socket, which ends the child, and return its exit code; None if it had to be killed."""
        self._answers.close()
        self._socket.close()
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        return None
