"""Read the first token of a judge's reply: how likely is each of the permitted answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rlaif.records import Masked

Tokens = Sequence[tuple[str, float | None]]
"""(text, log-prob in nats) of the likeliest first tokens, as an engine lists them; None if there was no number."""

_SPACES = str.maketrans("▁Ġ", "  ")
"""How tokenizers write a space before a word: SentencePiece as ▁, byte-level BPE as Ġ."""


def choice_logprobs(tokens: Tokens, choices: Iterable[str]) -> dict[str, float | None] | Masked:
    """Return the log-prob of each choice: its variants by case and surrounding space, summed as probabilities.

    None for a choice that is not listed while another one is. Masked if none is listed, or if a log-prob is not a finite
    number; a variant with probability 0 has no effect as long as the choice's sum is above 0.
    """
    logprobs: dict[str, float | None] = {}
    listed = False
    for choice in choices:
        values = [value for text, value in tokens if _same(text, choice)]
        logprobs[choice] = None
        if values:
            listed = True
            total = _sum_of_variants(values)
            if total is None:
                return Masked(f"log-prob of {choice!r} is not finite")
            logprobs[choice] = total
    if not listed:
        return Masked(f"none of {', '.join(map(repr, logprobs))} among the likeliest tokens")
    return logprobs


def _sum_of_variants(values: Sequence[float | None]) -> float | None:
    """Return the log of the summed probabilities, or None if it is not a finite number."""
    for value in values:
        # -inf is a probability of 0 and may be one of several variants.
        if value is None or math.isnan(value) or value == math.inf:
            return None
    total = log_sum_exp(values)
    return None if total == -math.inf else total


def log_sum_exp(values: Sequence[float]) -> float:
    """Return log(sum(exp(values))) without overflow; -inf for no values."""
    top = max(values, default=-math.inf)
    # Without this, -inf - -inf would be NaN.
    if top == -math.inf:
        return top
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x)) without overflow."""
    # exp of a positive number may overflow, so each sign has its own form.
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))


def _same(text: str, choice: str) -> bool:
    return text.translate(_SPACES).strip().casefold() == choice.strip().casefold()
