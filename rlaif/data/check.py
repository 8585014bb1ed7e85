"""Is a file of preferences (or prompts, conversations) ready to be used, and what is in it?"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlaif.data.convert import noted
from rlaif.data.files import unit
from rlaif.data.formats.base import Format, Notes, Options
from rlaif.data.frame_lists import DIFFER, ShownFrames, listed
from rlaif.data.media import Checked
from rlaif.data.places import check_folder, check_local
from rlaif.data.published import AUTO, open_rows, source_file
from rlaif.data.rows import BadRow, Report, RowError, excerpt, reject_record, shortened, valid
from rlaif.data.statistics import Statistics, media
from rlaif.data.videos import UNUSABLE, check_videos, video_path
from rlaif.errors import DataError

OpenVideo = Callable[[Path], Any]
"""Opens a video; raises DataError for one that cannot be used."""


@dataclass
class Checkup:
    format: Format
    report: Report
    notes: Notes
    statistics: Statistics = field(default_factory=Statistics)
    videos: dict[str, str] = field(default_factory=dict)
    """Why, by video that cannot be used."""
    rows_of: Counter = field(default_factory=Counter)
    """Rows by unusable video."""
    video_of: dict[BadRow, str] = field(default_factory=dict)
    """The unusable video of a bad row."""
    to_gather: int = 0
    """Rows of another format that list other frames than their folder holds: good, but not as they stand."""

    @property
    def fine(self) -> bool:
        return bool(self.report.kept) and not self.report.skipped

    def text(self) -> str:
        """Return everything that is known of the file, with every bad row by name, and every unusable video once."""
        lines = [
            *self._rows(),
            f"{'format':15} {self.format.name}",
            *self.statistics.lines(self.format.kind),
            *noted(self.notes),
        ]
        if self.to_gather:
            lines.append(
                f"{'other frames':15} {self.to_gather} rows list others than their folder holds, or in another order: "
                "convert with --media DIR"
            )
        if self.videos:
            lines.append(f"{len(self.videos):,} videos that cannot be used:")
            for number, (video, reason) in enumerate(self.videos.items(), 1):
                lines.append(f"  video {number}, {reason} ({self.rows_of[video]} rows)")
        return "\n".join(lines)

    def _rows(self) -> Iterator[str]:
        """The counts, then the bad rows; a row whose video cannot be used refers to the list of those."""
        yield self.report.summary(shown=0).splitlines()[0]
        place = {video: number for number, video in enumerate(self.videos, 1)}
        for reason, rows in self.report.skipped.items():
            for row in rows:
                video = self.video_of.get(row)
                about = row if video is None else replace(row, detail=f"video {place[video]} below")
                yield f"  {reason}: {about}"


def check(
    path: Path,
    name: str = AUTO,
    root: Path | None = None,
    videos: bool = True,
    open_video: OpenVideo | None = None,
    least: int = 1,
) -> Checkup:
    """Read a file, count what is wrong with it and describe the rest.

    root: what paths are relative to; None: the file's folder. videos: open each video and look for every listed frame
    too. open_video: instead of looking at its first frame. least: frames that a video must have, for an image that is
    inside the file. Raises DataError for a file that cannot be read at all.
    """
    check_local(FILE=path, root=root)
    check_folder("root", root, exists=True)
    path = source_file(path)
    root, report, notes = root or path.parent, Report(str(path)), Notes()
    found, rows = open_rows(path, name, report)
    images = Checked(root, None, decode=videos)
    items = found.read(rows, Options(images, notes=notes), report.lines)
    checkup = Checkup(found, report, notes)
    named = list(_counted(valid(items, report), checkup, images, videos, least))
    if videos:
        _check_media(checkup, named, root, unit(path), open_video or _probe)
    return checkup


def _probe(path: Path) -> Any:
    from rlaif.video.decode import probe

    return probe(path)


Named = tuple[str, tuple[str, ...], RowError | None]
"""(id, videos, what is wrong with its frames) of a record."""


def _counted(items: Iterable[Any], checkup: Checkup, images: Checked, videos: bool, least: int) -> Iterator[Named]:
    listing = lru_cache(maxsize=256)(_listing)
    shown = ShownFrames(images.root)
    for record in items:
        checkup.statistics.add(record)
        name = getattr(record, checkup.format.key)
        problem = _problem(record, images, listing, shown, least) if videos else None
        if problem and problem.reason == DIFFER and not checkup.format.own:
            checkup.to_gather += 1
            yield name, (), _gathered(record, images)  # the video that it is about is not there yet
        else:
            yield name, tuple(video for video in media(record) if not images.holds(video)), problem


def _gathered(record: Any, images: Checked) -> RowError | None:
    """What `rlaif data convert --media` will say about the frames of a record."""
    try:
        for frame in listed(record):
            if not images.holds(frame):
                images.frame(frame)
    except RowError as error:
        return error
    return None


def _problem(
    record: Any, images: Checked, listing: Callable[[Path], frozenset[str]], shown: ShownFrames, least: int
) -> RowError | None:
    """What is wrong with the frames that a record lists."""
    if least > 1 and any(map(images.holds, media(record))):
        return RowError(UNUSABLE, f"an image inside the file is one frame, and {least} are needed")
    frames = listed(record)
    missing = [frame for frame in frames if not images.holds(frame) and not _is_there(images.root, frame, listing)]
    if missing:
        return RowError("frame missing", f"{excerpt(missing[0])}, the first of {len(missing)}")
    try:
        shown.check(record.video if frames else None, frames)
    except RowError as error:
        return error
    return None


def _check_media(checkup: Checkup, named: list[Named], root: Path, unit: str, open_video: OpenVideo) -> None:
    every = (video for _, videos, _ in named for video in videos)
    reasons = check_videos(every, lambda video: open_video(video_path(root, video)))
    checkup.videos = {video: _once(root, video, reason) for video, reason in reasons.items()}
    report = checkup.report
    for name, videos, problem in named:
        bad = [video for video in videos if video in checkup.videos]
        if not (bad or problem):
            continue
        problem = RowError(UNUSABLE, checkup.videos[bad[0]]) if bad else problem
        row = reject_record(report.lines, name, problem, unit)
        checkup.rows_of.update(bad)
        if bad:
            checkup.video_of[row.row] = bad[0]
        report.kept -= 1
        report.skip(row.reason, row.row)


def _once(root: Path, video: str, reason: str) -> str:
    """The reason, with the video's name in it but not its path too."""
    with suppress(DataError):
        reason = reason.replace(f" at {video_path(root, video)}", "")
    return shortened(reason)


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
    except (OSError, ValueError):
        return frozenset()
