"""Ending a run on SIGTERM or Ctrl-C: at the next point where a checkpoint can be saved, if one comes in time."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The run was asked to end. `exit_code` is the shell's: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Stopper:
    """Decides when a signal ends the run. A plain state machine: `receive` is the signal handler.

    Outside `deferred` a signal ends the run at once. Inside, which is a training loop, the first one only sets
    `requested`: the loop saves a checkpoint when its iteration is done and calls `check`. A second signal, which
    `remind` sends after `grace_s` seconds, does not wait for that.
    """

    def __init__(self, grace_s: float, remind: Callable[[float, int], Any] | None = None):
        self.grace_s, self._remind = grace_s, remind or _send_later
        self.requested: int | None = None
        """The signal that asked for the end."""
        self.error: Exception | None = None
        """What ends the run instead of a signal: see `fail`."""
        self._deferring = False
        self._timer: Any = None

    def receive(self, signum: int, frame: Any = None) -> None:
        if self.error is not None:
            raise Interrupted(signum)
        first, self.requested = self.requested is None, self.requested or signum
        if not self._deferring or not first:
            raise Interrupted(self.requested)
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        log.warning(
            "%s: saving a checkpoint after this iteration, if it ends within %g s; again: end now", name, self.grace_s
        )
        self._timer = self._remind(self.grace_s, signum)

    @property
    def able(self) -> bool:
        """Whether this thread can handle signals: only the main one can."""
        return _in_main_thread()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Wrap a loop that saves a checkpoint when `requested` is set, then calls `check`."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
            if self._timer is not None:
                self._timer.cancel()
        self.check()  # of a signal that came after the loop's last checkpoint

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def fail(self, error: Exception) -> None:
        """Raise an error in the main thread, from another one, wherever it waits; `explained` puts it in place."""
        self.error = error
        os.kill(os.getpid(), signal.SIGTERM)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise what really ended the block. Ray's calls turn whatever a handler raises into a KeyboardInterrupt."""
        try:
            yield
        except KeyboardInterrupt as error:
            if self.requested is not None:  # first: a signal to a whole process group ends the cluster's head as well
                raise Interrupted(self.requested) from error
            if self.error is not None:
                raise self.error from error
            raise

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals until the end of the block; a thread that is not the main one cannot, and leaves them."""
        before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.install()
        try:
            yield
        finally:
            if _in_main_thread():
                for signum, handler in before.items():
                    signal.signal(signum, handler or signal.SIG_DFL)

    def install(self) -> None:
        """Take the signals, once more after Ray's start: Ray installs handlers of its own, one of which prints a stack."""
        if _in_main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self.receive)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _send_later(seconds: float, signum: int) -> threading.Timer:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signum))
    timer.daemon = True
    timer.start()
    return timer
