"""A row may list the frames to use; then its video must show exactly those, in that order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from rlaif.data.preference import PreferencePair
from rlaif.data.rows import RowError, RowFailure, reject_record
from rlaif.data.videos import video_path
from rlaif.errors import DataError
from rlaif.video.folder import IMAGES, frames_in

DIFFER = "frames differ"
"""Reason under which a row is counted whose video shows other frames than it lists."""

LISTINGS = 1024
"""Folders whose listing is remembered: the rows of a file name their neighbours' videos again."""


def listed(record: Any) -> Sequence[str]:
    """Return the frames that a record lists about its `video`: none if the candidates are the videos."""
    if isinstance(record, PreferencePair):
        return () if record.chosen_video else record.frames
    return paths(getattr(record, "extra", {}).get("frames"))


def paths(value: Any) -> Sequence[str]:
    """Return a row's `frames`. In our prompts and conversations the field may mean anything: only a list of paths counts."""
    is_list = isinstance(value, list | tuple) and all(isinstance(path, str) for path in value)
    return value if is_list else ()


def link_folder(frames: Sequence[Path]) -> str:
    """Return the name of the folder of links to these files in this order."""
    return hashlib.sha256("\n".join(map(str, frames)).encode()).hexdigest()


class ShownFrames:
    """What the videos below `root` show. Folders are listed, not opened, and neighbours in a file share a listing."""

    def __init__(self, root: str | Path):
        self._root = Path(root)
        self._frames = lru_cache(maxsize=LISTINGS)(self._listing)
        # rows about one video follow each other
        self._alike = lru_cache(maxsize=LISTINGS)(self._same)

    def check(self, video: str | None, frames: Sequence[str]) -> None:
        """Raise RowError unless `video` shows exactly `frames`, in their order; empty: nothing was listed."""
        if not frames:
            return
        actual = self._frames(video) if video else ()
        if actual != tuple(frames) and not self._alike(video, actual, tuple(frames)):
            shows = f"{video} shows {len(actual)}, by name" if video else "no video shows them"
            fix = "`rlaif data convert --root DIR --media DIR` (root: that of the data) makes a video of exactly those"
            raise RowError(DIFFER, f"{len(frames)} frames are listed in their order, and {shows}: {fix}")

    def _same(self, video: str | None, shown: Sequence[str], frames: Sequence[str]) -> bool:
        """Return whether other names mean the same files: a folder of links, or a path with links in it."""
        if not video or len(shown) != len(frames):
            return False
        try:
            expected = [video_path(self._root, frame).absolute() for frame in frames]
            if video_path(self._root, video).name == link_folder(expected):
                # `Media.gather` names a folder by its content; links need not be followed
                return True
            actual = [video_path(self._root, frame) for frame in shown]
        except DataError:
            return False
        # last, because it asks the file system about every part of every path
        return list(map(os.path.realpath, actual)) == list(map(os.path.realpath, expected))

    def _listing(self, video: str) -> tuple[str, ...]:
        try:
            path = video_path(self._root, video)
            if not path.is_dir():
                return (video,) if path.suffix.lower() in IMAGES else ()
            prefix = "" if video == "." else f"{video}/"
            return tuple(f"{prefix}{image.name}" for image in frames_in(path))
        # ValueError: a NUL character
        except (OSError, ValueError, DataError):
            return ()


class FrameFolders(Protocol):
    """Where folders of links to listed frames are made (rlaif/data/media.py has the only one)."""

    root: Path
    folder: Path | None
    """None: nowhere."""

    def gather(self, frames: Sequence[str]) -> str:
        """Return the `video` that shows these frames."""
        ...


def match(
    items: Iterable[Any | RowFailure], media: FrameFolders, lines: Mapping[str, int], key: str, unit: str
) -> Iterator[Any | RowFailure]:
    """Yield the records, each with a video of exactly the frames that it lists.

    If its video shows others, links to the listed ones are put below `media.folder`; without such a folder, and if
    a frame is not there, it becomes a `RowFailure`. key, lines: the field that names a record, and the number of its row
    by that name.
    """
    videos = ShownFrames(media.root)
    for item in items:
        if isinstance(item, RowFailure):
            yield item
            continue
        try:
            yield _matched(item, videos, media)
        except RowError as error:
            yield reject_record(lines, getattr(item, key), error, unit)


def _matched(record: Any, videos: ShownFrames, media: FrameFolders) -> Any:
    frames = listed(record)
    try:
        videos.check(record.video if frames else None, frames)
        return record
    except RowError:
        if media.folder is None:
            raise
        # a frame that is not there raises again: the record becomes a failure with that reason
        return replace(record, video=media.gather(frames))
