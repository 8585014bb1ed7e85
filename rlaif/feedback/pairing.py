"""From scored answers to preference pairs, with every pair that was not taken counted by its reason.

The result depends on nothing but the answers, the options and the seed: not on the order in which they come.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlaif.errors import ConfigError, ContractError
from rlaif.feedback.lengths import Balance, Mode, balance, words
from rlaif.feedback.pairwise import Verdict
from rlaif.records import Masked
from rlaif.seeds import derive

CLOSE = 1e-9
"""Score differences are compared up to this: 0.3 - 0.2 reaches a margin of 0.1."""


@dataclass(frozen=True)
class Candidate:
    """One answer to a prompt, with its score (higher is better) or why it has none."""

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
        """Normalised: case and spaces make no other answer."""
        return normalised(self.chosen.answer), normalised(self.rejected.answer)


@dataclass(frozen=True)
class PairOptions:
    """Which pairs are made; defaults are the configuration's."""

    choose: Literal["best_worst", "all"]
    """Of each prompt: the best answer with the worst, or every two answers."""
    margin: float
    """Least score difference; equal scores never make a pair."""
    per_prompt: int | None
    """Most pairs of one prompt, drawn by seed; None: no limit."""
    min_words: int
    """Answers with fewer words are left out."""
    lengths: Mode
    """Length balancing, see rlaif/feedback/lengths.py."""

    def __post_init__(self) -> None:
        if self.choose not in ("best_worst", "all"):
            raise ConfigError("choose: best_worst or all", repr(self.choose), "Set choose to one of these")
        if not self.margin >= 0 or self.min_words < 0 or (self.per_prompt is not None and self.per_prompt < 1):
            found = f"margin {self.margin}, min_words {self.min_words}, per_prompt {self.per_prompt}"
            raise ConfigError(
                "margin and min_words of 0 or more, per_prompt of 1 or more", found, "Correct these options"
            )


@dataclass(frozen=True)
class Built:
    """What was made, and everything that was not: candidates = usable + the sum of candidates_dropped, and
    considered (every two usable answers of a prompt) = pairs + the sum of dropped."""

    pairs: tuple[ScoredPair, ...]
    """Sorted by prompt and sample indices."""
    prompts: int
    """With any candidate."""
    candidates: int
    candidates_dropped: dict[str, int]
    considered: int
    dropped: dict[str, int]
    balance: Balance


def build(candidates: Iterable[Candidate], options: PairOptions, seed: int) -> Built:
    """Pairs of the candidates of each prompt. Raises ContractError for a key that comes twice."""
    every = sorted(candidates, key=lambda one: (one.prompt_id, one.sample_index))
    _check(every)
    unusable = {id(one): why for one in every if (why := _unusable(one, options))}
    usable = [one for one in every if id(one) not in unusable]
    groups = [list(group) for _, group in itertools.groupby(usable, key=lambda one: one.prompt_id)]
    dropped: Counter[str] = Counter()
    pairs = [pair for group in groups for pair in _of_prompt(group, options, seed, dropped)]
    pairs = _capped(_unique(pairs, dropped), options.per_prompt, seed, dropped)
    keep, found = balance(
        [words(p.chosen.answer) for p in pairs], [words(p.rejected.answer) for p in pairs], options.lengths
    )
    if unbalanced := int((~keep).sum()):
        dropped["length balance"] = unbalanced
    return Built(
        pairs=tuple(itertools.compress(pairs, keep)),
        prompts=len({one.prompt_id for one in every}),
        candidates=len(every),
        candidates_dropped=_counts(unusable.values()),
        considered=sum(math.comb(len(group), 2) for group in groups),
        dropped=dict(sorted(dropped.items())),
        balance=found,
    )


def win_scores(
    indices: Iterable[int], outcomes: Mapping[tuple[int, int], Verdict | Masked]
) -> dict[int, float | Masked]:
    """Scores of one prompt's answers from a pairwise judge: the mean probability of winning, in 0..1.

    outcomes: by (index of answer a, index of answer b). An answer without any verdict is masked.
    """
    wins: dict[int, list[float]] = {index: [] for index in sorted(indices)}
    for (a, b), outcome in sorted(outcomes.items(), key=lambda item: item[0]):
        if isinstance(outcome, Verdict):
            wins[a].append(outcome.p)
            wins[b].append(1 - outcome.p)
    return {index: math.fsum(p) / len(p) if p else Masked("no verdict on this answer") for index, p in wins.items()}


def normalised(text: str) -> str:
    return " ".join(text.casefold().split())


def _check(candidates: Sequence[Candidate]) -> None:
    for before, one in itertools.pairwise(candidates):
        if (one.prompt_id, one.sample_index) == (before.prompt_id, before.sample_index):
            found = f"prompt {one.prompt_id!r}, sample {one.sample_index} twice"
            raise ContractError("each candidate once", found, "Collect each candidate once")
        if one.prompt_id == before.prompt_id and (one.video, one.question) != (before.video, before.question):
            found = f"{before.video!r}, {before.question!r} and {one.video!r}, {one.question!r}"
            raise ContractError(
                f"one video and question in prompt {one.prompt_id!r}", found, "Give different prompts different ids"
            )


def _unusable(one: Candidate, options: PairOptions) -> str | None:
    count = words(one.answer)
    if isinstance(one.score, Masked):
        return "masked score"
    if not math.isfinite(one.score):
        return "score not finite"
    if not count:
        return "empty answer"
    return "short answer" if count < options.min_words else None


def _of_prompt(group: Sequence[Candidate], options: PairOptions, seed: int, dropped: Counter[str]) -> list[ScoredPair]:
    """Pairs of one prompt that are different, far enough apart and, with `best_worst`, the two extremes."""
    ranked = sorted(group, key=lambda one: (-one.score, derive(seed, "rank", one.prompt_id, one.sample_index)))
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
    """Without repeats of video, question and texts (the first by key stays), nor pairs that others contradict."""
    by_content: dict[tuple, list[ScoredPair]] = defaultdict(list)
    for pair in pairs:
        by_content[pair.chosen.video, pair.chosen.question, pair.texts].append(pair)
    kept = []
    for (video, question, texts), same in by_content.items():
        if (video, question, texts[::-1]) in by_content:
            dropped["contradicted"] += len(same)
            continue
        kept.append(min(same, key=lambda pair: pair.key))
        if len(same) > 1:
            dropped["duplicate"] += len(same) - 1
    return kept


def _capped(pairs: Sequence[ScoredPair], most: int | None, seed: int, dropped: Counter[str]) -> list[ScoredPair]:
    """At most so many of each prompt, drawn by (seed, prompt, samples) and never by call order; sorted by key."""
    drawn = sorted(pairs, key=lambda pair: (pair.key[0], derive(seed, "pairs", *pair.key), pair.key))
    kept = []
    for _, group in itertools.groupby(drawn, key=lambda pair: pair.key[0]):
        group = list(group)
        kept += group[:most]
        if most is not None and len(group) > most:
            dropped["over the limit per prompt"] += len(group) - most
    return sorted(kept, key=lambda pair: pair.key)


def _counts(reasons: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(reasons).items()))
