"""SafeSora's pairs: two generated videos for one text, compared along six dimensions (research notes, 1.2).

A record's own dimension is helpfulness, or the first one along which its pair was compared: every single dimension may be
absent or null. The key `information` that some rows use for informativeness is accepted, and written back.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from rlaif.data.formats.base import Fields, Format, Options
from rlaif.data.formats.identity import identity
from rlaif.data.formats.safesora_items import (
    check_harm_labels,
    check_prompt_type,
    in_folder,
    published_path,
    without_empty,
)
from rlaif.data.formats.vlm_rlaif import choice_of, chosen_first
from rlaif.data.preference import SIDES, PreferencePair
from rlaif.data.rows import RowError, build_row, excerpt, without_none
from rlaif.data.texts import check_used

SLOTS = ("video_0", "video_1")
MAIN = ("helpfulness", "harmlessness")
SUB = ("instruction_following", "correctness", "informativeness", "aesthetics")
DIMENSIONS = MAIN + SUB
CANONICAL, ALIAS = "informativeness", "information"
USED = frozenset(("pair_id", "prompt_id", "prompt_text", "prompt_type", *SLOTS, *MAIN, "sub_preferences", "scores"))


class _Video(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    video_id: str
    prompt_id: str
    video_path: str | None = None
    video_text: str | None = None
    is_safe: bool | None = None
    generated_from: str | None = None
    video_labels: dict[str, bool | None] | None = None
    prompt_labels: dict[str, bool | None] | None = None
    scores: list[dict] | None = None
    metrics: dict[str, Any] | None = None

    def build(self) -> _Video:
        """Return the video itself. Raise RowError for labels that are not SafeSora's."""
        for name in ("video_labels", "prompt_labels"):
            labels = getattr(self, name)
            if labels is not None:
                check_harm_labels(labels, name)
        return self

    def candidate(self, side: str) -> Fields:
        """Return the video as one of a record's `candidates`."""
        about = {"model": self.generated_from, "text": self.video_text, "metrics": self.metrics}
        return {"candidate": side, "id": self.video_id} | without_empty(about)

    @property
    def path(self) -> str:
        """Return where the video is: its own path, or the one at which SafeSora publishes it."""
        return self.video_path or published_path(self.prompt_id, self.video_id)


IN_SLOT = frozenset((*_Video.model_fields, "prompt_text", "prompt_type"))


