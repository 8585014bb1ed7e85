"""Waiting for actors: an error raised on purpose in an actor comes back as itself."""

from __future__ import annotations

import socket
from typing import Any

import ray
from ray.exceptions import RayTaskError

from rlaif.errors import RlaifError


def ask(refs: Any, timeout: float | None = None) -> Any:
    """`ray.get` that re-raises a RlaifError from an actor without Ray's wrapping."""
    try:
        return ray.get(refs, timeout=timeout)
    except RayTaskError as error:
        if isinstance(error.cause, RlaifError):
            raise error.cause from error
        raise


def free_port() -> int:
    """A TCP port that is free on this node right now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
