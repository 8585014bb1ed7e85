"""Temporary folders that do not pile up when their processes are killed, as Ray's actors are."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from pathlib import Path


class Scratch:
    """A new folder in the system's temporary one, for as long as this object lives.

    A killed process leaves its folder behind; the next `Scratch` of that prefix on the node removes it. What tells it from
    a folder in use is a lock that the kernel drops with its process.
    """

    def __init__(self, prefix: str):
        root = Path(tempfile.gettempdir())
        for lock in root.glob(f"{prefix}*.lock"):
            _remove_abandoned(lock)
        self._file = tempfile.NamedTemporaryFile(prefix=prefix, suffix=".lock", dir=root)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.path = _folder_of(Path(self._file.name))
        self.path.mkdir(mode=0o700)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._file.close()

    def __del__(self) -> None:
        self.close()


def _folder_of(lock: Path) -> Path:
    return lock.with_suffix("")


def _remove_abandoned(lock: Path) -> None:
    try:
        with open(lock, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(_folder_of(lock), ignore_errors=True)
            lock.unlink(missing_ok=True)
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return  # in use, gone meanwhile, or another user's
