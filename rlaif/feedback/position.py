"""How much a pairwise judge follows the position of an answer instead of the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlaif.feedback.pairwise import EXACT, Verdict
from rlaif.records import Masked

ONE_SIDED = 0.95
"""Share of decisions for one place from which on a judge counts as always naming it. A fair judge is at 1/2, as each
pair is shown in both orders."""
ENOUGH = 5
"""Verdicts that such a claim needs."""
RATES = ("flip_rate", "flip_rate_debiased", "first_share", "mean_p_first", "log_odds_first", "mean_mass", "ties")


def position_bias(outcomes: Sequence[Verdict | Masked]) -> dict[str, Any]:
    """Return statistics over many verdicts; rates are None without any.

    flip_rate: pairs whose two orders prefer different answers. first_share: of all single decisions, those for the
    answer shown first (an undecided one counts half). mean_p_first: its mean probability. log_odds_first: the mean
    preference for the first place in nats; flip_rate_debiased is the flip rate once that is subtracted from every
    order. mean_mass: probability of the two choices among all tokens. one_sided: `first` or `second` for a judge that
    always names that place, with a `warning` in words.
    """
    verdicts: list[Verdict] = []
    masked: Counter[str] = Counter()
    for outcome in outcomes:
        if isinstance(outcome, Masked):
            masked[outcome.reason] += 1
        else:
            verdicts.append(outcome)
    report: dict[str, Any] = {"verdicts": len(verdicts)}
    report["masked"] = dict(sorted(masked.items()))
    report |= {"one_sided": "", "warning": ""}
    report |= dict.fromkeys(RATES)
    if verdicts:
        report |= _rates(verdicts)
        report |= _one_sided(report["first_share"], len(verdicts))
    return report


def _rates(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    log_odds, p_first, mass, ties = [], [], [], 0
    for verdict in verdicts:
        ties += verdict.winner == 0
        for order in verdict.orders:
            log_odds.append(order.log_odds)
            p_first.append(order.p_first)
            mass.append(order.mass)
    odds = np.array(log_odds).reshape(len(verdicts), 2)
    sides = _sides(odds)
    return {
        "ties": ties,
        "flip_rate": _flips(odds),
        # The answers' own effect cancels in the mean: every pair is shown in both orders.
        "flip_rate_debiased": _flips(odds - odds.mean()),
        "first_share": float(np.mean((sides + 1) / 2)),
        "mean_p_first": float(np.mean(p_first)),
        "log_odds_first": float(odds.mean()),
        "mean_mass": float(np.mean(mass)),
    }


def _sides(odds: np.ndarray) -> np.ndarray:
    return np.sign(np.where(np.abs(odds) < EXACT, 0.0, odds))


def _flips(odds: np.ndarray) -> float:
    """Return the share of pairs whose orders prefer the same place, hence different answers. odds: [N, 2]."""
    return float(np.mean(_sides(odds).prod(1) > 0))


def _one_sided(first_share: float, verdicts: int) -> dict[str, str]:
    share, place = max((first_share, "first"), (1 - first_share, "second"))
    if share < ONE_SIDED or verdicts < ENOUGH:
        return {}
    return {
        "one_sided": place,
        "warning": f"the judge names the {place} answer in {share:.0%} of its decisions, whichever answer that is: its "
        "labels say nothing about the answers. Change the judge's prompt or the choices, or take another judge",
    }
