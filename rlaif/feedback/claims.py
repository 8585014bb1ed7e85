"""Divide and conquer: an answer is cut into claims, each claim is asked for alone, and rejected claims are counted.

After RLAIF-V (Yu et al. 2024): a claim is accepted where p(yes) > p(no) at the first token of the labeler's reply, and
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

_ITEM = re.compile(r"(?:[-–—•*]\s*|\(?\d{1,3}[.)]\s+)(.*)")


# -- divide


def split(answer: str) -> list[str]:
    """The claims of an answer: its sentences and list items in order, each wording once; nothing is cut off."""
    return list(tally(sentences(answer)))


def tally(claims: Sequence[str]) -> dict[str, int]:
    """Each claim, in its first wording and order, with how often it is made (case, spaces and final dots aside)."""
    counts = Counter(map(_same_as, claims))
    first: dict[str, str] = {}
    for claim in claims:
        first.setdefault(_same_as(claim), claim)
    return {claim: counts[same] for same, claim in first.items()}


def parse_list(reply: str) -> list[str]:
    """Claims from a model's list: one for each line that begins with a dash, bullet or number.

    An indented line goes on with the claim above it; other lines (a lead-in, a closing remark) are no claims.
    """
    claims: list[str] = []
    open_ = False
    for line in reply.splitlines():
        if item := _ITEM.match(line.strip()):
            claims.append(item[1].strip())
        elif open_ and line[:1].isspace() and line.strip():
            claims[-1] = f"{claims[-1]} {line.strip()}"
            continue
        open_ = item is not None
    return [claim for claim in claims if re.search(r"\w", claim)]


# -- conquer


@dataclass(frozen=True)
class Judged:
    """A claim's verdict. Probabilities among all tokens."""

    p_yes: float
    p_no: float
    accepted: bool


@dataclass(frozen=True)
class Evidence:
    claim: str
    times: int
    """How often the answer makes it; it is judged and counted once."""
    judged: Judged


@dataclass(frozen=True)
class ClaimScore:
    score: int
    """-(rejected claims): 0 is best."""
    evidence: tuple[Evidence, ...]

    @property
    def empty(self) -> bool:
        """No claims: the score 0 means nothing then."""
        return not self.evidence


def judge_claim(tokens: Tokens, yes: str, no: str, reject_at: float = 0.5) -> Judged | Masked:
    """The verdict from the first token of the reply; p is summed over the variants of each word.

    The claim is rejected where p(no) is at least `reject_at` of p(yes) + p(no); with 0.5, RLAIF-V's rule, a tie is one.
    A word that is not among the listed tokens counts as probability 0. Masked where neither is, or where a log-prob is
    not finite.
    """
    found = choice_logprobs(tokens, (yes, no))
    if isinstance(found, Masked):
        return found
    log_yes, log_no = (-math.inf if found[word] is None else found[word] for word in (yes, no))
    accepted = log_no - log_yes < math.log(reject_at) - math.log1p(-reject_at)
    return Judged(math.exp(log_yes), math.exp(log_no), accepted)


def score(claims: dict[str, int], judgements: Sequence[Judged | Masked]) -> ClaimScore | Masked:
    """An answer's score from its claims (see `tally`) and one judgement for each, in the same order.

    Masked where their numbers differ or any judgement is masked: a claim that could not be judged is no accepted one.
    """
    if len(claims) != len(judgements):
        return Masked(f"{len(claims)} claims, but {len(judgements)} judgements")
    for judgement in judgements:
        if isinstance(judgement, Masked):
            return Masked(f"a claim was not judged: {judgement.reason}")
    pairs = zip(claims.items(), judgements, strict=True)
    evidence = tuple(Evidence(claim, times, judged) for (claim, times), judged in pairs)
    rejected = sum(not item.judged.accepted for item in evidence)
    return ClaimScore(-rejected, evidence)


def _same_as(claim: str) -> str:
    return " ".join(claim.casefold().split()).rstrip(" .!")
