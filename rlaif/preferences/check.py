"""Is a file of preferences (or prompts, conversations) ready to be used, and what is in it?"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlaif.data import BadRow, Report, RowError, check_videos, video_path
from rlaif.errors import DataError
from rlaif.preferences.convert import AUTO, opened, source_file
from rlaif.preferences.files import unit
from rlaif.preferences.formats.base import Format, Options
from rlaif.preferences.listed import DIFFER, Shown, listed
from rlaif.preferences.media import Checked
from rlaif.preferences.rows import good
from rlaif.preferences.statistics import Statistics, media


@dataclass
class Checkup:
    format: Format
    report: Report
    statistics: Statistics = field(default_factory=Statistics)
    videos: dict[str, str] = field(default_factory=dict)
    """Why, by video that cannot be used."""
    rows_of: Counter = field(default_factory=Counter)
    """Rows by unusable video."""
    to_gather: int = 0
    """Rows of another format that list other frames than their folder holds: good, but not as they stand."""

    @property
    def fine(self) -> bool:
        return bool(self.report.kept) and not self.report.skipped

    def text(self) -> str:
        """Everything that is known of the file, with every bad row by name."""
        lines = [
            self.report.summary(shown=None),
            f"{'format':15} {self.format.name}",
            *self.statistics.lines(self.format.kind),
        ]
        if self.to_gather:
            lines.append(
                f"{'other frames':15} {self.to_gather} rows list others than their folder holds, or in another order: "
                "convert with --media DIR"
            )
        if self.videos:
            lines.append(f"{len(self.videos):,} videos that cannot be used:")
            lines += [f"  {reason} ({self.rows_of[video]} rows)" for video, reason in self.videos.items()]
        return "\n".join(lines)


def check(path: Path, name: str = AUTO, root: Path | None = None, videos: bool = True) -> Checkup:
    """Read a file, count what is wrong with it and describe the rest.

    root: what paths are relative to; None: the file's folder. videos: open each video and look for every listed frame
    too. Raises DataError for a file that cannot be read at all.
    """
    path = source_file(path)
    root, report = root or path.parent, Report(str(path))
    found, rows = opened(path, name, report)
    items = found.read(rows, Options(Checked(root, None, decode=videos)), report.lines)
    checkup = Checkup(found, report)
    named = list(_counted(good(items, report), checkup, root if videos else None))
    if videos:
        _check_media(checkup, named, root, unit(path))
    return checkup


Named = tuple[str, tuple[str, ...], RowError | None]
"""(id, videos, what is wrong with its frames) of a record."""


def _counted(items: Iterable[Any], checkup: Checkup, root: Path | None) -> Iterator[Named]:
    listing, shown = lru_cache(maxsize=256)(_listing), None if root is None else Shown(root)
    for record in items:
        checkup.statistics.add(record)
        name = getattr(record, checkup.format.key)
        problem = None if shown is None else _problem(record, root, listing, shown)
        if problem and problem.reason == DIFFER and not checkup.format.own:
            checkup.to_gather += 1
            yield name, (), None  # what it is about is not there yet
        else:
            yield name, tuple(video for video in media(record) if not Checked.holds(video)), problem


def _problem(record: Any, root: Path, listing: Callable[[Path], frozenset[str]], shown: Shown) -> RowError | None:
    """What is wrong with the frames that a record lists."""
    frames = listed(record)
    if missing := [frame for frame in frames if not _is_there(root, frame, listing)]:
        return RowError("frame missing", f"{missing[0]}, the first of {len(missing)}")
    try:
        shown.check(record.video if frames else None, frames)
    except RowError as error:
        return error
    return None


def _check_media(checkup: Checkup, named: list[Named], root: Path, unit: str) -> None:
    from rlaif.video.decode import probe

    every = (video for _, videos, _ in named for video in videos)
    checkup.videos = check_videos(every, lambda video: probe(video_path(root, video)))
    for name, videos, problem in named:
        bad = [video for video in videos if video in checkup.videos]
        checkup.rows_of.update(bad)
        if bad or problem:
            problem = RowError("video unusable", checkup.videos[bad[0]]) if bad else problem
            checkup.report.kept -= 1
            checkup.report.skip(problem.reason, BadRow(checkup.report.lines.get(name), name, problem.detail, unit))


def _is_there(root: Path, frame: str, listing: Callable[[Path], frozenset[str]]) -> bool:
    try:
        path = video_path(root, frame)
    except DataError:
        return False
    return path.name in listing(path.parent)


def _listing(folder: Path) -> frozenset[str]:
    """One listing instead of fifty questions to a slow file system."""
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()
