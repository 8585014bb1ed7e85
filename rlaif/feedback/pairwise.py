"""The verdict of a judge that compares two answers. It is asked twice, with each answer once in the first place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rlaif.feedback.tokens import Tokens, choice_logprobs, sigmoid
from rlaif.records import Masked

FlipPolicy = Literal["tie", "average"]
EXACT = 1e-9
"""Log-odds, or a distance from 1/2, below which nothing is preferred: the size of rounding errors."""


@dataclass(frozen=True)
class OrderOdds:
    """The judge's opinion on one order of the two answers."""

    log_odds: float
    """log p(first shown is better) - log p(second shown is better), in nats."""
    mass: float
    """Probability of both choices together among all tokens; low if the judge would rather say something else."""

    @property
    def p_first(self) -> float:
        """Probability that the answer shown first is better, among the two choices."""
        return sigmoid(self.log_odds)

    @property
    def side(self) -> int:
        """The preferred answer: 1 for the first shown, -1 for the second, 0 for neither."""
        return 0 if abs(self.log_odds) < EXACT else int(math.copysign(1, self.log_odds))


@dataclass(frozen=True)
class Verdict:
    """The verdict on answers a and b."""

    p: float
    """Probability that a is better; 1/2 for a tie."""
    winner: int
    """1: a, -1: b, 0: tie."""
    flipped: bool
    """The two orders prefer different answers: the position decided, not the answer."""
    orders: tuple[OrderOdds, OrderOdds]
    """With a shown first, with b shown first."""


def judge_pair(
    a_first: Tokens, b_first: Tokens, choices: tuple[str, str] = ("A", "B"), policy: FlipPolicy = "tie"
) -> Verdict | Masked:
    """Return the verdict from the first token of the judge's reply in both orders.

    choices: the reply's words for the answer shown first, and for the one shown second.
    policy: what a flipped pair becomes: `tie`, or the `average` of both orders, which decides every other pair too.
    Masked, with the reason, if either order cannot be read.
    """
    order_a = read_order(a_first, choices)
    if isinstance(order_a, Masked):
        return Masked(f"a first: {order_a.reason}")
    order_b = read_order(b_first, choices)
    if isinstance(order_b, Masked):
        return Masked(f"b first: {order_b.reason}")
    return decide(order_a, order_b, policy)


def read_order(tokens: Tokens, choices: tuple[str, str]) -> OrderOdds | Masked:
    """Return the opinion on one order; Masked if it cannot be read.

    A choice that is not listed counts as likely as the least likely listed token. It is at most that likely, so the
    verdict is never surer than the log-probs show.
    """
    logprobs = choice_logprobs(tokens, choices)
    if isinstance(logprobs, Masked):
        return logprobs
    first, second = logprobs[choices[0]], logprobs[choices[1]]
    mass = min(1.0, math.fsum((_probability(first), _probability(second))))
    if first is None or second is None:
        listed = [value for _, value in tokens if value is not None and math.isfinite(value)]
        # A single listed token would be the bound of itself, and the order would look undecided.
        if len(listed) < 2:
            return Masked("one token listed: ask for more log-probs")
        first = min(listed) if first is None else first
        second = min(listed) if second is None else second
    return OrderOdds(first - second, mass)


def _probability(logprob: float | None) -> float:
    """Return 0 for a choice that is not listed."""
    if logprob is None:
        return 0.0
    # A log-prob above 0 (rounding, or a server that shifts them all) counts as probability 1.
    return math.exp(min(logprob, 0.0))


def decide(a_first: OrderOdds, b_first: OrderOdds, policy: FlipPolicy = "tie") -> Verdict:
    """Combine both orders: p = (p(a | a first) + 1 - p(b | b first)) / 2, so that a preference for a place cancels out."""
    flipped = a_first.side * b_first.side > 0
    p = (a_first.p_first + 1 - b_first.p_first) / 2
    if (flipped and policy == "tie") or abs(p - 0.5) < EXACT:
        return Verdict(0.5, 0, flipped, (a_first, b_first))
    return Verdict(p, 1 if p > 0.5 else -1, flipped, (a_first, b_first))
