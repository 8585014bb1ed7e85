"""Rollout actors as the receivers of a transport between GPUs, in the form that vLLM's weight senders call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayError

from cluster.publish import Manifest
from cluster.remote import fetch_result
from rlaif.errors import ContractError, RlaifError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightReceipt:
    """How a version reached the rollout actors."""

    manifest: Manifest | None
    """None if no actor took the version."""
    receipts: dict[str, Any]
    """What each actor that took the version returned."""
    failed: dict[str, str]
    """Why each other actor did not take it. Such an actor still has the version it had, or none."""


@dataclass
class Receivers:
    """The client of vLLM's `TrainerWeightTransferEngine`: each call goes to every rollout actor, within a deadline.

    An actor that fails is named in `failed` and gets no further call, so that it does not stop the others.
    """

    actors: Mapping[str, Any]
    """Ray actor handles by name."""
    width: int
    """Tensor-parallel ranks of each."""
    deadline_s: float
    backend: str
    """vLLM's name of the transport."""
    failed: dict[str, str] = field(default_factory=dict)
    receipts: dict[str, Any] = field(default_factory=dict)
    manifest: Callable[[], Manifest] | None = None
    """Returns the manifest of what has just been sent. Called once all of it has been sent."""

    @property
    def together(self) -> bool:
        """Return whether the transport is one collective over all actors, which must not begin unless all take part."""
        return self.backend == "nccl"

    @property
    def processes(self) -> int:
        """Return the number of receiving ranks."""
        return self.width * len(self.actors)

    def init_weight_transfer_engine(self, init_info: dict) -> None:
        """Let each actor join the transport. In a collective, ranks are given to the actors in order, after the sender's.

        Raises ContractError if the transport is a collective and an actor does not join.
        """

        def join_arguments(name: str) -> tuple[str, dict]:
            if "rank_offset" not in init_info:
                return self.backend, init_info
            # Rank 0 is the sender.
            place = list(self.actors).index(name)
            return self.backend, init_info | {"rank_offset": 1 + self.width * place}

        self._call_each("open_transfer", join_arguments)

    def start_weight_update(self) -> None:
        """Announce a new version. Raises ContractError if the transport is a collective and an actor fails."""
        self.receipts, self.failed = {}, {}
        self._call_each("begin_transfer")

    def update_weights(self, update_info: dict) -> None:
        """Let each actor receive a part of the version."""
        self._call_each("receive_transfer", lambda name: (update_info,))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Let each actor check what it received against the manifest and load it; `weight_version` is not used."""
        if self.manifest is None:
            raise ValueError("`manifest` must be set before an update ends")
        manifest = self.manifest()
        self.receipts = self._call_each("commit_transfer", lambda name: (manifest,))

    def _call_each(self, method: str, arguments: Callable[[str], tuple] = lambda name: ()) -> dict[str, Any]:
        """Call a method of every actor that has not failed, and return the results of those that do not fail now."""
        refs = {}
        for name, actor in self.actors.items():
            if name not in self.failed:
                refs[name] = getattr(actor, method).remote(*arguments(name))
        answers: dict[str, Any] = {}
        # One deadline for all of them together: several actors that hang cost no more time than one.
        until = time.monotonic() + self.deadline_s
        for name, ref in refs.items():
            try:
                answers[name] = fetch_result(ref, max(0.0, until - time.monotonic()))
            except (RlaifError, RayError) as error:  # a refusal, a dead actor, the deadline, or what vLLM raised
                self.failed[name] = f"{method}: {_reason(error)}"
                log.warning("rollout actor %s did not take the weights: %s", name, self.failed[name])
        # A collective that begins without one of its ranks would leave the others hanging in it.
        if self.together and self.failed and method in ("open_transfer", "begin_transfer"):
            raise undelivered(self.failed)
        return answers


def undelivered(failed: Mapping[str, str]) -> ContractError:
    """Return the error for actors that did not take weights, with the reason of each."""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
    return ContractError(
        "rollout actors that take weights by rollout.transport",
        reasons or "none that answers",
        "Look at the actors' logs, or set rollout.transport=object_store, which works everywhere.",
    )


def _reason(error: Exception) -> str:
    """Return one line: `found` of a RlaifError, or the last line of another error, which comes after its traceback."""
    if isinstance(error, RlaifError):
        return error.found
    # Ray puts the actor's traceback before the message.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1]
