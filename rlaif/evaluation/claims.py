"""From a checker's verdicts on single answers to the rates of a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rlaif.records import Prompt

Checker = Callable[[Prompt, str], dict[str, int]]
"""f(prompt, response) -> {"claims", "false_claims", "truths", "recalled"} for descriptions, {"correct"} for short answers."""


def rates(answers: Iterable[tuple[Prompt, str]], checker: Checker) -> dict[str, float]:
    """hallucination = false claims / claims, recall = recalled truths / truths (both over all descriptions together),
    qa_accuracy = correct / short answers. A rate without anything to count is left out."""
    sums: dict[str, int] = {}
    asked = 0
    for prompt, response in answers:
        verdict = checker(prompt, response)
        asked += "correct" in verdict
        for name, count in verdict.items():
            sums[name] = sums.get(name, 0) + count
    found = {
        "hallucination": (sums.get("false_claims", 0), sums.get("claims", 0)),
        "recall": (sums.get("recalled", 0), sums.get("truths", 0)),
        "qa_accuracy": (sums.get("correct", 0), asked),
    }
    return {name: top / bottom for name, (top, bottom) in found.items() if bottom}
