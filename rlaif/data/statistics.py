"""What a file of records holds, counted as they pass by."""

from __future__ import annotations

import hashlib
import statistics
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rlaif.data.preference import PreferencePair


@dataclass
class Statistics:
    """Memory: a few bytes per record."""

    rows: int = 0
    prompts: set[bytes] = field(default_factory=set)
    videos: set[bytes] = field(default_factory=set)
    dimensions: Counter = field(default_factory=Counter)
    agreeing: Counter = field(default_factory=Counter)
    """By dimension: pairs of which `chosen` is preferred in it too."""
    chosen: array = field(default_factory=lambda: array("L"))
    """Words of every chosen answer that is a text; so is `rejected`."""
    rejected: array = field(default_factory=lambda: array("L"))
    answers: dict[bytes, bool] = field(default_factory=dict)
    """Pairs seen, whatever their order, and whether the smaller answer was chosen."""
    earlier_turns: int = 0
    """Pairs with turns before the question."""
    duplicates: int = 0
    contradictions: int = 0

    def add(self, record: Any) -> None:
        self.rows += 1
        self.videos.update(_hash(video) for video in media(record))
        if isinstance(record, PreferencePair):
            self._add_pair(record)

    def _add_pair(self, pair: PreferencePair) -> None:
        asked = (pair.video, pair.frames, pair.messages, pair.question)
        self.prompts.add(_hash(pair.prompt_id or asked))
        self.earlier_turns += len(pair.messages) > 1
        for name, sign in pair.signs.items():
            self.dimensions[name] += 1
            self.agreeing[name] += sign == 1
        if not pair.chosen_video:
            self.chosen.append(len(pair.chosen.split()))
            self.rejected.append(len(pair.rejected.split()))
        two = ((pair.chosen, pair.chosen_video or ""), (pair.rejected, pair.rejected_video or ""))
        key, first = _hash((asked, *sorted(two))), two[0] < two[1]
        if key in self.answers:
            self.duplicates += 1
            self.contradictions += self.answers[key] != first
        self.answers.setdefault(key, first)

    def lines(self, kind: str) -> list[str]:
        """For people."""
        told = [f"{kind:15} {self.rows:,}"]
        if self.prompts:
            told.append(f"{'prompts':15} {len(self.prompts):,}")
        told.append(f"{'videos named':15} {len(self.videos):,}")
        if self.earlier_turns:
            told.append(f"{'earlier turns':15} {self.earlier_turns:,} pairs; only the last question is read")
        if not self.answers:
            return told
        for name, count in self.dimensions.most_common():
            told.append(
                f"{'dimension':15} {name}: {count:,} pairs, chosen preferred in {self.agreeing[name] / count:.1%}"
            )
        if self.chosen:
            longer = sum(a > b for a, b in zip(self.chosen, self.rejected, strict=True)) / len(self.chosen)
            told += [_words("chosen", self.chosen), _words("rejected", self.rejected)]
            told.append(f"{'chosen longer':15} {longer:.1%} of pairs")
        told.append(f"{'duplicates':15} {self.duplicates:,} pairs, {self.contradictions:,} of them the other way round")
        return told


def media(record: Any) -> tuple[str, ...]:
    """Return every video that a record of any kind names: none of a conversation about text alone."""
    if hasattr(record, "media"):
        return record.media
    return tuple(filter(None, [getattr(record, "video", None)]))


def _words(name: str, counts: array) -> str:
    middle = statistics.median(counts)
    return f"{name:15} words: mean {statistics.fmean(counts):.1f}, median {middle:g}, {min(counts)} to {max(counts)}"


def _hash(value: object) -> bytes:
    return hashlib.blake2b(repr(value).encode("utf-8", "replace"), digest_size=12).digest()
