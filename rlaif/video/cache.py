"""Keep decoded frames while they fit a byte budget. There is no Ray here: the caller says what is stored."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlaif.byte_cache import ByteCache
from rlaif.errors import DataError
from rlaif.video import decode as decoding
from rlaif.video.known import stamp_of
from rlaif.video.spec import FrameSpec

Decode = Callable[[str, FrameSpec], np.ndarray]


@dataclass
class Counters:
    """What a FrameCache has done so far."""

    decodes: int = 0
    """First decodes: one per FrameSpec, however often it is requested."""
    redecodes: int = 0
    """Decodes of a FrameSpec that had been decoded before: it was evicted or lost in between."""
    hits: int = 0
    """Requests that were answered without a decode."""
    evictions: int = 0
    """Values that were dropped to stay within the budget."""
    lost: int = 0
    """Values that were forgotten because they no longer resolved."""
    bytes: int = 0
    """Decoded bytes stored now."""
    videos: int = 0
    """Different videos decoded so far."""


class KeyedLocks:
    """One lock per key, so that work on one video never waits for work on another."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[Any, threading.Lock] = {}

    def __call__(self, key: Any) -> threading.Lock:
        """Return the lock of a key."""
        with self._guard:
            return self._locks.setdefault(key, threading.Lock())


class FrameCache:
    """Least-recently-used frames by FrameSpec hash, within `budget` bytes. Safe to call from many threads.

    `store` turns decoded frames into what is stored and returned (an object reference, say; by default the frames).
    The newest entry stays even when it alone exceeds the budget. A spec is decoded once however many threads request it.
    """

    def __init__(self, budget: int, decode: Decode = decoding.decode, store: Callable[[np.ndarray], Any] = lambda x: x):
        self._decode = decode
        self._store = store
        self._values: ByteCache[str, Any] = ByteCache(budget)
        self._decoded: set[str] = set()
        self._videos: set[str] = set()
        self._counters = Counters()
        # This lock is for bookkeeping only and is never held while decoding.
        self._guard = threading.Lock()
        self._decoding = KeyedLocks()

    def get(self, path: str | Path, spec: FrameSpec) -> Any:
        """Return the stored value of `spec`, decoded from `path` if there is none. Errors of `decode` pass through."""
        # Threads that request one spec wait here for the first of them, so it is decoded once.
        with self._decoding(spec.hash):
            with self._guard:
                if spec.hash in self._values:
                    self._counters.hits += 1
                    return self._values.get(spec.hash)
            frames = self._decode(str(path), spec)
            value = self._store(frames)
            with self._guard:
                self._count_decode(spec)
                self._values.put(spec.hash, value, frames.nbytes)
            return value

    def forget(self, spec: FrameSpec, value: Any = None) -> None:
        """Forget `spec`, whose stored value no longer resolves, so that the next `get` decodes it again.

        With `value`, only if that is the stored one: if two clients lose the same object, the slower one must not
        throw away its replacement. Values are compared with ==, so pass references, not arrays.
        """
        with self._guard:
            if spec.hash not in self._values:
                return
            # Another client may have replaced the value already.
            if value is None or self._values.peek(spec.hash) == value:
                self._values.remove(spec.hash)
                self._counters.lost += 1

    def counters(self) -> Counters:
        """Return a copy of the counters."""
        with self._guard:
            return replace(self._counters, bytes=self._values.nbytes, evictions=self._values.evictions)

    def _count_decode(self, spec: FrameSpec) -> None:
        if spec.hash in self._decoded:
            self._counters.redecodes += 1
        else:
            self._counters.decodes += 1
        self._decoded.add(spec.hash)
        self._videos.add(spec.sha256)
        self._counters.videos = len(self._videos)


class SpecCache:
    """FrameSpecs under one sampling rule; a video is probed (and hashed) again only when it changed on disk.

    `probe` returns the VideoInfo of a path; by default it is rlaif/video/decode.py's `probe_video`.
    """

    def __init__(
        self,
        num_frames: int,
        height: int | None = None,
        width: int | None = None,
        processor: str = "",
        probe: Callable[[str], decoding.VideoInfo] = decoding.probe_video,
    ):
        self._rule = (num_frames, height, width, processor)
        self._probe = probe
        self._specs: dict[str, tuple[str, FrameSpec]] = {}
        self._probing = KeyedLocks()

    def spec(self, path: str | Path) -> FrameSpec:
        """Return the spec of a video. Raises DataError as `sample_spec` does."""
        path = str(path)
        with self._probing(path):
            stamp = _stamp(path)
            earlier_stamp, spec = self._specs.get(path, (None, None))
            if spec is None or earlier_stamp != stamp:
                info = self._probe(path)
                spec = decoding.spec_of(path, info, *self._rule)
                self._specs[path] = (stamp, spec)
            return spec


def _stamp(path: str) -> str:
    try:
        return stamp_of(Path(path))
    except (OSError, ValueError, DataError):
        return ""  # probing the video will say what is wrong
