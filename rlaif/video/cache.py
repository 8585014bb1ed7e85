"""Keep decoded frames while they fit a byte budget. No Ray here: what is kept is up to the caller."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlaif.errors import DataError
from rlaif.video import decode as decoding
from rlaif.video.known import stamp_of
from rlaif.video.spec import FrameSpec

Decode = Callable[[str, FrameSpec], np.ndarray]


@dataclass
class Counters:
    decodes: int = 0
    """First decodes: one per FrameSpec, however often it is asked for."""
    redecodes: int = 0
    """Decodes of a FrameSpec that had been decoded before: it was evicted or lost in between."""
    hits: int = 0
    evictions: int = 0
    lost: int = 0
    bytes: int = 0
    """Decoded bytes held now."""
    videos: int = 0
    """Different videos decoded so far."""


@dataclass(frozen=True)
class _Entry:
    value: Any
    nbytes: int


class KeyedLocks:
    """One lock per key, so that work on one video never waits for work on another."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[Any, threading.Lock] = {}

    def __call__(self, key: Any) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(key, threading.Lock())


class FrameCache:
    """Least-recently-used frames by FrameSpec hash, within `budget` bytes. Safe to call from many threads.

    `store` turns decoded frames into what is kept and returned (an object reference, say; by default the frames).
    The newest entry stays even when it alone exceeds the budget. A spec is decoded once however many threads ask.
    """

    def __init__(self, budget: int, decode: Decode = decoding.decode, store: Callable[[np.ndarray], Any] = lambda x: x):
        self._budget, self._decode, self._store = budget, decode, store
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._decoded: set[str] = set()
        self._videos: set[str] = set()
        self._counters = Counters()
        self._guard = threading.Lock()  # held for bookkeeping only, never while decoding
        self._decoding = KeyedLocks()

    def get(self, path: str | Path, spec: FrameSpec) -> Any:
        """The stored value of `spec`, decoded from `path` if it isn't here. What `decode` raises reaches the caller."""
        with self._decoding(spec.hash):
            with self._guard:
                entry = self._entries.get(spec.hash)
                if entry is not None:
                    self._entries.move_to_end(spec.hash)
                    self._counters.hits += 1
                    return entry.value
            frames = self._decode(str(path), spec)
            entry = _Entry(self._store(frames), frames.nbytes)
            with self._guard:
                self._insert(spec, entry)
            return entry.value

    def lost(self, spec: FrameSpec, value: Any = None) -> None:
        """Forget `spec`, whose stored value no longer resolves, so that the next `get` decodes it again.

        With `value`, only if that is what is kept: of two clients that lost the same object, the slower one must not
        throw away its replacement. Values are compared with ==, so pass references, not arrays.
        """
        with self._guard:
            entry = self._entries.get(spec.hash)
            if entry is not None and (value is None or entry.value == value):
                self._counters.bytes -= self._entries.pop(spec.hash).nbytes
                self._counters.lost += 1

    def counters(self) -> Counters:
        """A copy."""
        with self._guard:
            return replace(self._counters)

    def _insert(self, spec: FrameSpec, entry: _Entry) -> None:
        counters = self._counters
        if spec.hash in self._decoded:
            counters.redecodes += 1
        else:
            counters.decodes += 1
        self._decoded.add(spec.hash)
        self._videos.add(spec.sha256)
        counters.videos = len(self._videos)
        self._entries[spec.hash] = entry
        counters.bytes += entry.nbytes
        while counters.bytes > self._budget and len(self._entries) > 1:
            _, evicted = self._entries.popitem(last=False)
            counters.bytes -= evicted.nbytes
            counters.evictions += 1


class SpecCache:
    """FrameSpecs under one sampling rule; a video is probed (and hashed) again only when it changed on disk.

    `probe` returns the VideoInfo of a path; by default it is rlaif/video/decode.py's.
    """

    def __init__(
        self,
        num_frames: int,
        height: int | None = None,
        width: int | None = None,
        processor: str = "",
        probe: Callable[[str], decoding.VideoInfo] = decoding.probe,
    ):
        self._rule = (num_frames, height, width, processor)
        self._probe = probe
        self._specs: dict[str, tuple[str, FrameSpec]] = {}
        self._probing = KeyedLocks()

    def spec(self, path: str | Path) -> FrameSpec:
        """Return the spec of a video. Raises DataError as `sample_spec` does."""
        path = str(path)
        with self._probing(path):
            try:
                stamp = stamp_of(Path(path))
            except (OSError, ValueError, DataError):
                stamp = ""  # probing it will say so
            known = self._specs.get(path)
            if known is None or known[0] != stamp:
                spec = decoding.spec_of(path, self._probe(path), *self._rule)
                known = self._specs[path] = (stamp, spec)
            return known[1]
