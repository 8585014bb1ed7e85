"""Makes the rows that are missing from a store, and writes them part by part."""

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

ROWS_PER_PART = 256
"""Rows that are made, and then written, together: a kill costs at most these."""

T = TypeVar("T")


def fill_store(
    store: Store, todo: Sequence[T], make: Callable[[Sequence[T]], list[dict]], name: str
) -> tuple[int, int]:
    """Make the rows of `todo` and append them to the store. Returns (rows made, rows masked).

    Masked rows are counted and named by reason; they are the store's unfinished rows, which the next call makes again.

    Args:
        store: the file that receives the rows.
        todo: what to make rows of.
        make: returns one row for each of the items it receives.
        name: what the rows are, for progress and warnings.
    """
    finished = failed = 0
    masked: dict[str, list[str]] = defaultdict(list)
    progress = Progress(len(todo), name)
    for start in range(0, len(todo), ROWS_PER_PART):
        rows = make(todo[start : start + ROWS_PER_PART])
        store.append(rows)
        for row in rows:
            if "masked" in row:
                failed += 1
                # Rows of answers have a prompt, rows of captions only a video.
                masked[row["masked"]].append(row.get("prompt_id") or row["video"])
            else:
                finished += 1
        progress.to(start + len(rows))
    progress.close()
    _warn(name, masked)
    return finished, failed


def counts_text(counts: Mapping[str, int]) -> str:
    """Return counts as a line of a log: `3 made, 1 failed`."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _warn(name: str, masked: Mapping[str, Sequence[str]]) -> None:
    for reason, rows in list(masked.items())[:SHOWN]:
        # Reasons of libraries may have line breaks; a warning is one line.
        line = " ".join(reason.split())
        log.warning("%s: %d masked, %s: %s", name, len(rows), line, named(rows))
    if len(masked) > SHOWN:
        log.warning("%s: masked for %d more reasons", name, len(masked) - SHOWN)
