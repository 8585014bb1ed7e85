"""Rows that are still missing from a store, made and written down part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rlaif.feedback.store import Store
from rlaif.progress import Progress

AT_ONCE = 256
"""Rows that are made, and then written down, together."""

T = TypeVar("T")


def fill(store: Store, todo: Sequence[T], make: Callable[[Sequence[T]], list[dict]], name: str) -> tuple[int, int]:
    """(rows made, rows masked). `make` gives a row for each of the things asked for; a kill costs one part at most."""
    made = failed = 0
    shown = Progress(len(todo), name)
    for start in range(0, len(todo), AT_ONCE):
        rows = make(todo[start : start + AT_ONCE])
        store.append(rows)
        masked = sum("masked" in row for row in rows)
        made, failed = made + len(rows) - masked, failed + masked
        shown.to(start + len(rows))
    shown.close()
    return made, failed
