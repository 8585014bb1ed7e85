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
"""An alarm that has not ended a child by then cannot: it hangs in the kernel, on a file system that is gone."""
_PACKAGES = str(Path(rlaif.__file__).parents[1])


class Decoders:
    """Up to `count` children. `probe` and `decode` are those of rlaif/video/decode.py; any number of threads may call.

    Raises DataError that names the video if it takes longer than `timeout_s`, or ends its child.
    """

    def __init__(self, count: int, timeout_s: float, known: str | None = None):
        self._timeout_s, self._known = timeout_s, known
        self._slots = threading.BoundedSemaphore(count)
        self._idle: LifoQueue[_Child] = LifoQueue()

    def probe(self, path: str | Path) -> VideoInfo:
        return VideoInfo(**self._ask(path, {"path": str(path)}))

    def decode(self, path: str | Path, spec: FrameSpec) -> np.ndarray:
        shape = (len(spec.indices), spec.height, spec.width, 3)
        memory = os.memfd_create("frames")
        try:
            os.ftruncate(memory, int(np.prod(shape)))
            self._ask(path, {"path": str(path), "spec": spec.to_json()}, memory)
            frames = np.frombuffer(mmap.mmap(memory, 0, access=mmap.ACCESS_READ), np.uint8).reshape(shape)
        finally:
            os.close(memory)
        return frames

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
                raise self._ended(path, child.end()) from None
            except BaseException:
                child.end()
                raise
            self._idle.put(child)
        if "error" in answer:
            raise DataError(*answer["error"])
        return answer["result"]

    def _ended(self, path: str | Path, code: int | None) -> DataError:
        if code in (None, -signal.SIGALRM):
            return DataError(
                f"a video that decodes within {self._timeout_s:g} s at {path}",
                "no result by then; its decoder was ended",
                "Remove or re-encode this video, or raise video.decode_timeout_s.",
            )
        return DataError(
            f"a readable video at {path}",
            f"its decoder ended with code {code}",
            "Remove or re-encode this video.",
        )


class _Child:
    def __init__(self, timeout_s: float, known: str | None):
        self._socket, theirs = socket.socketpair()
        paths = [_PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])]
        arguments = [str(theirs.fileno()), str(timeout_s), *filter(None, [known])]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rlaif.video.worker", *arguments],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt from the terminal is the parent's to handle
            )
        self._answers = self._socket.makefile("rb")

    def ask(self, request: dict, memory: int | None, timeout_s: float) -> dict:
        """Raises EOFError if the child ended, and TimeoutError if it does neither end nor answer."""
        self._socket.settimeout(timeout_s)
        line = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(self._socket, [line], [] if memory is None else [memory])
        self._socket.sendall(line[sent:])
        answer = self._answers.readline()
        if not answer.endswith(b"\n"):
            raise EOFError
        return json.loads(answer)

    def end(self) -> int | None:
        """Return the exit code; None if the child could not be ended."""
        self._answers.close()
        self._socket.close()
        try:
            return self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            pass
        return None
