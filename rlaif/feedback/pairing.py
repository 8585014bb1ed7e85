"""From scored answers to preference pairs. Every pair that was not taken is counted by its reason.

The result depends only on the answers, the options and the seed, not on the order of the answers.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlaif.errors import ConfigError, ContractError
from rlaif.feedback.lengths import Balance, BalanceMode, balance, words
from rlaif.feedback.pairwise import Verdict
from rlaif.records import Masked
from rlaif.seeds import derive

CLOSE = 1e-9
"""Score differences are compared up to this: 0.3 - 0.2 reaches a margin of 0.1."""


@dataclass(frozen=True)
class Candidate:
    """One answer to a prompt, with its score (higher is better) or the reason why it has none."""

    prompt_id: str
    sample_index: int
    video: str
    question: str
    answer: str
    score: float | Masked


@dataclass(frozen=True)
class ScoredPair:
    """A pair of answers to one prompt, the better one first."""

    chosen: Candidate
    rejected: Candidate

    @property
    def margin(self) -> float:
        """Score difference, above 0."""
        return self.chosen.score - self.rejected.score

    @property
    def key(self) -> tuple[str, int, int]:
        return self.chosen.prompt_id, self.chosen.sample_index, self.rejected.sample_index

    @property
    def texts(self) -> tuple[str, str]:
        """Both answers normalised: case and spaces do not make a different answer."""
        return normalised(self.chosen.answer), normalised(self.rejected.answer)


@dataclass(frozen=True)
class PairOptions:
    """Which pairs are made. Raises ConfigError for values that cannot work; defaults are the configuration's."""

    choose: Literal["best_worst", "all"]
    """For each prompt: the best answer with the worst, or every two answers."""
    margin: float
    """Least score difference; equal scores never make a pair."""
    per_prompt: int | None
    """Most pairs of one prompt, drawn by seed; None: no limit."""
    min_words: int
    """Answers with fewer words are left out."""
    lengths: BalanceMode
    """Length balancing, see rlaif/feedback/lengths.py."""

    def __post_init__(self) -> None:
        if self.choose not in ("best_worst", "all"):
            raise ConfigError("choose: best_worst or all", repr(self.choose), "Set choose to one of these.")
        # `not >=` rather than `<`: a margin that is NaN is refused too.
        if not self.margin >= 0 or self.min_words < 0 or (self.per_prompt is not None and self.per_prompt < 1):
            values = f"margin {self.margin}, min_words {self.min_words}, per_prompt {self.per_prompt}"
            raise ConfigError(
                "margin and min_words of 0 or more, per_prompt of 1 or more", values, "Correct these options."
            )


@dataclass(frozen=True)
class PairSet:
    """The pairs that were made, and counts of everything that was not.

    candidates = usable + the sum of candidates_dropped, and considered (every two usable answers of a prompt) = pairs +
    the sum of dropped.
    """

    pairs: tuple[ScoredPair, ...]
    """Sorted by prompt and sample indices."""
    prompts: int
    """Prompts with any candidate."""
    candidates: int
    candidates_dropped: dict[str, int]
    considered: int
    dropped: dict[str, int]
    balance: Balance


def build_pairs(candidates: Iterable[Candidate], options: PairOptions, seed: int) -> PairSet:
    """Make pairs of the candidates of each prompt.

    Raises ContractError for a key that comes twice, and for a prompt with two videos or questions.
    """
    every = sorted(candidates, key=_place)
    _check(every)
    usable, unusable = _usable(every, options)
    # `groupby` needs equal prompts next to each other, as `every` is sorted.
    groups = [list(group) for _, group in itertools.groupby(usable, key=_prompt_of)]
    dropped: Counter[str] = Counter()
    pairs: list[ScoredPair] = []
    for group in groups:
        pairs += _pairs_of_prompt(group, options, seed, dropped)
    # The limit per prompt comes after the removal of repeats, so that no repeat takes the place of another pair.
    pairs = _capped(_unique(pairs, dropped), options.per_prompt, seed, dropped)
    chosen_words = [words(pair.chosen.answer) for pair in pairs]
    rejected_words = [words(pair.rejected.answer) for pair in pairs]
    keep, balanced = balance(chosen_words, rejected_words, options.lengths)
    if unbalanced := int((~keep).sum()):
        dropped["length balance"] = unbalanced
    return PairSet(
        pairs=tuple(itertools.compress(pairs, keep)),
        prompts=len({candidate.prompt_id for candidate in every}),
        candidates=len(every),
        candidates_dropped=_sorted_counts(unusable),
        considered=sum(math.comb(len(group), 2) for group in groups),
        dropped=_sorted_counts(dropped),
        balance=balanced,
    )


def win_scores(
    indices: Iterable[int], outcomes: Mapping[tuple[int, int], Verdict | Masked]
) -> dict[int, float | Masked]:
    """Return the scores of one prompt's answers from a pairwise judge: the mean probability of winning, in 0..1.

    outcomes: by (index of answer a, index of answer b). An answer without any verdict is masked.
    """
    wins: dict[int, list[float]] = {index: [] for index in sorted(indices)}
    for a, b in sorted(outcomes):
        outcome = outcomes[a, b]
        if isinstance(outcome, Verdict):
            wins[a].append(outcome.p)
            wins[b].append(1 - outcome.p)
    scores: dict[int, float | Masked] = {}
    for index, shares in wins.items():
        # fsum is exact, so the mean does not depend on the order of the verdicts.
        scores[index] = math.fsum(shares) / len(shares) if shares else Masked("no verdict on this answer")
    return scores


