"""A watch on a cluster's head, with which a run ends within seconds after its head.

Ray waits a minute for a head that has gone, in whichever call is running, and then ends the process without a message.
So the watch connects to the head's port without using Ray.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable

from rlaif.errors import HeadLostError
from rlaif.io.terminal import screen

log = logging.getLogger(__name__)

KNOCK_S = 5.0
"""How long a connection may take to be accepted."""
LAST_RESORT_S = 10.0
"""How long the main thread may take to end after the head was lost, before the process is ended under it."""


def answers(address: str, timeout_s: float = KNOCK_S) -> bool:
    """Return whether something listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except OSError:
        return False
    return True


class Patience:
    """Distinguishes a lost head from a short interruption: it is lost after `limit_s` seconds without an answer."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic):
        self._limit_s, self._clock = limit_s, clock
        self._silent_since: float | None = None

    def lost(self, answered: bool) -> bool:
        """Record whether the head answered just now, and return whether it counts as lost."""
        if answered:
            self._silent_since = None
            return False
        if self._silent_since is None:
            self._silent_since = self._clock()
        return self._clock() - self._silent_since >= self._limit_s


class HeadWatch:
    """A thread of the driver that connects to the head once a second."""

    def __init__(self, address: str, patience_s: float, on_lost: Callable[[HeadLostError], None]):
        """Start the thread. `on_lost` raises the error in the main thread."""
        self.address, self._on_lost = address, on_lost
        self._patience = Patience(patience_s)
        self._ended = threading.Event()
        self.finished = False
        """Set by the driver when its work is done: a head that is lost later is no failure."""
        self._thread = threading.Thread(target=self._watch, name="head-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch, because the driver has left the cluster."""
        self._ended.set()

    def _watch(self) -> None:
        # Not through Ray: if Ray ends while a thread of the driver calls it, it ends the process with status 1 and no word.
        while not self._ended.wait(1.0):
            if self._patience.lost(answers(self.address)):
                return self._lost()

    def _lost(self) -> None:
        error = head_lost(self.address)
        if not self.finished:
            self._on_lost(error)
        if self._ended.wait(LAST_RESORT_S):
            return
        # The main thread is inside a call of Ray's that does not return, so no exception can end it.
        if self.finished:
            log.warning("%s", left_without(self.address))
        else:
            screen().say(f"\n{type(error).__name__}: {error}", screen().err)
        os._exit(0 if self.finished else 1)


def head_lost(address: str) -> HeadLostError:
    """Return the error for a head that no longer answers."""
    return HeadLostError(
        f"a cluster whose head answers at {address}",
        "nothing listens there any more: it was killed, or its node or network failed",
        "Start the cluster again (a private one starts by itself), then resume the run.",
    )


def left_without(address: str) -> str:
    """Return the warning for a head that ended after the run had finished its work."""
    return f"the cluster's head at {address} ended before the run had left it; all work was done, and nothing is lost"
