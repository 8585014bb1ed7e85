"""One actor keeps what frozen vision towers make of videos. It needs neither torch nor a model, so it starts at once.

Whoever needs a video's features first is given the claim, computes and puts them; the others ask again until they are
there, or until the claim is too old to wait for. Nobody ever waits inside the store, so nothing can deadlock.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from rlaif.models.vision import Key

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
