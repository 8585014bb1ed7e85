"""SafeSora's pairs: two generated videos for one text, compared along six dimensions (research notes, 1.2).

A record's own dimension is helpfulness, or the first one along which its pair was compared: every single dimension may be
absent or null. The key `information` that some rows use for informativeness is accepted, and written back.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from rlaif.data.formats.base import Fields, Format, Options
from rlaif.data.formats.identity import identity
from rlaif.data.formats.safesora_items import PROMPT_TYPES, harm_labels, in_folder, video_path
from rlaif.data.formats.vlm_rlaif import choice_of, chosen_first
from rlaif.data.preference import SIDES, PreferencePair
from rlaif.data.rows import RowError, build_row, excerpt
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
        for name in ("video_labels", "prompt_labels"):
            if getattr(self, name) is not None:
                harm_labels(getattr(self, name), name)
        return self

    def candidate(self, side: str) -> Fields:
        told = {"model": self.generated_from, "text": self.video_text, "metrics": self.metrics}
        return {"candidate": side, "id": self.video_id} | {name: value for name, value in told.items() if value}


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
        if self.prompt_type not in (*PROMPT_TYPES, None):
            raise RowError(
                "wrong type", f"prompt_type is {excerpt(self.prompt_type)!r}, neither of {', '.join(PROMPT_TYPES)}"
            )
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
    dimension, choice = next(iter(choices.items()))
    order = SIDES if choice == SLOTS[0] else SIDES[::-1]
    videos = dict(zip(order, (_slot(fields[name], name, prompt_id) for name in SLOTS), strict=True))
    scores = [score | {"candidate": side} for side in order for score in videos[side].scores or []]
    record: Fields = {
        "pair_id": pair_id,
        "prompt_id": prompt_id,
        "question": row.prompt_text,
        "dimension": dimension,
        "dimensions": {name: 1 if other == choice else -1 for name, other in choices.items()},
        "scores": [*(row.scores or []), *scores],
        "candidates": [videos[side].candidate(side) for side in order],
        "provenance": {"dataset": "safesora"},
        "safety": _safety(row, videos),
    }
    return PreferencePair.from_row(record | {f"{side}_video": _path(videos[side]) for side in SIDES})


def _path(video: _Video) -> str:
    return video.video_path or video_path(video.prompt_id, video.video_id)


def _slot(video: Fields, name: str, prompt_id: str) -> _Video:
    """Return the video in a slot of the pair. Raises RowError if it says something that no record would hold."""
    try:
        named = {"video_id": identity(video, "video_id"), "prompt_id": identity(video, "prompt_id", prompt_id)}
    except RowError as error:
        raise RowError(error.reason, f"{name}.{error.detail}") from error
    check_used(video, IN_SLOT, name)
    return build_row(_Video, video | named, f"{name}.")


def _check_stray(fields: Fields) -> None:
    """Raise RowError for a comparison that stands where none is read."""
    for name, value in fields.items():
        if name in USED or value is None:
            continue
        if name in (*SUB, ALIAS):
            raise RowError("unknown dimension", f"{name} beside sub_preferences, where it is not read")
        if value in SLOTS:
            raise RowError("unknown dimension", f"{excerpt(name)} is {value!r}; there are {', '.join(DIMENSIONS)}")


def _choices(fields: Fields) -> Fields:
    """Return the preferred slot by dimension, under our names, in our order.

    Raises RowError for an unknown dimension or choice, and if the pair was compared along none.
    """
    sub = {name: choice for name, choice in (fields.get("sub_preferences") or {}).items() if choice is not None}
    if ALIAS in sub:
        if sub.get(CANONICAL, sub[ALIAS]) != sub[ALIAS]:
            raise RowError("dimensions contradict", f"{ALIAS} and {CANONICAL} differ")
        sub[CANONICAL] = sub.pop(ALIAS)
    if unknown := sorted(sub.keys() - set(SUB)):
        raise RowError("unknown dimension", f"{excerpt(', '.join(unknown))}; there are {', '.join(DIMENSIONS)}")
    given = {name: fields[name] for name in MAIN if fields.get(name) is not None} | sub
    if not given:
        raise RowError("no preference", f"none of {', '.join(DIMENSIONS)} says which video is preferred")
    return {name: choice_of(given, name, SLOTS) for name in DIMENSIONS if name in given}


def _safety(row: _Pair, videos: dict[str, _Video]) -> Fields:
    safety: Fields = {"prompt_type": row.prompt_type, "prompt_labels": videos[SIDES[0]].prompt_labels}
    for name in ("is_safe", "video_labels"):
        safety[name] = {side: value for side in SIDES if (value := getattr(videos[side], name)) is not None}
    return {name: value for name, value in safety.items() if value not in (None, {})}


# -- and back


def _row(record: PreferencePair, place: int) -> Fields:
    if not record.chosen_video:
        raise RowError("candidates are texts", "these rows hold two videos")
    signs = record.signs
    if not signs.keys() & set(DIMENSIONS):
        raise RowError("unknown dimension", f"the pair was compared along none of {', '.join(DIMENSIONS)}")
    order = SIDES if chosen_first(record) else SIDES[::-1]
    side = {1: SIDES[0], -1: SIDES[1]}
    choices = {name: SLOTS[order.index(side[signs[name]])] for name in DIMENSIONS if name in signs}
    row = {
        "pair_id": record.pair_id,
        "prompt_id": record.prompt_id or record.pair_id,
        "prompt_text": record.question,
        "prompt_type": record.safety.get("prompt_type"),
        **{slot: _video_row(record, side) for slot, side in zip(SLOTS, order, strict=True)},
        **{name: choices[name] for name in MAIN if name in choices},
        "sub_preferences": {name: choices[name] for name in SUB if name in choices},
    }
    scores = [score for score in record.scores if score.get("candidate") not in SIDES]
    return row | ({"scores": scores} if scores else {})


def _video_row(record: PreferencePair, side: str) -> Fields:
    about = next((item for item in record.candidates if item.get("candidate") == side), {})
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
    return row | {name: value for name, value in more.items() if value}


def _of_side(safety: Fields, name: str, side: str) -> Any:
    by_side = safety.get(name, {})
    if not isinstance(by_side, dict):
        found = f"safety.{name}: {excerpt(by_side)} instead of an object with {' and '.join(SIDES)}"
        raise RowError("wrong type", found)
    return by_side.get(side)


def _without(fields: Fields, name: str) -> Fields:
    return {key: value for key, value in fields.items() if key != name}


def _tidy(fields: Fields) -> Fields:
    sub = fields.get("sub_preferences") or {}
    if sub.get(CANONICAL, sub.get(ALIAS)) != sub.get(ALIAS, sub.get(CANONICAL)):  # changed since it was read
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
