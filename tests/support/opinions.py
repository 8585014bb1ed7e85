"""Judges and rewards that are functions with predictable opinions. Configurations name them as `opinions:name`."""

from __future__ import annotations

import math


def longer(prompt, a, b) -> int:
    """Prefer the answer with more letters."""
    return (len(a) > len(b)) - (len(a) < len(b))


def length(prompt, response) -> dict[str, float]:
    """Return parts by dimension: long answers are detailed, short ones brief."""
    return {"detail": 2.0 * len(response), "brevity": -1.0 * len(response)}


def no_opinion_of_red(prompt, response) -> float:
    """Score the length; fail for answers about red, and return infinity for infinite ones."""
    if "red" in response:
        raise ValueError("no opinion")
    return math.inf if "infinite" in response else float(len(response))


def by_video(prompt, response) -> dict[str, float]:
    """Score videos by the number in their names: high ones are helpful, low ones harmless."""
    number = float(prompt.video.rpartition("_")[2].partition(".")[0])
    return {"helpfulness": number, "harmlessness": -number}


def later(prompt, a, b) -> int:
    """Prefer the path that sorts later; prompts of such pairs have no video of their own."""
    assert prompt.video == ""
    return (a > b) - (a < b)


def no_preference(prompt, a, b) -> int:
    """Fail for every pair."""
    raise LookupError("nothing to compare")
