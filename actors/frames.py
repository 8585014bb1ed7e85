"""One actor decodes each video once for every role of a run; the others get frames through a `FrameClient`.

Decoded frames are in Ray's object store. Their references are owned by the store actor, so that they outlive the process that
asked first, and travel inside a list, because Ray would otherwise resolve them on the way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayTaskError

from rlaif.data.videos import video_path
from rlaif.errors import DataError, RlaifError
from rlaif.video.cache import FrameCache, SpecCache
from rlaif.video.decode import decode
from rlaif.video.spec import FrameSpec
from rlaif.video.workers import Decoders

CLIENT_BYTES = 256 * 1024**2


class FrameStore:
    """The actor's body; `start_frame_store` makes it an actor. Any number of threads may call it.

    threads: how many videos are decoded at a time, each in a process of its own (None: as many as there are cores).
    queue: how many prefetches may wait. decode_timeout_s: a video that takes longer is an error, and its decoder ended.
    known: folder in which facts about videos are stored for other stages and nodes (rlaif/video/known.py).
    """

    def __init__(
        self,
        num_frames: int,
        height: int | None = None,
        width: int | None = None,
        processor: str = "",
        store_bytes: int = 2 * 1024**3,
        threads: int | None = None,
        queue: int = 256,
        decode_timeout_s: float = 600.0,
        known: str | None = None,
    ):
        """Start the decoders."""
        threads = threads or len(os.sched_getaffinity(0))
        self._decoders = Decoders(threads, decode_timeout_s, known)
        self._specs = SpecCache(num_frames, height, width, processor, probe=self._decoders.probe)
        # put by this actor, which thereby owns the objects: they live on when the client that asked first is gone
        self._cache = FrameCache(store_bytes, decode=self._decoders.decode, store=ray.put)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
        self._queue = queue
        self._waiting: dict[str, Future] = {}
        self._prefetch_failures = 0
        # of the queue of prefetches only: the caches have locks of their own, held per video
        self._guard = threading.Lock()

    def spec(self, path: str) -> FrameSpec:
        """Return how a video is sampled. Raises DataError for a video that cannot be used."""
        return self._specs.spec(path)

    def frames(self, spec: FrameSpec, path: str) -> list[ray.ObjectRef]:
        """Return [reference to uint8 [T, H, W, 3]]. Raises DataError if the video changed or is damaged."""
        return [self._cache.get(path, spec)]

    def lost(self, spec: FrameSpec, refs: list[ray.ObjectRef]) -> None:
        """Forget `refs`, which a client could not resolve: decode again on the next request."""
        self._cache.forget(spec, refs[0])

    def prefetch(self, paths: list[str]) -> int:
        """Decode in the background and return at once, with the number accepted.

        It is only a hint, dropped when the queue is full. A bad video counts as `prefetch_failures`; a role that then
        requests it gets the error itself.
        """
        with self._guard:
            room = max(0, self._queue - len(self._waiting))
            accepted = [path for path in dict.fromkeys(paths) if path not in self._waiting][:room]
            for path in accepted:
                self._waiting[path] = self._pool.submit(self._fetch, path)
        # outside the guard: the callback of a decode that has ended already runs here, and takes the guard
        for path in accepted:
            self._waiting[path].add_done_callback(partial(self._fetched, path))
        return len(accepted)

    def counters(self) -> dict[str, int]:
        """Return the counters of rlaif/video/cache.py, and `prefetch_failures`."""
        return asdict(self._cache.counters()) | {"prefetch_failures": self._prefetch_failures}

    def _fetch(self, path: str) -> None:
        self._cache.get(path, self.spec(path))

    def _fetched(self, path: str, future: Future) -> None:
        with self._guard:
            del self._waiting[path]
            self._prefetch_failures += future.exception() is not None


def start_frame_store(*, options: dict[str, Any] | None = None, concurrency: int = 32, **store: Any):
    """Start a FrameStore actor; `options` are Ray's actor options (name, placement, ...), the rest is FrameStore's.

    `concurrency` requests may be inside the actor at a time: most of them wait for a decode of another. It restarts
    when it dies, since it holds nothing that cannot be decoded again; only its counters start over.
    """
    defaults = {"num_cpus": 0, "max_concurrency": concurrency, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(FrameStore).options(**defaults | (options or {})).remote(**store)


class FrameClient:
    """A role's source of frames: `spec(video)`, then `get(video, spec)`. Rows name videos relative to `root`.

    It keeps the last `cache_bytes` of frames. They are read-only views into the object store, which cannot drop them
    while they are kept here: allow for that when sizing it.
    """

    def __init__(
        self, store, root: str | Path, cache_bytes: int = CLIENT_BYTES, attempts: int = 3, timeout_s: float = 600
    ):
        """Keep the store's actor; attempts: how often lost frames are requested."""
        self._store, self._root = store, root
        self._attempts, self._timeout_s = attempts, timeout_s
        self._specs: dict[str, FrameSpec] = {}
        self._cache = FrameCache(cache_bytes, decode=self._fetch)

    def spec(self, video: str) -> FrameSpec:
        """Return how a video is sampled. Raises DataError for a video that cannot be used."""
        if video not in self._specs:
            path = str(video_path(self._root, video))
            self._specs[video] = self._ask(self._store.spec.remote(path), path)
        return self._specs[video]

    def get(self, video: str, spec: FrameSpec | None = None) -> np.ndarray:
        """Return uint8 [T, H, W, 3], read-only. Raises DataError if the video changed, is damaged, or decodes for ever."""
        return self._cache.get(video_path(self._root, video), spec or self.spec(video))

    def prefetch(self, videos: Iterable[str]) -> None:
        """Announce videos that will be requested; returns at once."""
        self._store.prefetch.remote([str(video_path(self._root, video)) for video in videos])

    def counters(self) -> dict[str, int]:
        """Return the store's counters: of all its clients together."""
        return self._ask(self._store.counters.remote(), "the frame store")

    def _fetch(self, path: str, spec: FrameSpec) -> np.ndarray:
        for attempt in range(self._attempts):
            refs = self._ask(self._store.frames.remote(spec, path), path)
            try:
                # inside a list, or Ray would have resolved the reference in the store's process
                return self._ask(refs[0], path)
            except ObjectLostError:  # also its subclass for a dead owner: a restarted store decodes again
                if attempt == self._attempts - 1:
                    raise
                self._ask(self._store.lost.remote(spec, refs), path)

    def _ask(self, ref: ray.ObjectRef, path: str) -> Any:
        try:
            return ray.get(ref, timeout=self._timeout_s)
        except RayTaskError as error:
            if isinstance(error.cause, RlaifError):  # Ray's own mixture of both types does not survive a second hop
                raise error.cause from error
            raise
        except GetTimeoutError as error:
            raise DataError(
                f"frames of {path} within {self._timeout_s:g} s",
                "no answer from the frame store",
                "Remove this video if decoding it alone hangs too; else give the store more threads",
            ) from error


class LocalFrames:
    """Frames that are decoded in this process, without Ray."""

    def __init__(
        self,
        root: str | Path,
        num_frames: int,
        height: int | None = None,
        width: int | None = None,
        processor: str = "",
        cache_bytes: int = CLIENT_BYTES,
        decode: Callable[[str, FrameSpec], np.ndarray] = decode,
    ):
        """Begin with an empty cache; the arguments are those of FrameStore and FrameClient."""
        self._root = root
        self._specs = SpecCache(num_frames, height, width, processor)
        self._cache = FrameCache(cache_bytes, decode=decode)

    def spec(self, video: str) -> FrameSpec:
        """Return how a video is sampled; as `FrameClient.spec`."""
        return self._specs.spec(video_path(self._root, video))

    def get(self, video: str, spec: FrameSpec | None = None) -> np.ndarray:
        """Return uint8 [T, H, W, 3]; as `FrameClient.get`."""
        return self._cache.get(video_path(self._root, video), spec or self.spec(video))

    def prefetch(self, videos: Iterable[str]) -> None:
        """Do nothing: the caller's own thread decodes."""

    def counters(self) -> dict[str, int]:
        """Return the counters of this process's cache."""
        return asdict(self._cache.counters())
