"""A role's client of the feature store: the features of frozen towers are computed by one process and used by all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import ray
import torch
from ray.exceptions import ObjectLostError, RayError

from actors.feature_store import PATIENCE_S
from cluster.publish import from_wire, to_wire
from rlaif.models.vision import FeatureKey, Features, map_tensors

log = logging.getLogger(__name__)


class FeatureClient:
    """The `SharedFeatures` of a role's `VisionCache`. If the store fails or a claim is not kept, the role computes itself."""

    def __init__(self, store, share: bool = True, patience_s: float = PATIENCE_S, poll_s: float = 0.02):
        """Keep the store's actor.

        share: False if every process must compute for itself (`deterministic`); passes are counted all the same.
        """
        self._store, self._share = store, share
        self._patience_s, self._poll_s = patience_s, poll_s

    def get(self, key: FeatureKey, compute: Callable[[], Features]) -> Features:
        """Return the features under `key`, computed here if no process has them. Errors of `compute` reach the caller."""
        if not self._share:
            self.seen([key])
            return compute()
        try:
            shared = self._find(key)
        except RayError as error:
            log.warning("the feature store does not answer (%s): computing here", type(error).__name__)
            shared = None
        if shared is not None:
            return shared
        try:
            features = compute()
        except BaseException:
            # also when this process is stopped: the others would wait until the claim is too old
            self._store.release.remote(key)
            raise
        # waited for: an error means that the others will compute, and the log says why there are more passes
        try:
            stored = self._store.put.remote(key, to_entry(features), features.nbytes)
            ray.get(stored, timeout=self._patience_s)
        except RayError as error:
            log.warning("the feature store did not take features (%s)", type(error).__name__)
        return features

    def seen(self, keys: Sequence[FeatureKey]) -> None:
        """Count videos that went through a tower whose features are not stored."""
        self._store.seen.remote(list(keys))

    def engine(self, passes: int, specs: Sequence[str]) -> None:
        """Count passes through vLLM's own tower; see `FeatureStore.engine`."""
        self._store.engine.remote(passes, list(specs))

    def _find(self, key: FeatureKey) -> Features | None:
        """Return another process's features; None if this one is to compute them, or has waited long enough."""
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline:
            refs, is_ours = ray.get(self._store.ask.remote(key), timeout=self._patience_s)
            if is_ours:
                return None
            if not refs:
                time.sleep(self._poll_s)
                continue
            # the object is gone if the node that held it is: it has to be computed again
            try:
                return from_entry(ray.get(refs[0], timeout=self._patience_s))
            except ObjectLostError:
                ray.get(self._store.lost.remote(key, refs), timeout=self._patience_s)
        return None


def to_entry(features: Features) -> dict:
    """Return features as plain arrays for the object store; bfloat16 travels as its bits."""
    arrays = map_tensors(features.output, to_wire)
    return {
        "tower": features.tower,
        "spec": features.spec,
        "kind": features.kind,
        "dtype": features.dtype,
        "type": type(features.output),
        "parts": dict(arrays),
    }


def from_entry(entry: dict) -> Features:
    """Return the features of an entry as tensors that belong to this process."""

    def own_tensor(array: np.ndarray) -> torch.Tensor:
        # arrays from the object store are read-only, and stay in the store as long as a view of them is used
        return from_wire(array, entry["dtype"]).clone()

    arrays = entry["type"](**entry["parts"])
    output = map_tensors(arrays, own_tensor)
    return Features(entry["tower"], entry["spec"], entry["kind"], output)
