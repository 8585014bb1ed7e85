"""What holds for the texts and paths of every record, whatever format it came from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from rlaif.data.bad_rows import excerpt
from rlaif.data.media import check_path
from rlaif.data.misread import MARKED, UNUSED, holds_text, media_marks, misread
from rlaif.data.rows import RowError

TEXTS = ("question", "prompt_text", "chosen", "rejected", "answer")
PATHS = ("video", "chosen_video", "rejected_video", "video_path")


def check_marks(record: Any) -> None:
    """Raise RowError for a record with a media mark in a text: its prompt would have media that are not there."""
    for name, text in _texts(record):
        if marks := media_marks(text):
            raise RowError(
                MARKED, f"{name} holds {marks[0][:40]}: media come first in a prompt, without a mark in its text"
            )


def _texts(record: Any) -> Iterator[tuple[str, str]]:
    for name in TEXTS:
        yield name, getattr(record, name, None) or ""
    for role, content in getattr(record, "messages", ()):
        yield f"a turn of the {role}", content
    for caption in getattr(record, "captions", ()):
        yield "captions", caption


def check_used(part: Mapping[str, Any], used: Collection[str], name: str) -> None:
    """Raise RowError if an object inside a row, called `name`, holds media, answers or labels that are not in `used`."""
    if detail := misread(part, used):
        raise RowError(UNUSED, f"{name}.{detail}")


def frames_of(record: Any) -> Sequence[str]:
    """Return the frames that a record lists. Our prompts and conversations may have a field `frames` of another meaning
    (a number of frames, for one): only a list of texts counts."""
    frames = getattr(record, "frames", ()) or getattr(record, "extra", {}).get("frames", ())
    is_list = isinstance(frames, list | tuple) and all(isinstance(path, str) for path in frames)
    return frames if is_list else ()


def check_media_paths(record: Any) -> None:
    """Raise RowError for a medium that cannot be a path."""
    for name in PATHS:
        path = getattr(record, name, None)
        if path:
            check_path(path, name)
    for path in frames_of(record):
        check_path(path, "frames")
    unread = getattr(record, "extra", {}).get("frames")
    if not frames_of(record) and holds_text(unread):
        raise RowError("wrong type", f"frames: {excerpt(unread)} is no list of paths")
