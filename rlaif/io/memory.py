"""Measurement of a run's peak memory on this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

import psutil


class MemoryWatch:
    """A thread that samples the memory of process trees. Memory that several processes share is counted once.

    By default it samples the tree of this process. A private local Ray cluster is part of that tree (raylet, object store
    and workers are descendants of the driver). With a cluster that was running before, pass the raylet's process id too;
    processes on other machines are not counted.
    """

    def __init__(self, roots: Iterable[int] | None = None, interval_s: float = 1.0):
        self.roots = [os.getpid()] if roots is None else list(roots)
        self.interval_s = interval_s
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)

    @property
    def peak_gib(self) -> float:
        """Return the peak in GiB."""
        return self.peak_bytes / 2**30

    def sample(self) -> int:
        """Return the bytes in use now, and update the peak."""
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
        """Return the processes of all trees."""
        processes: set[psutil.Process] = set()
        for pid in self.roots:
            try:
                root = psutil.Process(pid)
                processes |= {root, *root.children(recursive=True)}
            except psutil.NoSuchProcess:
                continue  # processes end while they are counted
        return processes


def _footprint(process: psutil.Process) -> int:
    """Return bytes: the proportional set size on Linux, elsewhere the unique set size, else the resident set size."""
    try:
        # It reads smaps_rollup, which is slow: twice a second beside 15 processes costs a fifth of a core.
        # Resident sizes would count the object store once for every process that has it mapped.
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
