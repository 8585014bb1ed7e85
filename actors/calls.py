"""Waiting for the calls of actors, behind an interface so that schedules can be tested without Ray."""

from __future__ import annotations

from typing import Any, Protocol

import ray

from cluster.remote import fetch_result


class Calls(Protocol):
    """What a pool needs of Ray."""

    def first(self, refs: list[Any], timeout: float) -> Any | None:
        """Return one finished ref, or None at the timeout."""

    def get(self, ref: Any, timeout: float) -> Any:
        """Return its result. Raises RayActorError for a dead actor, GetTimeoutError, or the actor's own error."""

    def kill(self, actor: Any) -> None:
        """End an actor that does not answer; its pending calls then fail as with any dead actor."""


class RayCalls:
    """The calls of Ray itself."""

    def first(self, refs: list[Any], timeout: float) -> Any | None:
        """Return one finished ref, or None at the timeout."""
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout)
        return ready[0] if ready else None

    def get(self, ref: Any, timeout: float) -> Any:
        """Return its result; see `Calls.get`."""
        return fetch_result(ref, timeout)

    def kill(self, actor: Any) -> None:
        """End an actor."""
        ray.kill(actor)
