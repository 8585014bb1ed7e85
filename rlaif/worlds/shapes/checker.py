"""Check answers against the scene itself: hallucination is counted, not judged.

Every function reads the ground truth from `prompt.extra["truth"]`, which no model receives.
"""

from __future__ import annotations

from rlaif.errors import DataError
from rlaif.records import Prompt
from rlaif.worlds.shapes.language import claims_of, parse_claims
from rlaif.worlds.shapes.scene import Scene

ROUNDING = 1e-9
"""Difference of two rewards that is nothing but rounding: their parts are fractions."""


def check(prompt: Prompt, response: str) -> dict[str, int]:
    """Return the counts for one answer. Raises DataError for a prompt of another world.

    A description has the number of its `claims`, of `false_claims` among them, of the scene's `truths` and of those
    `recalled`. A repeated claim counts once, a sentence that can't be read is a false claim, an empty answer claims and
    recalls nothing. A short answer is `correct`, 0 or 1.
    """
    kind = prompt.extra.get("kind")
    if kind == "qa":
        expected = (prompt.answer or "").lower().split()
        return {"correct": int(response.lower().split() == expected)}
    if kind != "describe":
        raise DataError(
            "kind `describe` or `qa`",
            f"{kind!r} in prompt {prompt.prompt_id}",
            "Use this checker only for prompts of the shapes world: set `eval.checker` or `ppo.reward` to a function of "
            "your own.",
        )
    scene = Scene.read(prompt.extra["truth"])
    truths = claims_of(scene.things)
    claims, unread = parse_claims(response)
    recalled = len(claims & truths)
    return {
        "claims": len(claims) + unread,
        "false_claims": len(claims) - recalled + unread,
        "truths": len(truths),
        "recalled": recalled,
    }


def reward(prompt: Prompt, response: str) -> dict[str, float]:
    """Return reward parts from the truth itself, for PPO without a reward model.

    The parts of a perfect answer sum to 1, those of an empty one to 0.
    """
    counts = check(prompt, response)
    if "correct" in counts:
        return {"correct": float(counts["correct"])}
    truths = counts["truths"]
    return {"recall": counts["recalled"] / truths, "false": -counts["false_claims"] / truths}


def preference(prompt: Prompt, a: str, b: str) -> int:
    """Return 1 if `a` is the truer answer, -1 if `b` is, 0 if the checker sees no difference."""
    first = sum(reward(prompt, a).values())
    second = sum(reward(prompt, b).values())
    return (first > second + ROUNDING) - (second > first + ROUNDING)
