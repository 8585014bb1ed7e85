"""Waiting for actors: an error raised on purpose in an actor comes back as itself."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayTaskError

from rlaif.errors import RlaifError


def ask(refs: Any, timeout: float | None = None, meanwhile: Callable[[], None] | None = None) -> Any:
    """`ray.get` that re-raises a RlaifError from an actor without Ray's wrapping.

    meanwhile: called about twice a second until the first of a list of references has ended.
    """
    while meanwhile is not None and not ray.wait(refs, timeout=0.5)[0]:
        meanwhile()
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
