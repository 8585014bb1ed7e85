"""Rollout actors and the weights that they hold: who is alive, and how all of them get to the same version."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import GetTimeoutError, RayActorError

from actors.calls import Calls, RayCalls
from cluster.publish import Manifest
from rlaif.errors import ContractError, PlacementError

log = logging.getLogger(__name__)

PATIENCE_S = 3600.0
"""Deadline of a wait for which the caller gives none."""


@dataclass
class PublishedWeights:
    """The last version given to the actors; it stays for an actor that needs it again or joins later."""

    manifest: Manifest
    buckets: Sequence[Any] | None
    """None: they came from GPU to GPU."""
    timeout: float = PATIENCE_S
    refs: dict[str, Any] = field(default_factory=dict)
    """Of the publishes that were sent, by actor."""
    receipts: dict[str, Any] = field(default_factory=dict)
    """Of actors that hold the version already."""


class RolloutFleet:
    """Handles of the rollout actors by name, all on one version of the weights.

    Each actor runs its calls in the order in which they were made. So a publish waits for the answers requested before
    it, and everything requested after it uses the new weights: no answer mixes versions.
    """

    def __init__(self, actors: Mapping[str, Any], version: int = 0, calls: Calls | None = None):
        """Begin with `actors` by the name that errors use; `version`: the weights that all of them hold."""
        self._actors = dict(actors)
        self._weights: PublishedWeights | None = None
        self.calls = calls or RayCalls()
        self.version = version
        """The version that a call made now will use."""
        self.dead: dict[str, str] = {}
        """Actors that are gone, and why."""

    @property
    def handles(self) -> dict[str, Any]:
        """Return the handles of the actors that are alive as far as is known, by name."""
        return dict(self._actors)

    @property
    def names(self) -> list[str]:
        """Return the names of the same actors."""
        return list(self._actors)

    def live(self) -> list[str]:
        """Return the names of the actors. Raises PlacementError if none is left."""
        if not self._actors:
            gone = "; ".join(f"{name}: {reason}" for name, reason in self.dead.items())
            raise PlacementError(
                "at least one rollout actor", f"none alive ({gone})", "Look at the actors' logs, then resume the run."
            )
        return list(self._actors)

    # -------------------------------------------------------------- publishing

    def publish(self, manifest: Manifest, buckets: Sequence[Any], timeout: float = PATIENCE_S) -> None:
        """Queue new weights after each actor's pending requests; returns at once.

        Actors that have this version already (`delivered`) are left out. `timeout`: seconds an actor waits for the buckets
        to arrive.

        Wait for `committed` before the next request: an actor that did not take the weights cannot answer with them.
        """
        is_same = self._weights is not None and self._weights.manifest.version == manifest.version
        receipts = self._weights.receipts if is_same else {}
        self._weights = PublishedWeights(manifest, list(buckets), timeout, receipts=receipts)
        self.version = manifest.version
        for name in self.live():
            if name not in receipts:
                self._send(name)

    def delivered(self, manifest: Manifest, receipts: Mapping[str, Any]) -> None:
        """Note that these actors hold a new version, which reached them on another way than `publish`."""
        self._weights = PublishedWeights(manifest, None, receipts=dict(receipts))
        self.version = manifest.version

    def committed(self, timeout: float = PATIENCE_S) -> dict[str, Any]:
        """Wait until the weights published last are in place everywhere; return the receipts by actor.

        An actor that refuses them (a damaged transfer) gets them once more. One that refuses again or does not answer
        within `timeout` seconds is ended, and the others go on; `dead` says why.

        Raises:
            PlacementError: no actor is left.
            ContractError: all that are left refused twice; names actor and tensor.
        """
        if self._weights is None:  # nothing published yet: the model as loaded
            self.live()
            return {}
        receipts: dict[str, Any] = dict(self._weights.receipts)
        refusals: dict[str, ContractError] = {}
        for name in list(self._weights.refs):  # a copy: dead actors are removed on the way
            try:
                receipts[name] = self._receipt(name, timeout)
            except RayActorError as error:
                self.mark_dead(name, error)
            except GetTimeoutError:
                self._kill(name, f"did not take version {self.version} within {timeout:g} s")
            except ContractError as error:
                refusals[name] = error
        # if every actor refuses, the weights are at fault: no actor is ended for that
        if refusals and not receipts:
            raise next(iter(refusals.values()))
        # the weights are good, as other actors took them: these actors would hold up every iteration
        for name, error in refusals.items():
            self._kill(name, f"refused version {self.version}: {error.found}")
        self.live()
        return receipts

    def _receipt(self, name: str, timeout: float) -> Any:
        """Return an actor's receipt; one that refuses gets the weights once more."""
        try:
            return self.calls.get(self._weights.refs[name], timeout)
        except ContractError:
            self._send(name)
        try:
            return self.calls.get(self._weights.refs[name], timeout)
        except ContractError as error:
            raise ContractError(error.expected, f"{error.found} (rollout actor {name!r}, twice)", error.fix) from error

    def _send(self, name: str) -> None:
        weights = self._weights
        ref = self._actors[name].publish.remote(weights.manifest, weights.buckets, weights.timeout)
        weights.refs[name] = ref

    def sleep(self, level: int, timeout: float = PATIENCE_S) -> None:
        """Leave the GPUs to others; each actor wakes by itself when it is next used. See `EngineWeights.sleep`."""
        # all are called before the first is waited for: they free their memory side by side
        refs = {name: actor.sleep.remote(level) for name, actor in self._actors.items()}
        for name, ref in refs.items():
            self.result(name, ref, timeout)

    # ------------------------------------------------------------------ members

    def add(self, name: str, actor: Any) -> None:
        """Let a new actor take part; it gets the weights published last before anything else."""
        if name in self._actors:
            raise ContractError("a new name", f"{name!r} again", "Remove the old actor first.")
        # weights that went from GPU to GPU were never in the object store: there is nothing to send to a new actor
        if self._weights is not None and self._weights.buckets is None:
            raise ContractError(
                "weights in the object store for an actor that joins",
                f"version {self.version} only on the GPUs of the others",
                "Publish this version through the object store first.",
            )
        self._actors[name] = actor
        if self._weights is not None:
            self._send(name)

    def remove(self, name: str) -> Any:
        """Give an actor no more calls and return its handle; results of its pending calls are still collected."""
        actor = self._actors.pop(name)
        if self._weights is not None:
            self._weights.refs.pop(name, None)
        return actor

    def mark_dead(self, name: str, error: Exception) -> None:
        """Remove an actor that died."""
        lines = str(error).strip().splitlines() or [type(error).__name__]
        ends = dict.fromkeys([lines[0], lines[-1]])  # between them, Ray's traceback
        self.dead.setdefault(name, " ... ".join(ends))
        if name in self._actors:
            self.remove(name)

    def _kill(self, name: str, reason: str) -> None:
        """End an actor that is alive but cannot be used; its pending prompts are then given to the others."""
        log.warning("rollout actor %s is ended: it %s", name, reason)
        self.dead.setdefault(name, reason)
        self.calls.kill(self.remove(name))

    # ------------------------------------------------------------------ waiting

    def result(self, name: str, ref: Any, timeout: float) -> Any | None:
        """Return the result of an actor's call; None if the actor died.

        Raises PlacementError if it does not answer in time.
        """
        try:
            return self.calls.get(ref, timeout)
        except RayActorError as error:
            self.mark_dead(name, error)
            return None
        except GetTimeoutError:
            raise late_answer([name], timeout) from None


def late_answer(names: Iterable[str], timeout: float) -> PlacementError:
    """Return the error for actors that do not answer in time."""
    return PlacementError(
        f"an answer within {timeout:g} s",
        f"none from rollout actor {', '.join(sorted(names))}",
        "Raise cluster.collective_timeout_s if the actor is only slow; else look at its log and resume the run.",
    )
