"""Temporary folders that do not pile up when their processes are killed, as Ray's actors are."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Scratch:
    """A new folder, `path`, in the system's temporary one, for as long as this object lives.

    A killed process leaves its folder behind; the next `Scratch` of that prefix on the node removes it. What tells it from
    a folder in use is a lock that the kernel drops with its process.
    """

    def __init__(self, prefix: str):
        root = Path(tempfile.gettempdir())
        sweep(prefix)
        lock, handle = _locked(root, prefix)
        self.path = lock.with_suffix("")
        self.path.mkdir(mode=0o700)
        self.close = weakref.finalize(self, _remove, lock, handle)
        """Remove it now."""

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Let libraries that make temporary files of their own make them in this folder, until the end of the block."""
        before, tempfile.tempdir = tempfile.tempdir, str(self.path)
        try:
            yield
        finally:
            tempfile.tempdir = before


def sweep(prefix: str) -> None:
    """Remove the folders that killed processes of this node have left behind."""
    for lock in Path(tempfile.gettempdir()).glob(f"{prefix}*.lock"):
        _remove_abandoned(lock)


def _locked(root: Path, prefix: str) -> tuple[Path, int]:
    """A new lock file that is held."""
    while True:
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=".lock", dir=root)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            return Path(name), handle
        os.close(handle)  # another process took it for an abandoned one before it was locked


def _remove(lock: Path, handle: int) -> None:
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    lock.unlink(missing_ok=True)
    os.close(handle)


def _remove_abandoned(lock: Path) -> None:
    try:
        handle = os.open(lock, os.O_RDWR)
    except (FileNotFoundError, PermissionError):
        return  # gone meanwhile, or another user's
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)  # in use
        return
    _remove(lock, handle)
