"""New weights to the rollout actors: over the transport of `rollout.transport`, and the object store where that fails."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from actors.pool import RolloutPool
from cluster.publish import Manifest
from cluster.transfer import Delivery, Receivers, undelivered
from learners.group import LearnerGroup
from rlaif.config.cluster import Rollout

log = logging.getLogger(__name__)


@dataclass
class Publisher:
    """Brings numbered versions of the policy to every rollout actor, each of them whole or not at all."""

    learners: LearnerGroup
    rollouts: RolloutPool
    options: Rollout
    deadline_s: float
    apply_s: float = 0.0
    """How long the slowest rollout actor took to verify and load the weights published last."""
    rerouted: int = 0
    """Times that an actor got a version through the object store because the transport did not reach it."""
    _unreached: Delivery | None = None
    """The last delivery, if it reached nobody."""

    def publish(self, version: int) -> dict[str, float]:
        """Send the policy's newest weights to every rollout actor; returns the transfer's metrics.

        Through the object store, each actor applies them behind what it still owes and `wait` says when they are in place;
        a transport between GPUs waits for that here.
        """
        began = time.perf_counter()
        manifest = None
        if self.options.transport != "object_store":
            manifest = self._deliver(version)
        if manifest is None:
            manifest, buckets = self.learners.publishable("policy", version)
            self.rollouts.publish(manifest, buckets, self.deadline_s)
        return {
            "publish/bytes": manifest.nbytes,
            "publish/tensors": len(manifest.tensors),
            "publish/seconds": time.perf_counter() - began,
            "publish/rerouted": self.rerouted,
        }

    def wait(self) -> None:
        """Every rollout actor holds the version published last, verified.

        Raises:
            ContractError: the transport reached no actor, though all of them are well: it cannot work as configured.
        """
        dead = len(self.rollouts.dead)
        receipts = self.rollouts.committed(self.deadline_s)
        self.apply_s = max((receipt.seconds for receipt in receipts.values()), default=0.0)
        unreached, self._unreached = self._unreached, None
        if unreached is not None and len(self.rollouts.dead) == dead:
            raise undelivered(unreached.failed)

    def _deliver(self, version: int) -> Manifest | None:
        """The version's manifest if it reached every actor, else None: it has to be published the other way too."""
        receivers = Receivers(
            self.rollouts.handles, self.options.tensor_parallel_size, self.deadline_s, self.options.transport
        )
        delivery = self.learners.transfer("policy", version, receivers)
        if delivery.receipts:
            self.rollouts.delivered(delivery.manifest, delivery.receipts)
        self._unreached = None if delivery.receipts else delivery
        for name, reason in delivery.failed.items():
            log.warning("version %d goes to rollout actor %s through the object store: %s", version, name, reason)
        self.rerouted += len(delivery.failed)
        return None if delivery.failed else delivery.manifest
