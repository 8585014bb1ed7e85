"""Rollout actors at the receiving end of a transport between GPUs, as vLLM's weight senders talk to them."""

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
class Delivery:
    """How a version reached the rollout actors."""

    manifest: Manifest | None
    """None: nobody took it."""
    receipts: dict[str, Any]
    failed: dict[str, str]
    """Actors that did not take it, and why; they still hold what they had, or nothing."""


@dataclass
class Receivers:
    """The client of vLLM's `TrainerWeightTransferEngine`: each call goes to every rollout actor, within a deadline.

    An actor that fails is left out of what follows and named in `failed`, so that one of them does not stop the others.
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
    """What has just been sent; asked for when all of it has."""

    @property
    def together(self) -> bool:
        """The transport is one collective over all of them: it must not begin unless all take part."""
        return self.backend == "nccl"

    @property
    def processes(self) -> int:
        return self.width * len(self.actors)

    def init_weight_transfer_engine(self, init_info: dict) -> None:
        """Each actor joins the transport; in a collective the ranks behind the sender's go to the actors in order."""

        def joining(name: str) -> tuple[str, dict]:
            place = list(self.actors).index(name)
            ranks = {"rank_offset": 1 + self.width * place} if "rank_offset" in init_info else {}
            return self.backend, init_info | ranks

        self._each("open_transfer", joining)

    def start_weight_update(self) -> None:
        self.receipts, self.failed = {}, {}
        self._each("begin_transfer")

    def update_weights(self, update_info: dict) -> None:
        self._each("receive_transfer", lambda name: (update_info,))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        manifest = self.manifest()
        self.receipts = self._each("commit_transfer", lambda name: (manifest,))

    def _each(self, method: str, arguments: Callable[[str], tuple] = lambda name: ()) -> dict[str, Any]:
        live = [name for name in self.actors if name not in self.failed]
        refs = {name: getattr(self.actors[name], method).remote(*arguments(name)) for name in live}
        answers: dict[str, Any] = {}
        until = time.monotonic() + self.deadline_s  # of all together: several that hang cost no more than one
        for name, ref in refs.items():
            try:
                answers[name] = fetch_result(ref, max(0.0, until - time.monotonic()))
            except (RlaifError, RayError) as error:  # a refusal, a dead actor, the deadline, whatever vLLM raised
                self.failed[name] = f"{method}: {_reason(error)}"
                log.warning("rollout actor %s did not take the weights: %s", name, self.failed[name])
        if self.together and self.failed and method in ("open_transfer", "begin_transfer"):
            raise undelivered(self.failed)
        return answers


def undelivered(failed: Mapping[str, str]) -> ContractError:
    return ContractError(
        "rollout actors that take weights by rollout.transport",
        "; ".join(f"{name}: {reason}" for name, reason in failed.items()) or "none that answers",
        "Look at the actors' logs, or set rollout.transport=object_store, which works everywhere.",
    )


def _reason(error: Exception) -> str:
    if isinstance(error, RlaifError):
        return error.found
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1]
