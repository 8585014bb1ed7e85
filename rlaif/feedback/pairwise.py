"""The verdict of a judge that is shown two answers, asked twice: each answer once in the first place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rlaif.feedback.tokens import Tokens, choice_logprobs, sigmoid
from rlaif.records import Masked

Policy = Literal["tie", "average"]
EXACT = 1e-9
"""Log-odds or distance from 1/2 below which nothing is preferred: what is left of rounding."""


@dataclass(frozen=True)
class Asked:
    """One order of the two answers."""

    log_odds: float
    """log p(first shown is better) - log p(second shown is better), in nats."""
    mass: float
    """Probability of both choices together among all tokens; low where the judge would rather say something else."""

    @property
    def p_first(self) -> float:
        """Probability that the answer shown first is better, among the two choices."""
        return sigmoid(self.log_odds)

    @property
    def side(self) -> int:
        """1 where the first shown is preferred, -1 the second, 0 neither."""
        return 0 if abs(self.log_odds) < EXACT else int(math.copysign(1, self.log_odds))


@dataclass(frozen=True)
class Verdict:
    """Of answers a and b."""

    p: float
    """Probability that a is better; 1/2 for a tie."""
    winner: int
    """1: a, -1: b, 0: tie."""
    flipped: bool
    """The two orders prefer different answers: what decided is the place, not the answer."""
    orders: tuple[Asked, Asked]
    """With a shown first, with b shown first."""


def judge(
    a_first: Tokens, b_first: Tokens, choices: tuple[str, str] = ("A", "B"), policy: Policy = "tie"
) -> Verdict | Masked:
    """The verdict from the first token of the judge's reply in both orders.

    choices: what the reply says for the answer shown first, and for the one shown second.
    policy: what a flipped pair becomes: `tie`, or the `average` of both orders, which decides every other pair too.
    Masked, with the reason, where either order cannot be read.
    """
    orders = []
    for tokens, shown in ((a_first, "a first"), (b_first, "b first")):
        order = read(tokens, choices)
        if isinstance(order, Masked):
            return Masked(f"{shown}: {order.reason}")
        orders.append(order)
    return decide(orders[0], orders[1], policy)


def read(tokens: Tokens, choices: tuple[str, str]) -> Asked | Masked:
    """One order. A choice that is not listed is taken to be as likely as the least likely token that is listed.

    It is at most that likely, so the verdict is never surer than what was seen.
    """
    found = choice_logprobs(tokens, choices)
    if isinstance(found, Masked):
        return found
    mass = min(1.0, math.fsum(math.exp(min(value, 0.0)) for value in found.values() if value is not None))
    if None in found.values():
        listed = [value for _, value in tokens if value is not None and math.isfinite(value)]
        if len(listed) < 2:
            return Masked("one token listed: ask for more log-probs")
        found = {choice: min(listed) if value is None else value for choice, value in found.items()}
    first, second = (found[choice] for choice in choices)
    return Asked(first - second, mass)


def decide(a_first: Asked, b_first: Asked, policy: Policy = "tie") -> Verdict:
    """Both orders together: p = (p(a | a first) + 1 - p(b | b first)) / 2, so that a preferred place cancels out."""
    flipped = a_first.side * b_first.side > 0
    p = (a_first.p_first + 1 - b_first.p_first) / 2
    if (flipped and policy == "tie") or abs(p - 0.5) < EXACT:
        return Verdict(0.5, 0, flipped, (a_first, b_first))
    return Verdict(p, 1 if p > 0.5 else -1, flipped, (a_first, b_first))
