"""Remember what was learned about videos, so that no stage, process or node learns it again.

An entry is one JSON file per path, below a folder that all nodes may share. It is valid as long as size and modification
time of the video (for a folder: of each of its images) are the same and the libraries are; if only the time of an inode
changed, the video is hashed again. Any number of processes may read and write: an entry is replaced as a whole, and one
that is damaged is learned again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av

from rlaif.video.folder import SIDECAR, frames_in

log = logging.getLogger(__name__)

VERSION = f"3, av {av.__version__}, FFmpeg {av.ffmpeg_version_info}"
"""Version of the entries and of the libraries that decode; an entry of another version is learned again."""
RACE_NS = 2 * 10**9
"""A file that is written twice within one tick of its file system's clock keeps its time. So a video that was read this
soon after it was written is read again later."""
IN_MEMORY = 65536
"""Entries that a process keeps in memory."""


class KnownVideos:
    """Facts about videos by path. `folder` None keeps them in this process only."""

    def __init__(self, folder: str | Path | None = None):
        self._folder = Path(folder).expanduser() if folder is not None else None
        self._memory: OrderedDict[str, dict] = OrderedDict()
        self._guard = threading.Lock()
        self._writable = True

    def get(self, path: Path, learn: Callable[[Any], Any]) -> Any:
        """Return the facts about `path`, as JSON values; `learn` returns them if none are known. Its errors pass through.

        learn: is called with earlier facts that probably still hold, or None.
        """
        key = os.path.abspath(path)
        stats = _stats(path)
        stamp = _stamp(stats)
        inodes = _inode_stamp(stats)
        written_ns = max((file.st_mtime_ns for _, file in stats), default=0)
        entry = self._find(key)
        earlier = None
        if entry and entry["stamp"] == stamp:
            earlier = entry["facts"]
        # Size and times are the same, and the video was not written just before it was read: nothing changed.
        if earlier and entry["inodes"] == inodes and abs(entry["read_ns"] - written_ns) > RACE_NS:
            return earlier
        # The time of reading is noted before the video is read: a change in between is then seen by the next look.
        entry = {"version": VERSION, "path": key, "stamp": stamp, "inodes": inodes, "read_ns": time.time_ns()}
        entry["facts"] = learn(earlier)
        self._write(key, entry)
        return entry["facts"]

    def _find(self, key: str) -> dict | None:
        with self._guard:
            entry = self._memory.get(key)
        if entry is not None or self._folder is None:
            return entry
        entry = _load(self._file(key))
        if not entry or (entry["version"], entry["path"]) != (VERSION, key):
            return None
        self._remember(key, entry)
        return entry

    def _write(self, key: str, entry: dict) -> None:
        self._remember(key, entry)
        if self._folder is None or not self._writable:
            return
        file = self._file(key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Other processes read whole entries only: write aside, then replace.
            aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
            aside.write_text(json.dumps([_digest(entry), entry]))
            os.replace(aside, file)
        except OSError as error:
            self._writable = False
            log.warning("facts about videos cannot be cached below %s: %s", self._folder, error)

    def _remember(self, key: str, entry: dict) -> None:
        with self._guard:
            self._memory[key] = entry
            self._memory.move_to_end(key)
            if len(self._memory) > IN_MEMORY:
                self._memory.popitem(last=False)

    def _file(self, key: str) -> Path:
        name = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
        return self._folder / name[:2] / f"{name}.json"


def stamp_of(path: Path) -> str:
    """Return what changes when a video does: size and time of a file, or of each image of a folder and its name."""
    return _stamp(_stats(path))


def _stats(path: Path) -> list[tuple[str, os.stat_result]]:
    files = [path]
    if path.is_dir():
        files = [*frames_in(path), *path.glob(SIDECAR)]
    return [(file.name, file.stat()) for file in files]


def _stamp(stats: list[tuple[str, os.stat_result]]) -> str:
    parts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _inode_stamp(stats: list[tuple[str, os.stat_result]]) -> str:
    # A copy may keep the time of modification; that of the inode changes, also if only an owner or a name does.
    times = [stat.st_ctime_ns for _, stat in stats]
    return hashlib.sha256(repr(times).encode()).hexdigest()


def _load(file: Path) -> dict | None:
    """Return an entry, or None for one that is missing, unreadable or damaged."""
    try:
        digest, entry = json.loads(file.read_bytes())
        return entry if digest == _digest(entry) else None
    except (OSError, ValueError, TypeError):
        return None


def _digest(entry: dict) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
