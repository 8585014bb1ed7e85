"""How much of a file has been read, shown once reading takes long."""

from __future__ import annotations

import time

from rlaif.io.progress import Progress

QUIET_S = 2.0
"""Seconds after which progress is shown."""


class Meter:
    """Counts bytes (or rows) of one file. A context; nothing is shown of a file that is read within `QUIET_S`."""

    def __init__(self, name: str):
        self._name, self._progress = name, None
        self._began: float | None = None

    def __enter__(self) -> Meter:
        self._began = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.close()

    def to(self, done: int, total: int) -> None:
        """Set what has been read so far."""
        if self._progress is not None:
            self._progress.to(done * 100 // max(1, total))
        elif time.monotonic() - self._began > QUIET_S:
            self._progress = Progress(100, f"reading {self._name}, per cent")
