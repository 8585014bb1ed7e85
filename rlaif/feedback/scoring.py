"""Scores of reward models in a preference file: which candidates a record has, and what is added to it for each.

A score names its candidate, the model, and a `key` of everything that it depends on: the model's fingerprint, the frames
it sees, question, context and answer. What has that key in a record, or in the store of an earlier call, is not asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rlaif.data.preference import SIDES, PreferencePair
from rlaif.data.rows import OVERALL

SHOWN = 10
"""Masked candidates that a report names."""


@dataclass(frozen=True)
class Item:
    """One candidate as a reward model reads it."""

    candidate: str
    """`chosen`, `rejected`, or a name of the record's `candidates`."""
    video: str
    """Empty: a question without one."""
    question: str
    captions: tuple[str, ...]
    response: str
    frames: str = ""
    """Hash of the video's FrameSpec; empty where it has none, or cannot be used."""

    def key(self, fingerprint: str) -> str:
        """32 hex digits. Of the video's content, not of its path, which may name another video another time."""
        read = [fingerprint, self.frames or self.video, self.question, self.captions, self.response]
        return hashlib.sha256(json.dumps(read).encode()).hexdigest()[:32]


def items(record: PreferencePair, captions: Sequence[str], frames: Callable[[str], str]) -> list[Item]:
    """Every candidate once: the two that were compared, and the others that `candidates` holds the text of.

    frames: the `Item.frames` of a video.
    """

    def item(name: str, video: str | None, response: str) -> Item:
        video = video or ""
        return Item(name, video, record.question, tuple(captions), response, frames(video) if video else "")

    found = {
        side: item(side, getattr(record, f"{side}_video") or record.video, getattr(record, side)) for side in SIDES
    }
    for other in record.candidates:
        name, text = other.get("candidate"), other.get("text")
        if isinstance(name, str) and isinstance(text, str) and name not in found:
            found[name] = item(name, record.video, text)
    return list(found.values())


def unreadable(record: PreferencePair, item: Item) -> str | None:
    """Why a reward model cannot read the candidate, if so: it would answer about a video that it does not see."""
    return None if item.video or record.modality == "text" else f"a pair of modality {record.modality} without a video"


@dataclass(frozen=True)
class Model:
    """A reward model, as its scores tell of it."""

    name: str
    fingerprint: str
    dimensions: tuple[str, ...]

    def known(self, record: PreferencePair, item: Item) -> bool:
        """Whether the record has this model's scores of the candidate, in all dimensions."""
        key = item.key(self.fingerprint)
        there = {
            score.get("dimension", OVERALL)
            for score in record.scores
            if (score.get("key"), score.get("candidate")) == (key, item.candidate)
        }
        return there.issuperset(self.dimensions)

    def entries(self, item: Item, values: Sequence[float]) -> Iterator[dict]:
        """What the record's `scores` get for a candidate; values: by dimension."""
        for dimension, value in zip(self.dimensions, values, strict=True):
            score = {"value": value, "from": self.name, "candidate": item.candidate}
            yield (
                score | ({} if dimension == OVERALL else {"dimension": dimension}) | {"key": item.key(self.fingerprint)}
            )


@dataclass
class Tally:
    """What became of one model's candidates."""

    candidates: int = 0
    scored: int = 0
    """In this call; `there`: by an earlier one."""
    there: int = 0
    reasons: Counter = field(default_factory=Counter)
    """Masked candidates by reason."""
    masked: list[dict] = field(default_factory=list)
    """The first of them by name."""

    def mask(self, record: PreferencePair, item: Item, reason: str) -> None:
        self.reasons[reason] += 1
        if len(self.masked) < SHOWN:
            self.masked.append({"pair_id": record.pair_id, "candidate": item.candidate, "reason": reason})

    def report(self, model: Model) -> dict:
        """Plain values for JSON; candidates = scored + there + masked."""
        counts = {"candidates": self.candidates, "scored": self.scored, "there": self.there}
        about = {"model": model.name, "fingerprint": model.fingerprint, "dimensions": list(model.dimensions)}
        return about | counts | {"masked": self.reasons.total(), "reasons": dict(self.reasons), "first": self.masked}


def added(
    record: PreferencePair,
    asked: Sequence[Item],
    model: Model,
    values: Mapping[str, Sequence[float]],
    reasons: Mapping[str, str],
    new: frozenset[str] | set[str],
    tally: Tally,
) -> list[dict]:
    """The scores that a record gets from one model, counted in `tally`.

    asked: its candidates. values, reasons: by key, of those scored (in this call or an earlier one) and masked; new: the
    keys of this call. Raises KeyError for a candidate of which neither is known.
    """
    found: list[dict] = []
    for item in asked:
        key = item.key(model.fingerprint)
        tally.candidates += 1
        if model.known(record, item):
            tally.there += 1
        elif key in values:
            tally.scored += key in new
            tally.there += key not in new
            found += model.entries(item, values[key])
        else:
            tally.mask(record, item, unreadable(record, item) or reasons[key])
    return found
