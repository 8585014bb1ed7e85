"""From a checker's verdicts on single answers to the rates of a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rlaif.records import Prompt

Checker = Callable[[Prompt, str], dict[str, int]]
"""f(prompt, response) -> {"claims", "false_claims", "truths", "recalled"} for descriptions, {"correct"} for short answers."""


def checker_rates(answers: Iterable[tuple[Prompt, str]], checker: Checker) -> dict[str, float]:
    """Return the rates of a policy's answers; a rate without anything to count is left out.

    hallucination = false claims / claims, recall = recalled truths / truths (both over all descriptions together),
    qa_accuracy = correct / short answers.
    """
    sums: dict[str, int] = {}
    short_answers = 0
    for prompt, response in answers:
        verdict = checker(prompt, response)
        short_answers += "correct" in verdict
        for name, count in verdict.items():
            sums[name] = sums.get(name, 0) + count
    fractions = {
        "hallucination": (sums.get("false_claims", 0), sums.get("claims", 0)),
        "recall": (sums.get("recalled", 0), sums.get("truths", 0)),
        "qa_accuracy": (sums.get("correct", 0), short_answers),
    }
    return {name: part / whole for name, (part, whole) in fractions.items() if whole}
