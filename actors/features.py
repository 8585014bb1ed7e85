"""What a role asks for the features of frozen vision towers, so that each is computed by one process and used by all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayError

from actors.feature_store import PATIENCE_S
from cluster.publish import from_wire, to_wire
from rlaif.models.vision import Features, Key, mapped

log = logging.getLogger(__name__)


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
