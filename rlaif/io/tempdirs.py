"""Temporary folders that do not accumulate when their processes are killed, as Ray kills actors."""

from __future__ import annotations

import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class Scratch:
    """A new folder, `path`, in the system's temporary one, for as long as this object lives.

    A killed process leaves its folder behind; the next `Scratch` of that prefix on the node removes it. A folder in use
    differs from it by a lock, which the kernel drops with its process.
    """

    def __init__(self, prefix: str):
        root = Path(tempfile.gettempdir())
        sweep(prefix)
        self.path = root / f"{prefix}{uuid.uuid4().hex[:8]}"
        lock = _lock_of(self.path.with_suffix(".lock"))
        # If another process takes the new lock file for an abandoned one and deletes it, filelock notices that the
        # file it locked has no name any more, and creates it again.
        lock.acquire()
        self.path.mkdir(mode=0o700)
        self.close = weakref.finalize(self, _remove, lock)
        """Remove the folder now."""

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Let libraries create their own temporary files in this folder, until the end of the block."""
        before, tempfile.tempdir = tempfile.tempdir, str(self.path)
        try:
            yield
        finally:
            tempfile.tempdir = before


def sweep(prefix: str) -> None:
    """Remove the folders that killed processes of this node have left behind."""
    for lock in Path(tempfile.gettempdir()).glob(f"{prefix}*.lock"):
        _remove_abandoned(lock)


def _lock_of(path: Path) -> FileLock:
    """Return the lock on a file, which is not held yet.

    The finalizer of a `Scratch` may run in another thread than the one that created it, so the lock is not bound to
    its thread. filelock's substitute for a file system without flock is a marker file, which a killed process leaves
    behind: no use here.
    """
    return FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False)


def _remove(lock: FileLock) -> None:
    """Delete the folder and the lock file, then let go of the lock: another process may not take a half-deleted one."""
    path = Path(lock.lock_file)
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    path.unlink(missing_ok=True)
    lock.release()


def _remove_abandoned(path: Path) -> None:
    """Delete the folder that belongs to a lock file unless a process holds the lock or the file is another user's."""
    lock = _lock_of(path)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        # filelock raises an OSError for a file of another user, and for a symbolic link, which no `Scratch` creates.
        return
    _remove(lock)
