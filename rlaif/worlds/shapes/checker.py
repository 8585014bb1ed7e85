"""Answers against the scene itself: hallucination is counted, not judged.

Every function reads the ground truth from `prompt.extra["truth"]`, which no model ever sees.
"""

from __future__ import annotations

from rlaif.errors import DataError
from rlaif.records import Prompt
from rlaif.worlds.shapes.language import claims_of, parse
from rlaif.worlds.shapes.scene import Scene


def check(prompt: Prompt, response: str) -> dict[str, int]:
    """Counts for one answer.

    Descriptions: `claims` made, `false_claims` among them, `truths` the scene holds and those `recalled`. A claim made
    twice counts once, a sentence that can't be read is a false claim, an empty answer claims and recalls nothing.
    Short answers: `correct`, 0 or 1.
    """
    kind = prompt.extra.get("kind")
    if kind == "qa":
        return {"correct": int(response.lower().split() == (prompt.answer or "").lower().split())}
    if kind != "describe":
        raise DataError(
            "kind `describe` or `qa`",
            f"{kind!r} in prompt {prompt.prompt_id}",
            "check only prompts of the shapes world",
        )
    truths = claims_of(Scene.read(prompt.extra["truth"]).things)
    claims, unread = parse(response)
    recalled = len(claims & truths)
    return {
        "claims": len(claims) + unread,
        "false_claims": len(claims) - recalled + unread,
        "truths": len(truths),
        "recalled": recalled,
    }


def reward(prompt: Prompt, response: str) -> dict[str, float]:
    """Reward parts from the truth itself, for PPO without a reward model; a perfect answer sums to 1, an empty one to 0."""
    counts = check(prompt, response)
    if "correct" in counts:
        return {"correct": float(counts["correct"])}
    return {"recall": counts["recalled"] / counts["truths"], "false": -counts["false_claims"] / counts["truths"]}


def preference(prompt: Prompt, a: str, b: str) -> int:
    """1 where `a` is the truer answer, -1 where `b` is, 0 where the checker sees no difference."""
    first, second = (sum(reward(prompt, answer).values()) for answer in (a, b))
    return (first > second + 1e-9) - (second > first + 1e-9)
