"""Wait for a call that may never return."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, Queue
from typing import TypeVar

T = TypeVar("T")


class Late(Exception):
    """A call has not returned in time."""


def within(call: Callable[[], T], seconds: float, name: str) -> T:
    """Return what a call returns, or raise what it raises.

    It runs in a daemon thread called `name`, which is left behind when it is late, since Python cannot stop a thread.
    Raises Late after `seconds`.
    """
    done: Queue = Queue()

    def run() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:  # whatever it is, it belongs to the caller
            done.put((None, error))

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        result, error = done.get(timeout=seconds)
    except Empty:
        raise Late(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return result
