"""A row may list the frames to use; then its video must show exactly those, in that order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlaif.data.bad_rows import Bad, refused_record
from rlaif.data.media import Media, name_of
from rlaif.data.preference import Preference
from rlaif.data.rows import RowError, video_path
from rlaif.errors import DataError
from rlaif.video.folder import IMAGES, frames_in

DIFFER = "frames differ"


def listed(record: Any) -> Sequence[str]:
    """The frames that a record lists about its `video`: none of those whose candidates are the videos."""
    if isinstance(record, Preference):
        return () if record.chosen_video else record.frames
    return paths(getattr(record, "extra", {}).get("frames"))


def paths(value: Any) -> Sequence[str]:
    """A row's `frames`. In our prompts and conversations it is a field that nobody checked: only a list of paths counts."""
    return value if isinstance(value, list | tuple) and all(isinstance(path, str) for path in value) else ()


class Shown:
    """What the videos below `root` show. Folders are listed, not opened, and neighbours in a file share a listing."""

    def __init__(self, root: str | Path):
        self._root = Path(root)
        self._frames = lru_cache(maxsize=1024)(self._listing)
        self._alike = lru_cache(maxsize=1024)(self._same)  # rows about one video follow each other

    def check(self, video: str | None, frames: Sequence[str]) -> None:
        """Raises RowError unless `video` shows exactly `frames`, in their order; empty: nothing was listed."""
        if not frames:
            return
        shown = self._frames(video) if video else ()
        if shown != tuple(frames) and not self._alike(video, shown, tuple(frames)):
            shows = f"{video} shows {len(shown)}, by name" if video else "no video shows them"
            change = (
                "`rlaif data convert --root DIR --media DIR` (root: that of the data) makes a video of exactly those"
            )
            raise RowError(DIFFER, f"{len(frames)} frames are listed in their order, and {shows}: {change}")

    def _same(self, video: str | None, shown: Sequence[str], frames: Sequence[str]) -> bool:
        """For what is named in another way: a folder of links, or a path with links in it."""
        if not video or len(shown) != len(frames):
            return False
        try:
            wanted = [video_path(self._root, frame).absolute() for frame in frames]
            if video_path(self._root, video).name == name_of(wanted):
                return True  # what `Media.gather` named by its content; links need not be followed
            there = [video_path(self._root, frame) for frame in shown]
        except DataError:
            return False
        return list(map(os.path.realpath, there)) == list(map(os.path.realpath, wanted))

    def _listing(self, video: str) -> tuple[str, ...]:
        try:
            path = video_path(self._root, video)
            if not path.is_dir():
                return (video,) if path.suffix.lower() in IMAGES else ()
            return tuple(image.name if video == "." else f"{video}/{image.name}" for image in frames_in(path))
        except (OSError, ValueError, DataError):  # ValueError: a NUL character
            return ()


def exact(
    items: Iterable[Any | Bad], media: Media, lines: Mapping[str, int], key: str, unit: str
) -> Iterator[Any | Bad]:
    """The records, each with a video of exactly the frames that it lists.

    Where its video shows others, links to the listed ones are put below `media.folder`; without such a folder, and where
    a frame is not there, it becomes `Bad`. key, lines: a record's name, and what number its row has by that name.
    """
    shown = Shown(media.root)
    for item in items:
        if isinstance(item, Bad):
            yield item
            continue
        try:
            yield _exact(item, shown, media)
        except RowError as error:
            name = getattr(item, key)
            yield refused_record(lines, name, error, unit)


def _exact(record: Any, shown: Shown, media: Media) -> Any:
    frames = listed(record)
    try:
        shown.check(record.video if frames else None, frames)
        return record
    except RowError:
        if media.folder is None:
            raise
        return replace(record, video=media.gather(frames))
