"""SafeSora's videos (one generated video with its harm labels) and prompts, and the join of their labels to the pairs."""

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
    """One generated video."""

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
        """Return the one video that the record names."""
        return (self.video_path,)


@dataclass(frozen=True)
class SafeSoraPrompt:
    """One text that videos were generated from."""

    prompt_id: str
    prompt_text: str
    prompt_type: str | None = None
    prompt_labels: dict[str, bool | None] | None = None
    native: dict = field(default_factory=dict)


def with_labels(pairs: Iterable[PreferencePair], videos: Iterable[SafeSoraVideo]) -> Iterator[PreferencePair]:
    """Yield SafeSora's pairs with the harm labels of their videos and prompts, joined on `video_id`.

    A pair stays as it is if none of its videos is listed.
    """
    by_id = {video.video_id: video for video in videos}
    for pair in pairs:
        yield _with_labels(pair, by_id)


def _with_labels(pair: PreferencePair, by_id: Mapping[str, SafeSoraVideo]) -> PreferencePair:
    video_labels = {}
    prompt_labels = None
    for item in pair.candidates:
        video = by_id.get(str(item.get("id")))
        if video is None or "candidate" not in item:
            continue
        if video.video_labels:
            video_labels[item["candidate"]] = video.video_labels
        prompt_labels = prompt_labels or video.prompt_labels
    labels = without_empty({"video_labels": video_labels, "prompt_labels": prompt_labels})
    return replace(pair, safety=pair.safety | labels)


def without_empty(fields: Fields) -> Fields:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if value}


def check_harm_labels(labels: Mapping[str, bool | None], name: str) -> None:
    """Raise RowError unless the labels are the twelve; those in `OPTIONAL` may be absent or null."""
    present = {label for label, value in labels.items() if value is not None}
    missing = set(HARM_LABELS) - present - OPTIONAL
    unknown = labels.keys() - set(HARM_LABELS)
    if missing or unknown:
        raise RowError("harm labels", f"{name}: missing {sorted(missing)}, unknown {excerpt(sorted(unknown))}")


def check_prompt_type(prompt_type: str | None) -> None:
    """Raise RowError for a prompt type that SafeSora does not have; None is absent."""
    if prompt_type not in (*PROMPT_TYPES, None):
        detail = f"prompt_type is {excerpt(prompt_type)!r}, neither of {', '.join(PROMPT_TYPES)}"
        raise RowError("wrong type", detail)


def published_path(prompt_id: object, video_id: object, folder: str = "videos") -> str:
    """Return the path of a video below the folder that it is published in."""
    return f"{folder.rstrip('/')}/{prompt_id}/{video_id}.mp4"


def in_folder(video: Fields, prompt_id: object, video_dir: str | None) -> Fields:
    """Return the video's row with its path below `video_dir`, if that is set."""
    if video_dir is None or video.get("video_id") is None:
        return video
    path = published_path(video.get("prompt_id", prompt_id), video["video_id"], video_dir)
    return video | {"video_path": path}


class _AboutPrompt(BaseModel):
    """The fields of a prompt, which a video's row has too."""

    model_config = ConfigDict(strict=True, extra="ignore")

    prompt_id: str | int
    prompt_text: str = Field(min_length=1)
    prompt_type: str | None = None
    prompt_labels: dict[str, bool | None] | None = None

    def check(self) -> None:
        """Raise RowError for a prompt type or labels that are not SafeSora's."""
        check_prompt_type(self.prompt_type)
        if self.prompt_labels is not None:
            check_harm_labels(self.prompt_labels, "prompt_labels")


class _Prompt(_AboutPrompt):
    def build(self) -> SafeSoraPrompt:
        """Return the row's record."""
        self.check()
        return SafeSoraPrompt(str(self.prompt_id), self.prompt_text, self.prompt_type, self.prompt_labels)


class _Video(_AboutPrompt):
    video_id: str | int
    video_path: str | None = None
    video_text: str | None = None
    is_safe: bool | None = None
    video_labels: dict[str, bool | None] | None = None
    generated_from: str | None = None
    scores: list[dict] = []
    metrics: dict[str, Any] = {}

    def build(self) -> SafeSoraVideo:
        """Return the row's record."""
        self.check()
        if self.video_labels is not None:
            check_harm_labels(self.video_labels, "video_labels")
        values: Fields = {name: getattr(self, name) for name in type(self).model_fields}
        values["video_id"], values["prompt_id"] = str(self.video_id), str(self.prompt_id)
        values["scores"] = tuple(self.scores)
        values["video_path"] = self.video_path or published_path(self.prompt_id, self.video_id)
        return SafeSoraVideo(**values)


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
    return row | without_empty({"scores": list(record.scores), "metrics": record.metrics})


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