def normalised(text: str) -> str:
    """Return a text in lower case with single spaces."""
    return " ".join(text.casefold().split())


def _place(candidate: Candidate) -> tuple[str, int]:
    return candidate.prompt_id, candidate.sample_index


def _prompt_of(candidate: Candidate) -> str:
    return candidate.prompt_id


def _check(candidates: Sequence[Candidate]) -> None:
    """Raise ContractError if a key comes twice or a prompt has two videos or questions; candidates are sorted by key."""
    for before, candidate in itertools.pairwise(candidates):
        if _place(candidate) == _place(before):
            repeat = f"prompt {candidate.prompt_id!r}, sample {candidate.sample_index} twice"
            raise ContractError("each candidate once", repeat, "Collect each candidate once.")
        content, content_before = (candidate.video, candidate.question), (before.video, before.question)
        if candidate.prompt_id == before.prompt_id and content != content_before:
            both = f"{before.video!r}, {before.question!r} and {candidate.video!r}, {candidate.question!r}"
            raise ContractError(
                f"one video and question in prompt {candidate.prompt_id!r}",
                both,
                "Give different prompts different ids.",
            )


def _usable(candidates: Sequence[Candidate], options: PairOptions) -> tuple[list[Candidate], Counter[str]]:
    """Return the usable candidates, and how many others there are by reason."""
    usable: list[Candidate] = []
    reasons: Counter[str] = Counter()
    for candidate in candidates:
        reason = _why_unusable(candidate, options)
        if reason:
            reasons[reason] += 1
        else:
            usable.append(candidate)
    return usable, reasons


def _why_unusable(candidate: Candidate, options: PairOptions) -> str | None:
    count = words(candidate.answer)
    if isinstance(candidate.score, Masked):
        return "masked score"
    if not math.isfinite(candidate.score):
        return "score not finite"
    if not count:
        return "empty answer"
    return "short answer" if count < options.min_words else None


def _pairs_of_prompt(
    group: Sequence[Candidate], options: PairOptions, seed: int, dropped: Counter[str]
) -> list[ScoredPair]:
    """Return the pairs of one prompt that differ, reach the margin and, with `best_worst`, are the two extremes."""

    def rank(candidate: Candidate) -> tuple[float, int]:
        # Ties are broken by seed, not by position: else the first answer would always be the better one.
        return -candidate.score, derive(seed, "rank", candidate.prompt_id, candidate.sample_index)

    ranked = sorted(group, key=rank)
    extremes = (ranked[0], ranked[-1])
    pairs = []
    for better, worse in itertools.combinations(ranked, 2):
        pair = ScoredPair(better, worse)
        if options.choose == "best_worst" and (better, worse) != extremes:
            dropped["not best and worst"] += 1
        elif pair.texts[0] == pair.texts[1]:
            dropped["equal answers"] += 1
        elif pair.margin <= CLOSE:
            dropped["tied"] += 1
        elif pair.margin < options.margin - CLOSE:
            dropped["below the margin"] += 1
        else:
            pairs.append(pair)
    return sorted(pairs, key=lambda pair: pair.key)


def _unique(pairs: Sequence[ScoredPair], dropped: Counter[str]) -> list[ScoredPair]:
    """Remove repeats of video, question and texts (the first by key stays), and pairs that others contradict."""
    by_content: dict[tuple, list[ScoredPair]] = defaultdict(list)
    for pair in pairs:
        by_content[pair.chosen.video, pair.chosen.question, pair.texts].append(pair)
    unique = []
    for (video, question, texts), repeats in by_content.items():
        # Both sides of a contradiction go: nothing tells which of them is right.
        if (video, question, texts[::-1]) in by_content:
            dropped["contradicted"] += len(repeats)
            continue
        unique.append(min(repeats, key=lambda pair: pair.key))
        if len(repeats) > 1:
            dropped["duplicate"] += len(repeats) - 1
    return unique


def _capped(pairs: Sequence[ScoredPair], most: int | None, seed: int, dropped: Counter[str]) -> list[ScoredPair]:
    """Keep at most `most` pairs of each prompt, drawn by (seed, prompt, samples); the result is sorted by key.

    The draw never depends on the order of calls.
    """

    def draw(pair: ScoredPair) -> tuple[str, int, tuple[str, int, int]]:
        # The key decides between pairs with the same draw.
        return pair.chosen.prompt_id, derive(seed, "pairs", *pair.key), pair.key

    drawn = sorted(pairs, key=draw)
    capped: list[ScoredPair] = []
    for _, of_prompt in itertools.groupby(drawn, key=lambda pair: pair.key[0]):
        group = list(of_prompt)
        capped += group[:most]
        if most is not None and len(group) > most:
            dropped["over the limit per prompt"] += len(group) - most
    return sorted(capped, key=lambda pair: pair.key)


def _sorted_counts(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))
