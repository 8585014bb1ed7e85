"""How much of a file has been read, shown once reading takes long."""

from __future__ import annotations

import time

from rlaif.io.progress import Progress

QUIET_S = 2.0
"""Seconds after which progress is shown: most files are read within them, and a bar would only flash."""


class Meter:
    """Counts bytes (or rows) of one file. A context; nothing is shown of a file that is read within `QUIET_S`."""

    def __init__(self, name: str):
        self._name = name
        self._progress: Progress | None = None
        self._start = 0.0

    def __enter__(self) -> Meter:
        self._start = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.close()

    def to(self, done: int, total: int) -> None:
        """Set what has been read so far."""
        if self._progress is not None:
            self._progress.to(done * 100 // max(1, total))
        elif time.monotonic() - self._start > QUIET_S:
            self._progress = Progress(100, f"reading {self._name}, per cent")
