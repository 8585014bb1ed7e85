"""What holds for the texts and paths of every record, whatever format it came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlaif.data import RowError
from rlaif.preferences.media import Checked, check_path
from rlaif.preferences.misread import MARKED, media_marks

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


def check_media_paths(record: Any) -> None:
    """Raise RowError for a medium that cannot be a path."""
    for name in PATHS:
        path = getattr(record, name, None)
        if path and not Checked.holds(path):
            check_path(path, name)
    frames = getattr(record, "frames", ()) or getattr(record, "extra", {}).get("frames", ())
    for path in frames if isinstance(frames, list | tuple) else ():
        if isinstance(path, str) and not Checked.holds(path):
            check_path(path, "frames")
