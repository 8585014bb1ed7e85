"""Peak memory of a run on this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

import psutil


class MemoryWatch:
    """Samples, in a thread, the memory of process trees; memory that several of them share is counted once.

    By default the tree of this process. A private local Ray cluster is part of it (raylet, object store and workers
    are descendants of the driver); on a cluster that was there before, pass the raylet's process id too, and note that
    only this machine is seen.
    """

    def __init__(self, roots: Iterable[int] | None = None, interval_s: float = 1.0):
        self.roots = [os.getpid()] if roots is None else list(roots)
        self.interval_s = interval_s
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)

    @property
    def peak_gib(self) -> float:
        return self.peak_bytes / 2**30

    def sample(self) -> int:
        """Bytes right now; also raises the peak."""
        now = sum(_footprint(process) for process in self._processes())
        self.peak_bytes = max(self.peak_bytes, now)
        return now

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.sample()
            self._stop.wait(self.interval_s)

    def _processes(self) -> set[psutil.Process]:
        found: set[psutil.Process] = set()
        for pid in self.roots:
            try:
                root = psutil.Process(pid)
                found |= {root, *root.children(recursive=True)}
            except psutil.NoSuchProcess:
                continue  # processes come and go while they are counted
        return found


def _footprint(process: psutil.Process) -> int:
    """Bytes: the proportional set size on Linux, elsewhere the unique set size, else the resident set size."""
    try:
        full = process.memory_full_info()
        return getattr(full, "pss", full.uss)
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied:
        return _resident(process)


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
