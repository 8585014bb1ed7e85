"""What a file of records holds, counted as they pass by."""

from __future__ import annotations

import hashlib
import operator
import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlaif.data.preference import PreferencePair

DIGEST_BYTES = 12
"""Of a hash that stands for a prompt, a video or a pair: any two of 100 million are equal with odds of one to 10**13."""


def _word_counts() -> array:
    return array("L")


@dataclass
class Statistics:
    """Counts of the records of one file, in a few bytes per record."""

    rows: int = 0
    prompts: set[bytes] = field(default_factory=set)
    videos: set[bytes] = field(default_factory=set)
    dimensions: Counter = field(default_factory=Counter)
    agreeing: Counter = field(default_factory=Counter)
    """By dimension: pairs whose `chosen` is preferred in it too."""
    chosen: array = field(default_factory=_word_counts)
    """Words of every chosen answer that is a text; `rejected` likewise."""
    rejected: array = field(default_factory=_word_counts)
    answers: dict[bytes, bool] = field(default_factory=dict)
    """By pair, whatever its order: whether the smaller answer was chosen."""
    earlier_turns: int = 0
    """Pairs with turns before the question."""
    duplicates: int = 0
    contradictions: int = 0

    def add(self, record: Any) -> None:
        """Count a record."""
        self.rows += 1
        self.videos.update(_hash(video) for video in media(record))
        if isinstance(record, PreferencePair):
            self._add_pair(record)

    def _add_pair(self, pair: PreferencePair) -> None:
        prompt = (pair.video, pair.frames, pair.messages, pair.question)
        self.prompts.add(_hash(pair.prompt_id or prompt))
        self.earlier_turns += pair.earlier_turns
        for name, sign in pair.signs.items():
            self.dimensions[name] += 1
            self.agreeing[name] += sign == 1
        if not pair.chosen_video:
            self.chosen.append(len(pair.chosen.split()))
            self.rejected.append(len(pair.rejected.split()))
        answer = (pair.chosen, pair.chosen_video or "")
        other = (pair.rejected, pair.rejected_video or "")
        # sorted, so that a pair and the same one the other way round have one key
        key = _hash((prompt, *sorted((answer, other))))
        is_smaller = answer < other
        if key in self.answers:
            self.duplicates += 1
            self.contradictions += self.answers[key] != is_smaller
        self.answers.setdefault(key, is_smaller)

    def lines(self, kind: str) -> list[str]:
        """Return the counts as lines for people; `kind` is what the records are."""
        lines = [_line(kind, f"{self.rows:,}")]
        if self.prompts:
            lines.append(_line("prompts", f"{len(self.prompts):,}"))
        lines.append(_line("videos named", f"{len(self.videos):,}"))
        if self.earlier_turns:
            lines.append(_line("earlier turns", f"{self.earlier_turns:,} pairs; only the last question is read"))
        if self.answers:
            lines += self._pair_lines()
        return lines

    def _pair_lines(self) -> list[str]:
        lines = []
        for name, count in self.dimensions.most_common():
            share = self.agreeing[name] / count
            lines.append(_line("dimension", f"{name}: {count:,} pairs, chosen preferred in {share:.1%}"))
        if self.chosen:
            lines += [_words("chosen", self.chosen), _words("rejected", self.rejected)]
            longer = sum(map(operator.gt, self.chosen, self.rejected))
            lines.append(_line("chosen longer", f"{longer / len(self.chosen):.1%} of pairs"))
        both_ways = f"{self.contradictions:,} of them the other way round"
        lines.append(_line("duplicates", f"{self.duplicates:,} pairs, {both_ways}"))
        return lines


def media(record: Any) -> Sequence[str]:
    """Return every video that a record of any kind names: none of a conversation about text alone."""
    if hasattr(record, "media"):
        return record.media
    video = getattr(record, "video", None)
    return (video,) if video else ()


def _line(name: str, text: str) -> str:
    return f"{name:15} {text}"


def _words(name: str, counts: array) -> str:
    mean, median = statistics.fmean(counts), statistics.median(counts)
    return _line(name, f"words: mean {mean:.1f}, median {median:g}, {min(counts)} to {max(counts)}")


def _hash(value: object) -> bytes:
    return hashlib.blake2b(repr(value).encode("utf-8", "replace"), digest_size=DIGEST_BYTES).digest()
