"""One actor stores the features that frozen vision towers compute. It needs neither torch nor a model, so it starts at once.

The first process that asks for a video's features gets the claim: it computes and puts them. The others ask again until the
features are stored, or until the claim is too old to wait for. No call waits inside the store, so nothing can deadlock.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray

from rlaif.byte_cache import ByteCache

if TYPE_CHECKING:
    from rlaif.models.vision import FeatureKey

PATIENCE_S = 10.0
"""How long a claim keeps others waiting: longer than a tower takes for one video. After that, computing twice is better."""


class FeatureStore:
    """The actor's body; `start_feature_store` makes it an actor. Its calls run one at a time, and none of them waits."""

    def __init__(
        self,
        store_bytes: int,
        patience_s: float = PATIENCE_S,
        put: Callable[[dict], Any] = ray.put,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Start empty.

        store_bytes: budget of the object store for features. put: stores an entry and returns a reference to it.
        """
        self._patience_s, self._put, self._clock = patience_s, put, clock
        self._references: ByteCache[FeatureKey, Any] = ByteCache(store_bytes)
        self._claims: dict[FeatureKey, float] = {}
        self._passes: Counter[FeatureKey] = Counter()
        self._requested: set[FeatureKey] = set()
        self._hits = self._engine_passes = 0
        self._engine_specs: set[str] = set()

    def ask(self, key: FeatureKey) -> tuple[list, bool]:
        """Return ([reference to the features], False) if they are stored; else ([], whether the caller is to compute them).

        The reference is inside a list because Ray would otherwise resolve it on the way.
        """
        self._requested.add(key)
        reference = self._references.get(key)
        if reference is not None:
            self._hits += 1
            return [reference], False
        now = self._clock()
        claimed_at = self._claims.get(key, -float("inf"))
        if now < claimed_at + self._patience_s:
            return [], False
        # also in the place of a claim that is too old: its process is gone or slow, and a second result does no harm
        self._claims[key] = now
        return [], True

    def put(self, key: FeatureKey, entry: dict, nbytes: int) -> None:
        """Store what a process computed. If two processes computed the same, the first result stays."""
        self._passes[key] += 1
        self._claims.pop(key, None)
        if key not in self._references:
            self._references.put(key, self._put(entry), nbytes)

    def release(self, key: FeatureKey) -> None:
        """Give up a claim: the process that had it could not compute."""
        self._claims.pop(key, None)

    def lost(self, key: FeatureKey, refs: list) -> None:
        """Forget `refs`, which a client could not resolve, so that the next one computes again."""
        # a slower client that lost the same object must not throw away its replacement
        if self._references.peek(key) == refs[0]:
            self._references.remove(key)

    def seen(self, keys: Sequence[FeatureKey]) -> None:
        """Count videos that went through a tower whose features are not stored."""
        self._requested.update(keys)
        self._passes.update(keys)

    def engine(self, passes: int, specs: Sequence[str]) -> None:
        """Count passes through the tower inside vLLM; specs: hashes of the FrameSpecs that it received."""
        self._engine_passes += passes
        self._engine_specs.update(specs)

    def begin(self) -> None:
        """Restart the counts. Stored features count as the one pass that made them, once a process asks for them."""
        # they would otherwise count as never computed, and the passes per key come out below 1
        self._passes = Counter(dict.fromkeys(self._references, 1))
        self._requested, self._engine_specs = set(), set()
        self._hits = self._engine_passes = 0

    def counters(self) -> dict[str, float]:
        """Return the counts of all processes since `begin`.

        passes: videos that went through a tower. keys: distinct (tower, FrameSpec) that were requested. passes_per_key: their
        ratio. hits: how often one process got another's features. bytes: size of the features stored now.

        The engine's tower is that of another role, so its videos are new keys only if no other role has read them.
        """
        specs_of_others = {spec for _, spec in self._requested}
        engine_only = self._engine_specs - specs_of_others
        passes = self._engine_passes + sum(self._passes[key] for key in self._requested)
        keys = len(self._requested) + len(engine_only)
        return {
            "passes": passes,
            "keys": keys,
            "hits": self._hits,
            "bytes": self._references.nbytes,
            "passes_per_key": passes / max(1, keys),
        }


def start_feature_store(store_bytes: int, options: dict[str, Any] | None = None):
    """Start a FeatureStore actor; `options` are Ray's actor options. It restarts when it dies: all can be computed again."""
    defaults = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    actor = ray.remote(FeatureStore).options(**defaults | (options or {}))
    return actor.remote(store_bytes)
