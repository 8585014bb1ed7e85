"""One actor keeps what frozen vision towers make of videos, so that each is computed by one process and used by all.

Whoever needs a video's features first is given the claim, computes and puts them; the others ask again until they are
there, or until the claim is too old to wait for. Nobody ever waits inside the store, so nothing can deadlock.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayError

from cluster.publish import from_wire, to_wire
from rlaif.models.vision import Features, Key, mapped

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""How long a claim keeps others waiting: longer than a tower takes for one video; after that, twice computed is better."""


class FeatureStore:
    """The actor's body; `start_feature_store` makes it an actor. Its calls run one at a time, and none of them waits."""

    def __init__(
        self,
        store_bytes: int,
        patience_s: float = PATIENCE_S,
        put: Callable[[dict], Any] = ray.put,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._budget, self._patience_s, self._put, self._clock = store_bytes, patience_s, put, clock
        self._held: OrderedDict[Key, tuple[Any, int]] = OrderedDict()
        self._claims: dict[Key, float] = {}
        self._passes: Counter[Key] = Counter()
        self._asked: set[Key] = set()
        self._hits = self._bytes = self._engine_passes = 0
        self._engine_specs: set[str] = set()

    def ask(self, key: Key) -> tuple[list, bool]:
        """([reference to the features], False) where they are here; else no reference, and whether the asker is to compute."""
        self._asked.add(key)
        if key in self._held:
            self._held.move_to_end(key)
            self._hits += 1
            return [self._held[key][0]], False
        now = self._clock()
        if now < self._claims.get(key, -float("inf")) + self._patience_s:
            return [], False
        self._claims[key] = now
        return [], True

    def put(self, key: Key, entry: dict, nbytes: int) -> None:
        """Keep what somebody computed. Of two who computed the same, the first one's stays."""
        self._passes[key] += 1
        self._claims.pop(key, None)
        if key in self._held:
            return
        self._held[key] = (self._put(entry), nbytes)
        self._bytes += nbytes
        while self._bytes > self._budget and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1][1]

    def release(self, key: Key) -> None:
        """Whoever had the claim could not compute."""
        self._claims.pop(key, None)

    def lost(self, key: Key, refs: list) -> None:
        """A client could not resolve `refs`: somebody computes again."""
        if key in self._held and self._held[key][0] == refs[0]:
            self._bytes -= self._held.pop(key)[1]

    def seen(self, keys: Sequence[Key]) -> None:
        """A tower saw these videos and keeps nothing of them."""
        self._asked.update(keys)
        self._passes.update(keys)

    def engine(self, passes: int, specs: Sequence[str]) -> None:
        """Passes through the tower inside vLLM, and hashes of the FrameSpecs it was given."""
        self._engine_passes += passes
        self._engine_specs.update(specs)

    def begin(self) -> None:
        """Count anew. What is held counts as the one pass that made it, once somebody asks for it."""
        self._passes = Counter(dict.fromkeys(self._held, 1))
        self._asked, self._engine_specs = set(), set()
        self._hits = self._engine_passes = 0

    def counters(self) -> dict[str, float]:
        """Of all processes since `begin`: passes through a tower; distinct (tower, FrameSpec) that were wanted; hits, the
        times one process found another's features; bytes held now.

        The engine's tower is one of the other roles', so its videos are new keys only where nobody else has read them.
        """
        elsewhere = self._engine_specs - {spec for _, spec in self._asked}
        passes = self._engine_passes + sum(self._passes[key] for key in self._asked)
        keys = len(self._asked) + len(elsewhere)
        counts = {"passes": passes, "keys": keys, "hits": self._hits, "bytes": self._bytes}
        return {**counts, "passes_per_key": passes / max(1, keys)}


def start_feature_store(store_bytes: int, options: dict[str, Any] | None = None):
    """Start a FeatureStore actor; `options` are Ray's actor options. It restarts when it dies: all can be computed again."""
    defaults = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(FeatureStore).options(**defaults | (options or {})).remote(store_bytes)


class FeatureClient:
    """What a role's `VisionCache` asks. Where the store fails or a claim is never kept, the role computes by itself."""

    def __init__(self, store, share: bool = True, patience_s: float = PATIENCE_S, poll_s: float = 0.02):
        """share: false where every process must compute for itself (`deterministic`); passes are counted all the same."""
        self._store, self._share = store, share
        self._patience_s, self._poll_s = patience_s, poll_s

    def get(self, key: Key, compute: Callable[[], Features]) -> Features:
        """Features under `key`, computed here when nobody has them. What `compute` raises reaches the caller."""
        if not self._share:
            self.seen([key])
            return compute()
        try:
            if (found := self._find(key)) is not None:
                return found
        except RayError as error:
            log.warning("the feature store does not answer (%s): computing here", type(error).__name__)
        try:
            made = compute()
        except BaseException:
            self._store.release.remote(key)
            raise
        try:
            ray.get(self._store.put.remote(key, to_entry(made), made.nbytes), timeout=self._patience_s)
        except RayError as error:
            log.warning("the feature store did not take features (%s)", type(error).__name__)
        return made

    def seen(self, keys: Sequence[Key]) -> None:
        """These went through a tower that keeps nothing."""
        self._store.seen.remote(list(keys))

    def engine(self, passes: int, specs: Sequence[str]) -> None:
        """See `FeatureStore.engine`."""
        self._store.engine.remote(passes, list(specs))

    def _find(self, key: Key) -> Features | None:
        """Another process's features; None where this one is to compute, or has waited long enough."""
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline:
            refs, mine = ray.get(self._store.ask.remote(key), timeout=self._patience_s)
            if mine:
                return None
            if not refs:
                time.sleep(self._poll_s)
                continue
            try:
                return from_entry(ray.get(refs[0], timeout=self._patience_s))
            except ObjectLostError:
                ray.get(self._store.lost.remote(key, refs), timeout=self._patience_s)
        return None


def to_entry(features: Features) -> dict:
    """Plain arrays: bfloat16 travels as its bits."""
    output = mapped(features.output, to_wire)
    parts = {name: output[name] for name in output}
    facts = {"tower": features.tower, "spec": features.spec, "kind": features.kind, "dtype": features.dtype}
    return {**facts, "type": type(output), "parts": parts}


def from_entry(entry: dict) -> Features:
    """Features of this process's own: what comes out of the object store is read-only and stays there while it is used."""
    own: Callable[[np.ndarray], Any] = lambda array: from_wire(array, entry["dtype"]).clone()  # noqa: E731
    output = mapped(entry["type"](**entry["parts"]), own)
    return Features(entry["tower"], entry["spec"], entry["kind"], output)
