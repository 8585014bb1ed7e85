"""Checks of the texts and paths of every record, whatever format it came from."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from rlaif.data.misread import MARKED, UNUSED, holds_text, media_marks, misread
from rlaif.data.rows import RowError, excerpt

TEXTS = ("question", "prompt_text", "chosen", "rejected", "answer")
PATHS = ("video", "chosen_video", "rejected_video", "video_path")
DATA = "data:"
"""The beginning of a data URI."""
PATH_CHARACTERS = 4096
"""Linux's PATH_MAX."""
NAME_BYTES = 255
"""Bytes of the longest file name that Linux file systems take (NAME_MAX)."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{200,}=*\s*")
"""A path of that length has a dot, a dash or an underscore somewhere."""


def check_marks(record: Any) -> None:
    """Raise RowError for a record with a media mark in a text: its prompt would have media that are not there."""
    for name, text in _texts(record):
        marks = media_marks(text)
        if marks:
            detail = f"{name} holds {marks[0][:40]}: media come first in a prompt, without a mark in its text"
            raise RowError(MARKED, detail)


def _texts(record: Any) -> Iterator[tuple[str, str]]:
    for name in TEXTS:
        yield name, getattr(record, name, None) or ""
    for role, content in getattr(record, "messages", ()):
        yield f"a turn of the {role}", content
    for caption in getattr(record, "captions", ()):
        yield "captions", caption


def check_used(part: Mapping[str, Any], used: Collection[str], name: str) -> None:
    """Raise RowError if an object inside a row, called `name`, holds media, answers or labels that are not in `used`."""
    detail = misread(part, used)
    if detail:
        raise RowError(UNUSED, f"{name}.{detail}")


def frames_of(record: Any) -> Sequence[str]:
    """Return the frames that a record lists.

    Our prompts and conversations may have a field `frames` of another meaning (a number of frames, for one): only a
    list of texts counts.
    """
    frames = getattr(record, "frames", ()) or getattr(record, "extra", {}).get("frames", ())
    is_list = isinstance(frames, list | tuple) and all(isinstance(path, str) for path in frames)
    return frames if is_list else ()


def check_media_paths(record: Any) -> None:
    """Raise RowError for a medium that cannot be a path."""
    for name in PATHS:
        path = getattr(record, name, None)
        if path:
            check_path(path, name)
    frames = frames_of(record)
    for path in frames:
        check_path(path, "frames")
    unread = getattr(record, "extra", {}).get("frames")
    if not frames and holds_text(unread):
        raise RowError("wrong type", f"frames: {excerpt(unread)} is not a list of paths")


def check_path(path: str, field: str) -> None:
    """Raise RowError for a text that cannot be the path of a medium: it has a NUL, or is data or too long for a name."""
    if path.startswith(DATA):
        raise RowError("wrong type", f"{field}: a data URI of {len(path):,} characters instead of a path")
    if "\0" in path:
        raise RowError("wrong type", f"{field}: a path with a NUL character, {excerpt(path)!r}")
    if _BASE64.fullmatch(path):
        raise RowError("wrong type", f"{field}: {excerpt(path)} is base64 text; write it as data:image/...;base64,...")
    # the limits of Linux file systems: a longer text would be an OSError when it is opened
    longest = max(len(part.encode("utf-8", "replace")) for part in path.split("/"))
    if len(path) > PATH_CHARACTERS or longest > NAME_BYTES:
        raise RowError("wrong type", f"{field}: {excerpt(path)} is too long for a path")
