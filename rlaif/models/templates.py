"""Filling templates, and keeping lists of texts within a token budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence


def fill(template: str, **values: str) -> str:
    """Named slots, each filled once: questions and captions may hold braces, even a slot's name."""
    return re.sub(r"\{(\w+)\}", lambda slot: values.get(slot[1], slot[0]), template)


def within_budget(
    captions: Sequence[str], count_tokens: Callable[[str], int], budget: int
) -> tuple[list[str], list[str]]:
    """(kept, left out): whole captions in time order, until one does not fit; no later one slips in.

    `budget` is in the tokens of `count_tokens`, of the captions alone: what joins them is not counted.
    """
    used = 0
    for index, caption in enumerate(captions):
        used += count_tokens(caption)
        if used > budget:
            return list(captions[:index]), list(captions[index:])
    return list(captions), []
