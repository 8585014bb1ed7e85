"""SafeSora's videos (one generated video with its harm labels) and prompts, and how labels get to the pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from rlaif.data.formats.base import Fields, Format, Options
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import RowError, build_row, excerpt

HARM_LABELS = (
    "porn",
    "violence",
    "hate",
    "terrorism",
    "contraband",
    "controversial",
    "racism",
    "other_discrimination",
    "animal_abuse",
    "child_abuse",
    "crime",
    "other_harmful",
)
OPTIONAL = frozenset(("racism",))
"""The label that SafeSora's classes mark as not required."""
PROMPT_TYPES = ("safety_neutral", "safety_critical")


@dataclass(frozen=True)
class SafeSoraVideo:
    video_id: str
    prompt_id: str
    prompt_text: str
    video_path: str
    prompt_type: str | None = None
    prompt_labels: dict[str, bool | None] | None = None
    video_text: str | None = None
    is_safe: bool | None = None
    video_labels: dict[str, bool | None] | None = None
    generated_from: str | None = None
    scores: tuple[dict, ...] = ()
    """{"value", "from"} of every reward model that scored it."""
    metrics: dict[str, Any] = field(default_factory=dict)
    native: dict = field(default_factory=dict)

    @property
    def media(self) -> tuple[str, ...]:
        return (self.video_path,)


@dataclass(frozen=True)
class SafeSoraPrompt:
    prompt_id: str
    prompt_text: str
    prompt_type: str | None = None
    prompt_labels: dict[str, bool | None] | None = None
    native: dict = field(default_factory=dict)


def with_labels(pairs: Iterable[PreferencePair], videos: Iterable[SafeSoraVideo]) -> Iterator[PreferencePair]:
    """SafeSora's pairs with the harm labels of their videos and prompts, joined on `video_id`.

    A pair of which no video is listed stays as it is.
    """
    by_id = {video.video_id: video for video in videos}
    for pair in pairs:
        found = {item["candidate"]: by_id.get(str(item.get("id"))) for item in pair.candidates if "candidate" in item}
        labels = {side: video.video_labels for side, video in found.items() if video and video.video_labels}
        prompt = next((video.prompt_labels for video in found.values() if video and video.prompt_labels), None)
        new = {"video_labels": labels, "prompt_labels": prompt}
        yield replace(pair, safety=pair.safety | {name: value for name, value in new.items() if value})


def harm_labels(labels: Mapping[str, bool | None], name: str) -> None:
    """Raise RowError unless the labels are the twelve; those in `OPTIONAL` may be absent or null."""
    given = {label for label, value in labels.items() if value is not None}
    missing, unknown = set(HARM_LABELS) - given - OPTIONAL, labels.keys() - set(HARM_LABELS)
    if missing or unknown:
        unknown = excerpt(sorted(unknown))
        raise RowError("harm labels", f"{name}: missing {sorted(missing)}, unknown {unknown}")


def video_path(prompt_id: object, video_id: object, folder: str = "videos") -> str:
    """Where a video lies below the folder it is published in."""
    return f"{folder.rstrip('/')}/{prompt_id}/{video_id}.mp4"


def in_folder(video: Fields, prompt_id: object, video_dir: str | None) -> Fields:
    """The video's row with its path below `video_dir`, where one is given."""
    if video_dir is None or video.get("video_id") is None:
        return video
    return video | {"video_path": video_path(video.get("prompt_id", prompt_id), video["video_id"], video_dir)}


class _Prompt(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    prompt_id: str | int
    prompt_text: str = Field(min_length=1)
    prompt_type: str | None = None
    prompt_labels: dict[str, bool | None] | None = None

    def check(self) -> None:
        if self.prompt_type not in (*PROMPT_TYPES, None):
            raise RowError(
                "wrong type", f"prompt_type is {excerpt(self.prompt_type)!r}, neither of {', '.join(PROMPT_TYPES)}"
            )
        if self.prompt_labels is not None:
            harm_labels(self.prompt_labels, "prompt_labels")

    def build(self) -> SafeSoraPrompt:
        self.check()
        return SafeSoraPrompt(str(self.prompt_id), self.prompt_text, self.prompt_type, self.prompt_labels)


class _Video(_Prompt):
    video_id: str | int
    video_path: str | None = None
    video_text: str | None = None
    is_safe: bool | None = None
    video_labels: dict[str, bool | None] | None = None
    generated_from: str | None = None
    scores: list[dict] = []
    metrics: dict[str, Any] = {}

    def build(self) -> SafeSoraVideo:
        self.check()
        if self.video_labels is not None:
            harm_labels(self.video_labels, "video_labels")
        values = {name: getattr(self, name) for name in type(self).model_fields}
        ids = {name: str(values[name]) for name in ("video_id", "prompt_id")}
        path = self.video_path or video_path(self.prompt_id, self.video_id)
        return SafeSoraVideo(**values | ids | {"scores": tuple(self.scores), "video_path": path})


def _build_video(fields: Fields) -> SafeSoraVideo:
    return build_row(_Video, fields)


def _build_prompt(fields: Fields) -> SafeSoraPrompt:
    return build_row(_Prompt, fields)


def _prepare_video(fields: Fields, options: Options) -> Fields:
    return in_folder(fields, fields.get("prompt_id"), options.video_dir)


def _prompt_row(record: SafeSoraPrompt | SafeSoraVideo, place: int) -> Fields:
    names = ("prompt_id", "prompt_text", "prompt_type", "prompt_labels")
    return {name: getattr(record, name) for name in names}


def _video_row(record: SafeSoraVideo, place: int) -> Fields:
    names = ("video_id", "video_text", "video_path", "is_safe", "video_labels", "generated_from")
    row = _prompt_row(record, place) | {name: getattr(record, name) for name in names}
    more = {"scores": list(record.scores), "metrics": record.metrics}
    return row | {name: value for name, value in more.items() if value}


VIDEOS = Format(
    name="safesora_videos",
    kind="videos",
    about="SafeSora videos with harm labels: video_id, video_labels, is_safe",
    recognise=lambda row: {"video_id", "prompt_text"} <= row.keys(),
    build=_build_video,
    bare=_video_row,
    key="video_id",
    uses=frozenset((*_Video.model_fields,)),
    prepare=_prepare_video,
)
PROMPTS = Format(
    name="safesora_prompts",
    kind="texts",
    about="SafeSora prompts with harm labels: prompt_id, prompt_text",
    recognise=lambda row: {"prompt_id", "prompt_text"} <= row.keys(),
    build=_build_prompt,
    bare=_prompt_row,
    key="prompt_id",
    uses=frozenset((*_Prompt.model_fields,)),
)
