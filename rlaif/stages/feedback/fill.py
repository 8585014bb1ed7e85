"""Rows that are still missing from a store, made and written down part by part."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from rlaif.data.rows import SHOWN
from rlaif.errors import named
from rlaif.feedback.store import Store
from rlaif.io.progress import Progress

log = logging.getLogger(__name__)

AT_ONCE = 256
"""Rows that are made, and then written down, together."""

T = TypeVar("T")


def fill(store: Store, todo: Sequence[T], make: Callable[[Sequence[T]], list[dict]], name: str) -> tuple[int, int]:
    """(rows made, rows masked). `make` gives a row for each of the things asked for; a kill costs one part at most.

    What is masked is counted and named by reason; as the store's unfinished rows they are made again by the next call.
    """
    made = failed = 0
    why: dict[str, list[str]] = defaultdict(list)
    shown = Progress(len(todo), name)
    for start in range(0, len(todo), AT_ONCE):
        rows = make(todo[start : start + AT_ONCE])
        store.append(rows)
        masked = [row for row in rows if "masked" in row]
        made, failed = made + len(rows) - len(masked), failed + len(masked)
        for row in masked:
            why[row["masked"]].append(row.get("prompt_id") or row["video"])
        shown.to(start + len(rows))
    shown.close()
    _warn(name, why)
    return made, failed


def _warn(name: str, why: Mapping[str, Sequence[str]]) -> None:
    for reason, rows in list(why.items())[:SHOWN]:
        log.warning("%s: %d masked, %s: %s", name, len(rows), " ".join(reason.split()), named(rows))
    if len(why) > SHOWN:
        log.warning("%s: masked for %d more reasons", name, len(why) - SHOWN)
