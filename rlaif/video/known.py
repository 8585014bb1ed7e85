"""Remember what was learned about videos, so that no stage, process or node learns it again.

An entry is one JSON file per path, below a folder that all nodes may share. It holds as long as size and modification
time of the video (of a folder: of each of its images) are the same and the libraries are; if only the time of an inode
changed, the video is hashed again. Any number of processes may
read and write: an entry is replaced as a whole, and one that is damaged is learned again.
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

from rlaif.video.folder import frames_in

log = logging.getLogger(__name__)

VERSION = f"3, av {av.__version__}, FFmpeg {av.ffmpeg_version_info}"
RACE_NS = 2 * 10**9
"""A file that is written twice within one tick of its file system's clock keeps its time: what was read so soon after
a change is read again later."""
IN_MEMORY = 65536


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
        key, stats = os.path.abspath(path), _stats(path)
        stamp, written_ns = _stamp(stats), max((file.st_mtime_ns for _, file in stats), default=0)
        # a copy may keep the time of modification; that of the inode changes, also if only an owner or a name does
        inodes = hashlib.sha256(repr([file.st_ctime_ns for _, file in stats]).encode()).hexdigest()
        entry = self._read(key)
        earlier = entry["facts"] if entry and entry["stamp"] == stamp else None
        if earlier and entry["inodes"] == inodes and abs(entry["read_ns"] - written_ns) > RACE_NS:
            return earlier
        entry = {"version": VERSION, "path": key, "stamp": stamp, "inodes": inodes, "read_ns": time.time_ns()}
        entry["facts"] = learn(earlier)
        self._write(key, entry)
        return entry["facts"]

    def _read(self, key: str) -> dict | None:
        with self._guard:
            entry = self._memory.get(key)
        if entry is None and self._folder is not None:
            entry = _load(self._file(key))
            if entry and (entry["version"], entry["path"]) != (VERSION, key):
                return None
            if entry:
                self._keep(key, entry)
        return entry

    def _write(self, key: str, entry: dict) -> None:
        self._keep(key, entry)
        if self._folder is None or not self._writable:
            return
        file = self._file(key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
            aside.write_text(json.dumps([_digest(entry), entry]))
            os.replace(aside, file)
        except OSError as error:
            self._writable = False
            log.warning("what is learned about videos is not kept below %s: %s", self._folder, error)

    def _keep(self, key: str, entry: dict) -> None:
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
        files = [*frames_in(path), *path.glob("frames.json")]
    return [(file.name, file.stat()) for file in files]


def _stamp(stats: list[tuple[str, os.stat_result]]) -> str:
    parts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _load(file: Path) -> dict | None:
    """Return an entry, or None for one that is missing, unreadable or damaged."""
    try:
        digest, entry = json.loads(file.read_bytes())
        return entry if digest == _digest(entry) else None
    except (OSError, ValueError, TypeError):
        return None


def _digest(entry: dict) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
