"""What a set of labels looks like: what was masked, how much the judge goes by the order, and whom it agrees with."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from actors.reward import load_function
from rlaif.config.schema import Config
from rlaif.evaluation.agreement import Compared, agreement
from rlaif.feedback.pairwise import Asked, Verdict
from rlaif.feedback.position import position_bias
from rlaif.records import Masked

if TYPE_CHECKING:
    from rlaif.stages.label import Case


def report(config: Config, cases: Sequence[Case], rows: Sequence[dict]) -> dict:
    """Counts over answers, order bias of a pairwise judge, and the share of pairs on which a reference agrees."""
    scores = [score for row in rows for score in row["scores"]]
    masked = Counter(score["masked"] for score in scores if "masked" in score)
    found = {"prompts": len(rows), "answers": len(scores), "masked": dict(masked)}
    if any("pairs" in row for row in rows):
        found["position"] = position_bias([_verdict(pair) for row in rows for pair in row["pairs"]])
    if any("claims" in row for row in rows):
        judged = [claim for row in rows for answer in row["claims"] if answer for claim in answer]
        rejected = sum(not claim["accepted"] for claim in judged)
        found |= {"claims": len(judged), "rejected": rejected, "empty": _empty(rows)}
    if config.label.reference:
        found["agreement"] = agreement(list(compared(config, cases, rows))) | {"reference": config.label.reference}
    return found


def compared(config: Config, cases: Sequence[Case], rows: Sequence[dict]) -> Iterator[Compared]:
    """Every two answers to a prompt, as the labels and `label.reference` order them."""
    prefer = load_function(config.label.reference)
    for case, row in zip(cases, rows, strict=True):
        scores = [score.get("score") for score in row["scores"]]
        for a, b in itertools.combinations(range(len(scores)), 2):
            if case.answers[a] != case.answers[b]:
                judged = None if None in (scores[a], scores[b]) else scores[a] - scores[b]
                kind = str(case.prompt.extra.get("kind", ""))
                yield Compared(judged, prefer(case.prompt, case.answers[a], case.answers[b]), prompt_type=kind)


def _empty(rows: Sequence[dict]) -> int:
    return sum(answer == [] for row in rows for answer in row["claims"])


def _verdict(pair: dict) -> Verdict | Masked:
    if "masked" in pair:
        return Masked(pair["masked"])
    first, second = (Asked(**order) for order in pair["orders"])
    return Verdict(pair["p"], pair["winner"], pair["flipped"], (first, second))
