"""Weight sync: new weights go to the rollout actors over `rollout.transport`, or through the object store if that fails."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from actors.pool import RolloutPool
from cluster.publish import Manifest
from cluster.transfer import Receivers, WeightReceipt, undelivered
from learners.group import LearnerGroup
from rlaif.config.cluster import Rollout

log = logging.getLogger(__name__)


@dataclass
class WeightSync:
    """Publishes numbered versions of the policy to every rollout actor, each version whole or not at all."""

    learners: LearnerGroup
    rollouts: RolloutPool
    options: Rollout
    deadline_s: float
    apply_s: float = 0.0
    """Seconds that the slowest rollout actor took to verify and load the weights published last."""
    rerouted: int = 0
    """How often an actor received a version through the object store because the transport did not reach it."""
    _unreached: WeightReceipt | None = None
    """The last delivery, if it reached no actor."""

    def publish(self, version: int) -> dict[str, float]:
        """Send the policy's newest weights to every rollout actor. Returns the metrics of the transfer.

        Through the object store, each actor applies them after its pending requests, and `wait` returns when they are in
        place. A transport between GPUs waits for that here.
        """
        began = time.perf_counter()
        manifest = None
        if self.options.transport != "object_store":
            manifest = self._deliver(version)
        if manifest is None:
            manifest, buckets = self.learners.publishable("policy", version)
            self.rollouts.fleet.publish(manifest, buckets, self.deadline_s)
        return {
            "publish/bytes": manifest.nbytes,
            "publish/tensors": len(manifest.tensors),
            "publish/seconds": time.perf_counter() - began,
            "publish/rerouted": self.rerouted,
        }

    def wait(self) -> None:
        """Wait until every rollout actor holds the version published last, verified.

        Raises:
            ContractError: the transport reached no actor, though all of them are well: it cannot work as configured.
        """
        dead = len(self.rollouts.fleet.dead)
        receipts = self.rollouts.fleet.committed(self.deadline_s)
        self.apply_s = max((receipt.seconds for receipt in receipts.values()), default=0.0)
        unreached, self._unreached = self._unreached, None
        if unreached is not None and len(self.rollouts.fleet.dead) == dead:
            raise undelivered(unreached.failed)

    def _deliver(self, version: int) -> Manifest | None:
        """Return the version's manifest if it reached every actor, else None: it has to be published the other way too."""
        receivers = Receivers(
            self.rollouts.fleet.handles, self.options.tensor_parallel_size, self.deadline_s, self.options.transport
        )
        delivery = self.learners.transfer("policy", version, receivers)
        if delivery.receipts:
            self.rollouts.fleet.delivered(delivery.manifest, delivery.receipts)
        self._unreached = None if delivery.receipts else delivery
        for name, reason in delivery.failed.items():
            log.warning("version %d goes to rollout actor %s through the object store: %s", version, name, reason)
        self.rerouted += len(delivery.failed)
        return None if delivery.failed else delivery.manifest
