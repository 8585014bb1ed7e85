"""Answers that are cut after given tokens once they are sampled."""

from __future__ import annotations

from collections.abc import Sequence


def truncated_length(ids: Sequence[int], stops: Sequence[int]) -> int | None:
    """Return how many tokens of an answer remain, the one it is cut at included, or None if it has none of `stops`.

    The last of `stops` that occurs decides, at its first occurrence, even if another one precedes it.
    """
    # VLM-RLAIF searches for its two question marks in turn; the later match overwrites the earlier one, and the match of
    # the end-of-sequence token.
    tokens = [int(token) for token in ids]
    length = None
    for stop in stops:
        if stop in tokens:
            length = tokens.index(stop) + 1
    return length
