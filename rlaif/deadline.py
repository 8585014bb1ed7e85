"""Calls that may never return, with a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, Queue
from typing import TypeVar

T = TypeVar("T")


class LateError(Exception):
    """A call has not returned in time."""


def within(call: Callable[[], T], seconds: float, name: str) -> T:
    """Return what a call returns, or raise what it raises. Raises LateError after `seconds`.

    The call runs in a daemon thread called `name`. If it is late, the thread keeps running, since Python cannot stop a thread.
    """
    outcomes: Queue = Queue()

    def run() -> None:
        try:
            outcomes.put((call(), None))
        except BaseException as error:  # also KeyboardInterrupt and SystemExit, which the caller must see
            outcomes.put((None, error))

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        result, error = outcomes.get(timeout=seconds)
    except Empty:
        raise LateError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return result
