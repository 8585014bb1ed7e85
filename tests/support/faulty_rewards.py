"""Reward functions that fail on some samples. Actors import them from the working directory: `tests.support...:name`."""

from __future__ import annotations

import math
import time

_prompts: set[str] = set()


def nan_at_first(prompt, response) -> float:
    """Return NaN for the first answer to each prompt that this process scores, 1 after that."""
    is_first = prompt.prompt_id not in _prompts
    _prompts.add(prompt.prompt_id)
    return math.nan if is_first else 1.0


def hangs_if_marked(prompt, response) -> float:
    """Return 1, but never return for a row with `"hangs": true`."""
    if prompt.extra.get("hangs"):
        time.sleep(10**6)
    return 1.0


def infinite_sum_at_first(prompt, response) -> dict[str, float]:
    """Return finite parts with an infinite sum for the first answer to each prompt, and a reward of 1 after that."""
    is_first = prompt.prompt_id not in _prompts
    _prompts.add(prompt.prompt_id)
    return {"a": 1e308, "b": 1e308} if is_first else {"a": 1.0, "b": 0.0}