class _Pair(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    prompt_text: str
    prompt_type: str | None = None
    video_0: dict
    video_1: dict
    sub_preferences: dict | None = None
    scores: list[dict] | None = None

    def build(self) -> _Pair:
        """Return the row itself. Raise RowError for an unknown prompt type."""
        check_prompt_type(self.prompt_type)
        return self


def _prepare(fields: Fields, options: Options) -> Fields:
    row = dict(fields)
    for name in SLOTS:
        if isinstance(fields.get(name), dict):
            row[name] = in_folder(fields[name], fields.get("prompt_id"), options.video_dir)
    return row


def _build(fields: Fields) -> PreferencePair:
    pair_id, prompt_id = identity(fields, "pair_id"), identity(fields, "prompt_id")
    row = build_row(_Pair, fields)
    _check_stray(fields)
    choices = _choices(fields)
    # the first dimension in our order that the pair was compared along is the record's own
    dimension, choice = next(iter(choices.items()))
    order = SIDES if choice == SLOTS[0] else SIDES[::-1]
    slots = [_slot(fields[name], name, prompt_id) for name in SLOTS]
    videos = dict(zip(order, slots, strict=True))
    scores = list(row.scores or [])
    for side in order:
        scores += [score | {"candidate": side} for score in videos[side].scores or []]
    record: Fields = {
        "pair_id": pair_id,
        "prompt_id": prompt_id,
        "question": row.prompt_text,
        "dimension": dimension,
        "dimensions": {name: 1 if other == choice else -1 for name, other in choices.items()},
        "scores": scores,
        "candidates": [videos[side].candidate(side) for side in order],
        "provenance": {"dataset": "safesora"},
        "safety": _safety(row, videos),
        "chosen_video": videos["chosen"].path,
        "rejected_video": videos["rejected"].path,
    }
    return PreferencePair.from_row(record)


def _slot(video: Fields, name: str, prompt_id: str) -> _Video:
    """Return the video in a slot of the pair. Raise RowError if it says something that no record would hold."""
    try:
        ids = {"video_id": identity(video, "video_id"), "prompt_id": identity(video, "prompt_id", prompt_id)}
    except RowError as error:
        raise RowError(error.reason, f"{name}.{error.detail}") from error
    check_used(video, IN_SLOT, name)
    return build_row(_Video, video | ids, f"{name}.")


def _check_stray(fields: Fields) -> None:
    """Raise RowError for a comparison in a field that is not read as one."""
    for name, value in fields.items():
        # `video_0` or `video_1` as a value can only be a comparison, whatever the field is called
        if name in USED or value is None:
            continue
        if name in (*SUB, ALIAS):
            raise RowError("unknown dimension", f"{name} beside sub_preferences, where it is not read")
        if value in SLOTS:
            raise RowError("unknown dimension", f"{excerpt(name)} is {value!r}; there are {', '.join(DIMENSIONS)}")


def _choices(fields: Fields) -> Fields:
    """Return the preferred slot by dimension, under our names, in our order.

    Raise RowError for an unknown dimension or choice, and if the pair was compared along none.
    """
    sub_preferences = fields.get("sub_preferences") or {}
    # a null says that the pair was not compared along that dimension
    sub = without_none(sub_preferences)
    # SafeSora's own rows have one name or the other; a row with both must agree with itself
    if ALIAS in sub:
        if sub.get(CANONICAL, sub[ALIAS]) != sub[ALIAS]:
            raise RowError("dimensions contradict", f"{ALIAS} and {CANONICAL} differ")
        sub[CANONICAL] = sub.pop(ALIAS)
    unknown = sorted(sub.keys() - set(SUB))
    if unknown:
        raise RowError("unknown dimension", f"{excerpt(', '.join(unknown))}; there are {', '.join(DIMENSIONS)}")
    choices = without_none({name: fields.get(name) for name in MAIN}) | sub
    if not choices:
        raise RowError("no preference", f"none of {', '.join(DIMENSIONS)} says which video is preferred")
    return {name: choice_of(choices, name, SLOTS) for name in DIMENSIONS if name in choices}


def _safety(row: _Pair, videos: dict[str, _Video]) -> Fields:
    safety: Fields = {"prompt_type": row.prompt_type, "prompt_labels": videos["chosen"].prompt_labels}
    for name in ("is_safe", "video_labels"):
        by_side = {side: getattr(videos[side], name) for side in SIDES}
        safety[name] = without_none(by_side)
    return {name: value for name, value in safety.items() if value not in (None, {})}


# -- and back


def _row(record: PreferencePair, place: int) -> Fields:
    if not record.chosen_video:
        raise RowError("candidates are texts", "these rows hold two videos")
    signs = record.signs
    if not signs.keys() & set(DIMENSIONS):
        raise RowError("unknown dimension", f"the pair was compared along none of {', '.join(DIMENSIONS)}")
    # the slots are filled in the source's order, so that a pair comes back as it was
    order = SIDES if chosen_first(record) else SIDES[::-1]
    choices = {}
    for name in DIMENSIONS:
        if name in signs:
            preferred = "chosen" if signs[name] == 1 else "rejected"
            choices[name] = SLOTS[order.index(preferred)]
    row = {
        "pair_id": record.pair_id,
        "prompt_id": record.prompt_id or record.pair_id,
        "prompt_text": record.question,
        "prompt_type": record.safety.get("prompt_type"),
    }
    for slot, side in zip(SLOTS, order, strict=True):
        row[slot] = _video_row(record, side)
    for name in MAIN:
        if name in choices:
            row[name] = choices.pop(name)
    row["sub_preferences"] = choices
    scores = [score for score in record.scores if score.get("candidate") not in SIDES]
    if scores:
        row["scores"] = scores
    return row


def _video_row(record: PreferencePair, side: str) -> Fields:
    candidates = [item for item in record.candidates if item.get("candidate") == side]
    about = candidates[0] if candidates else {}
    safety = record.safety
    row = {
        "prompt_id": record.prompt_id or record.pair_id,
        "prompt_text": record.question,
        "prompt_type": safety.get("prompt_type"),
        "video_id": about.get("id", f"{record.pair_id}-{side}"),
        "video_text": about.get("text", record.question),
        "video_path": record.chosen_video if side == "chosen" else record.rejected_video,
        "is_safe": _of_side(safety, "is_safe", side),
        "generated_from": about.get("model"),
    }
    scores = [_without(score, "candidate") for score in record.scores if score.get("candidate") == side]
    more = {
        "prompt_labels": safety.get("prompt_labels"),
        "video_labels": _of_side(safety, "video_labels", side),
        "scores": scores,
        "metrics": about.get("metrics"),
    }
    return row | without_empty(more)


def _of_side(safety: Fields, name: str, side: str) -> Any:
    by_side = safety.get(name, {})
    if not isinstance(by_side, dict):
        detail = f"safety.{name}: {excerpt(by_side)} instead of an object with {' and '.join(SIDES)}"
        raise RowError("wrong type", detail)
    return by_side.get(side)


def _without(fields: Fields, name: str) -> Fields:
    return {key: value for key, value in fields.items() if key != name}


def _tidy(fields: Fields) -> Fields:
    """Return the row without the source's `information`, if the record's informativeness has changed since it was read."""
    sub = fields.get("sub_preferences") or {}
    if sub.get(CANONICAL, sub.get(ALIAS)) != sub.get(ALIAS, sub.get(CANONICAL)):
        return fields | {"sub_preferences": _without(sub, ALIAS)}
    return fields


PAIRS = Format(
    name="safesora",
    kind="pairs",
    about="SafeSora pairs: video_0, video_1, helpfulness, harmlessness, sub_preferences",
    recognise=lambda row: {"pair_id", *SLOTS} <= row.keys(),
    build=_build,
    bare=_row,
    key="pair_id",
    uses=USED,
    prepare=_prepare,
    tidy=_tidy,
)
