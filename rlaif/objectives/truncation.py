"""Answers cut behind given tokens after sampling."""

from __future__ import annotations

from collections.abc import Sequence


def kept_tokens(ids: Sequence[int], stops: Sequence[int]) -> int | None:
    """How many tokens of an answer are kept, the one it is cut at included; None: it has none of `stops`.

    The last of `stops` that occurs decides, at its first occurrence, even where another stands before it (VLM-RLAIF
    looks for its two question marks in turn, and the later find overwrites the earlier one and the end of sequence).
    """
    ids = [int(token) for token in ids]
    found = [ids.index(stop) + 1 for stop in stops if stop in ids]
    return found[-1] if found else None
