"""Scores of reward models in a preference file: a record's candidates, and the scores that are added for each.

A score names its candidate, the model, and a `key` over everything that it depends on: the model's fingerprint, the
frames it sees, question, context and answer. A candidate whose key is in the record already, or in the store of an earlier
call, is not scored again.
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
    """Hash of the video's FrameSpec; empty without a video, or if the video cannot be used."""

    def key(self, fingerprint: str) -> str:
        """Return 32 hex digits over the model and everything it reads.

        The video enters by its content, not by its path, which may name another video another time.
        """
        # Stored scores are looked up by this hash: another order or form of the parts would compute them all again.
        content = [fingerprint, self.frames or self.video, self.question, self.captions, self.response]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def items_of(record: PreferencePair, captions: Sequence[str], frames: Callable[[str], str]) -> list[Item]:
    """Return every candidate once: the two that were compared, then those whose text the record's `candidates` hold.

    frames: returns the `Item.frames` of a video.
    """

    def item(name: str, video: str | None, response: str) -> Item:
        video = video or ""
        frames_hash = frames(video) if video else ""
        return Item(name, video, record.question, tuple(captions), response, frames_hash)

    items: dict[str, Item] = {}
    for side in SIDES:
        # A pair of two videos for one text has a video per side; any other pair has one for both.
        video = getattr(record, f"{side}_video") or record.video
        items[side] = item(side, video, getattr(record, side))
    for other in record.candidates:
        name, text = other.get("candidate"), other.get("text")
        if isinstance(name, str) and isinstance(text, str) and name not in items:
            items[name] = item(name, record.video, text)
    return list(items.values())


def why_unreadable(record: PreferencePair, item: Item) -> str | None:
    """Return why a reward model cannot read the candidate, or None.

    Without the video that a pair is about, the model would judge something that it does not see.
    """
    if item.video or record.modality == "text":
        return None
    return f"a pair of modality {record.modality} without a video"


@dataclass(frozen=True)
class ScoringModel:
    """A reward model, as its scores name it."""

    name: str
    fingerprint: str
    dimensions: tuple[str, ...]

    def known(self, record: PreferencePair, item: Item) -> bool:
        """Tell whether the record has this model's scores of the candidate, in all dimensions."""
        key = item.key(self.fingerprint)
        dimensions = set()
        for score in record.scores:
            if score.get("key") == key and score.get("candidate") == item.candidate:
                dimensions.add(score.get("dimension", OVERALL))
        return dimensions.issuperset(self.dimensions)

    def entries(self, item: Item, values: Sequence[float]) -> Iterator[dict]:
        """Yield the entries of the record's `scores` for a candidate; values: in the order of the dimensions."""
        for dimension, value in zip(self.dimensions, values, strict=True):
            score = {"value": value, "from": self.name, "candidate": item.candidate}
            if dimension != OVERALL:
                score["dimension"] = dimension
            yield score | {"key": item.key(self.fingerprint)}


@dataclass
class Tally:
    """Counts of one model's candidates."""

    candidates: int = 0
    scored: int = 0
    """Scored in this call."""
    there: int = 0
    """Scored by an earlier call."""
    reasons: Counter = field(default_factory=Counter)
    """Masked candidates by reason."""
    masked: list[dict] = field(default_factory=list)
    """The first of them by name."""

    def mask(self, record: PreferencePair, item: Item, reason: str) -> None:
        """Count a masked candidate."""
        self.reasons[reason] += 1
        if len(self.masked) < SHOWN:
            self.masked.append({"pair_id": record.pair_id, "candidate": item.candidate, "reason": reason})

    def report(self, model: ScoringModel) -> dict:
        """Return plain values for JSON; candidates = scored + there + masked."""
        return {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "dimensions": list(model.dimensions),
            "candidates": self.candidates,
            "scored": self.scored,
            "there": self.there,
            "masked": self.reasons.total(),
            "reasons": dict(self.reasons),
            "first": self.masked,
        }


def new_scores(
    record: PreferencePair,
    items: Sequence[Item],
    model: ScoringModel,
    values: Mapping[str, Sequence[float]],
    reasons: Mapping[str, str],
    new: frozenset[str] | set[str],
    tally: Tally,
) -> list[dict]:
    """Return the scores that a record gets from one model, and count its candidates in `tally`.

    items: its candidates. values, reasons: by key, of the candidates that were scored (in this call or an earlier one)
    and masked. new: the keys of this call. Raises KeyError for a candidate with neither a value nor a reason.
    """
    scores: list[dict] = []
    for item in items:
        key = item.key(model.fingerprint)
        tally.candidates += 1
        if model.known(record, item):
            tally.there += 1
        elif key in values:
            if key in new:
                tally.scored += 1
            else:
                tally.there += 1
            scores += model.entries(item, values[key])
        else:
            tally.mask(record, item, why_unreadable(record, item) or reasons[key])
    return scores
