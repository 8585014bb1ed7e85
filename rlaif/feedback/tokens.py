"""Reading the first token of a judge's reply: how likely is each of the answers it may give."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rlaif.records import Masked

Tokens = Sequence[tuple[str, float | None]]
"""(text, log-prob in nats) of the likeliest first tokens, as an engine lists them; None where there was no number."""

_SPACES = str.maketrans("▁Ġ", "  ")
"""How tokenizers write a space before a word."""


def choice_logprobs(tokens: Tokens, choices: Iterable[str]) -> dict[str, float | None] | Masked:
    """Log-prob of each choice: its variants by case and surrounding space, summed as probabilities.

    None for a choice that is not listed while another one is. Masked where none is, or where a log-prob is not a finite
    number; a variant of probability 0 is no harm as long as the choice's sum is above 0.
    """
    found: dict[str, float | None] = {}
    for choice in choices:
        values = [value for text, value in tokens if _same(text, choice)]
        if not values:
            found[choice] = None
            continue
        if any(value is None or math.isnan(value) or value == math.inf for value in values):
            return Masked(f"log-prob of {choice!r} is not finite")
        found[choice] = log_sum_exp(values)
        if found[choice] == -math.inf:
            return Masked(f"log-prob of {choice!r} is not finite")
    if all(value is None for value in found.values()):
        return Masked(f"none of {', '.join(map(repr, found))} among the likeliest tokens")
    return found


def log_sum_exp(values: Sequence[float]) -> float:
    """log(sum(exp(values))) without overflow; -inf for nothing."""
    top = max(values, default=-math.inf)
    return top if top == -math.inf else top + math.log(math.fsum(math.exp(value - top) for value in values))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _same(text: str, choice: str) -> bool:
    return text.translate(_SPACES).strip().casefold() == choice.strip().casefold()
