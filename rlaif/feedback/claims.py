"""Divide and conquer: split an answer into claims, ask about each claim alone, and count the rejected ones.

After RLAIF-V (Yu et al. 2024): a claim is accepted if p(yes) > p(no) at the first token of the labeler's reply, and
an answer's score is minus the number of its rejected claims.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.feedback.sentences import sentences
from rlaif.feedback.tokens import Tokens, choice_logprobs
from rlaif.records import Masked

# A number needs a space after its dot: "3.5 metres" begins no item.
_ITEM = re.compile(r"(?:[-–—•*]\s*|\(?\d{1,3}[.)]\s+)(.*)")


# -- divide


def split_claims(answer: str) -> list[str]:
    """Return the claims of an answer: its sentences and list items in order, each wording once.

    No part of the answer is cut off.
    """
    return list(count_claims(sentences(answer)))


def count_claims(claims: Sequence[str]) -> dict[str, int]:
    """Return how often each claim is made, by its first wording and in the order of the first mentions.

    Claims that differ by case, spaces or final dots alone are one claim.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for claim in claims:
        form = _normal_form(claim)
        counts[form] += 1
        first.setdefault(form, claim)
    return {claim: counts[form] for form, claim in first.items()}


def parse_list(reply: str) -> list[str]:
    """Return the claims of a model's list: one for each line that begins with a dash, bullet or number.

    An indented line continues the claim above it. Other lines (an introduction, a closing remark) are no claims, and
    neither are items without a letter or digit.
    """
    claims: list[str] = []
    inside_item = False
    for line in reply.splitlines():
        text = line.strip()
        item = _ITEM.match(text)
        if item:
            claims.append(item[1].strip())
            inside_item = True
        elif inside_item and text and line[0].isspace():
            claims[-1] = f"{claims[-1]} {text}"
        else:
            inside_item = False
    return [claim for claim in claims if re.search(r"\w", claim)]


# -- conquer


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim's verdict. Probabilities are among all tokens."""

    p_yes: float
    p_no: float
    accepted: bool


@dataclass(frozen=True)
class Evidence:
    """One claim of an answer and its verdict."""

    claim: str
    times: int
    """How often the answer makes the claim; it is judged and counted once."""
    judged: ClaimVerdict


@dataclass(frozen=True)
class ClaimScore:
    """An answer's score and the verdicts behind it."""

    score: int
    """-(rejected claims): 0 is best."""
    evidence: tuple[Evidence, ...]

    @property
    def empty(self) -> bool:
        """Whether there are no claims: then the score 0 means nothing."""
        return not self.evidence


def judge_claim(tokens: Tokens, yes: str, no: str, reject_at: float = 0.5) -> ClaimVerdict | Masked:
    """Return the verdict from the first token of the reply; p is summed over the variants of each word.

    The claim is rejected if p(no) is at least `reject_at` of p(yes) + p(no); with 0.5, RLAIF-V's rule, a tie is rejected.
    A word that is not among the listed tokens counts as probability 0. Masked if neither word is listed, or if a log-prob
    is not finite.
    """
    logprobs = choice_logprobs(tokens, (yes, no))
    if isinstance(logprobs, Masked):
        return logprobs
    log_yes, log_no = _or_zero(logprobs[yes]), _or_zero(logprobs[no])
    # p_no / (p_yes + p_no) < r  <=>  log p_no - log p_yes < log(r / (1 - r)); in logs even tiny probabilities compare.
    accepted = log_no - log_yes < math.log(reject_at) - math.log1p(-reject_at)
    return ClaimVerdict(math.exp(log_yes), math.exp(log_no), accepted)


def claim_score(claims: dict[str, int], judgements: Sequence[ClaimVerdict | Masked]) -> ClaimScore | Masked:
    """Return an answer's score from its claims (see `count_claims`) and one judgement for each, in the same order.

    Masked if their numbers differ or any judgement is masked: a claim that could not be judged is not an accepted one.
    """
    if len(claims) != len(judgements):
        return Masked(f"{len(claims)} claims, but {len(judgements)} judgements")
    evidence, rejected = [], 0
    for (claim, times), judgement in zip(claims.items(), judgements, strict=True):
        if isinstance(judgement, Masked):
            return Masked(f"a claim was not judged: {judgement.reason}")
        evidence.append(Evidence(claim, times, judgement))
        # Once, however often the answer makes the claim.
        rejected += not judgement.accepted
    return ClaimScore(-rejected, tuple(evidence))


def _or_zero(logprob: float | None) -> float:
    """Return the log-prob; that of probability 0 for a word that is not listed."""
    return -math.inf if logprob is None else logprob


def _normal_form(claim: str) -> str:
    return " ".join(claim.casefold().split()).rstrip(" .!")
