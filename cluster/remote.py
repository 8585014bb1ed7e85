"""Calls to actors with a deadline. An error that an actor raises on purpose arrives as itself."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from rlaif.errors import DeadlineError, RlaifError

POLL_S = 0.5
"""How often `meanwhile` is called."""


def ask(refs: Any, timeout_s: float = 3600.0, who: str = "actors", meanwhile: Callable[[], None] | None = None) -> Any:
    """Return what actors answer. Raises DeadlineError, which names `who`, if that takes longer than `timeout_s`.

    Args:
        meanwhile: called about twice a second until the first of a list of references has ended.
    """
    until = time.monotonic() + timeout_s
    while meanwhile is not None and time.monotonic() < until:
        ready, _ = ray.wait(refs, timeout=POLL_S)
        if ready:
            break
        meanwhile()
    try:
        return fetch_result(refs, max(0.0, until - time.monotonic()))
    except GetTimeoutError as error:
        raise DeadlineError(
            f"an answer of {who} within {timeout_s:g} s",
            "none",
            "Look at the actors' logs. If they are only slow, raise cluster.learner_timeout_s (learners) or "
            "cluster.collective_timeout_s (all others). Then resume the run.",
        ) from error


def fetch_result(refs: Any, timeout_s: float) -> Any:
    """Return what `ray.get` returns, and raise a RlaifError of an actor without Ray's wrapping.

    Raises GetTimeoutError after `timeout_s`.
    """
    try:
        return ray.get(refs, timeout=timeout_s)
    except RayTaskError as error:
        if isinstance(error.cause, RlaifError):
            raise error.cause from error
        raise


def free_port() -> int:
    """Return a TCP port that is free on this node right now. Another process may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
