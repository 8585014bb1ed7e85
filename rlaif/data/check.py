"""Check whether a file of preferences (or prompts, conversations) is ready to be used, and describe what is in it."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlaif.data.convert import uncarried_lines
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
LISTINGS = 256
"""Folders of frames whose listing is remembered."""


@dataclass
class Checkup:
    """What is known of a file."""

    format: Format
    report: Report
    notes: Notes
    statistics: Statistics = field(default_factory=Statistics)
    videos: dict[str, str] = field(default_factory=dict)
    """The reason by video that cannot be used."""
    rows_of: Counter = field(default_factory=Counter)
    """Rows by unusable video."""
    video_of: dict[BadRow, str] = field(default_factory=dict)
    """The unusable video of a bad row."""
    to_gather: int = 0
    """Rows of another format that list other frames than their folder holds: good once they are converted."""

    @property
    def fine(self) -> bool:
        """Return whether every row can be used."""
        return bool(self.report.kept) and not self.report.skipped

    def text(self) -> str:
        """Return everything that is known of the file, with every bad row by name, and every unusable video once."""
        lines = [
            *self._row_lines(),
            f"{'format':15} {self.format.name}",
            *self.statistics.lines(self.format.kind),
            *uncarried_lines(self.notes),
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

    def _row_lines(self) -> Iterator[str]:
        """Yield the counts, then the bad rows; a row whose video cannot be used refers to the list of those."""
        yield self.report.summary(shown=0).splitlines()[0]
        places = {video: number for number, video in enumerate(self.videos, 1)}
        for reason, rows in self.report.skipped.items():
            for row in rows:
                if row in self.video_of:
                    number = places[self.video_of[row]]
                    row = replace(row, detail=f"video {number} below")
                yield f"  {reason}: {row}"


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
    too. open_video: how, instead of looking at the first frame. least: frames that a video must have, which an image
    inside the file is checked against. Raise DataError for a file that cannot be read at all.
    """
    check_local(FILE=path, root=root)
    check_folder("root", root, exists=True)
    path = source_file(path)
    root = root or path.parent
    report, notes = Report(str(path)), Notes()
    form, rows = open_rows(path, name, report)
    images = Checked(root, None, decode=videos)
    records = form.read(rows, Options(images, notes=notes), report.lines)
    checkup = Checkup(form, report, notes)
    # the whole file is read, and its rows are counted, before the first video is opened
    needs = list(_counted(valid(records, report), checkup, images, videos, least))
    if videos:
        _check_media(checkup, needs, root, unit(path), open_video or _probe)
    return checkup


def _probe(path: Path) -> Any:
    # the decoders are imported late: a check of rows alone works without them
    from rlaif.video.decode import probe_video

    return probe_video(path)


@dataclass(frozen=True)
class _Media:
    """What a record needs of the file system."""

    record_id: str
    videos: tuple[str, ...]
    problem: RowError | None
    """What is wrong with its frames."""


def _counted(items: Iterable[Any], checkup: Checkup, images: Checked, videos: bool, least: int) -> Iterator[_Media]:
    frames = _FrameCheck(images, least)
    for record in items:
        checkup.statistics.add(record)
        name = getattr(record, checkup.format.key)
        problem = frames.problem(record) if videos else None
        # rows of another format are converted before a stage reads them, and `convert --media` joins their frames
        if problem and problem.reason == DIFFER and not checkup.format.own:
            checkup.to_gather += 1
            # the video that it is about is not there yet
            yield _Media(name, (), _gathering_problem(record, images))
        else:
            yield _Media(name, tuple(video for video in media(record) if not images.holds(video)), problem)


def _gathering_problem(record: Any, images: Checked) -> RowError | None:
    """Return what `rlaif data convert --media` will say about the frames of a record."""
    try:
        for frame in listed(record):
            if not images.holds(frame):
                images.frame(frame)
    except RowError as error:
        return error
    return None


class _FrameCheck:
    """Looks for the frames that records list."""

    def __init__(self, images: Checked, least: int):
        self._images, self._least = images, least
        self._shown = ShownFrames(images.root)
        self._listing = lru_cache(maxsize=LISTINGS)(_listing)

    def problem(self, record: Any) -> RowError | None:
        """Return what is wrong with the frames that a record lists."""
        images = self._images
        if self._least > 1 and any(map(images.holds, media(record))):
            return RowError(UNUSABLE, f"an image inside the file is one frame, and {self._least} are needed")
        frames = listed(record)
        missing = [frame for frame in frames if not images.holds(frame) and not self._is_there(frame)]
        if missing:
            return RowError("frame missing", f"{excerpt(missing[0])}, the first of {len(missing)}")
        try:
            self._shown.check(record.video if frames else None, frames)
        except RowError as error:
            return error
        return None

    def _is_there(self, frame: str) -> bool:
        try:
            path = video_path(self._images.root, frame)
        except DataError:
            return False
        return path.name in self._listing(path.parent)


def _listing(folder: Path) -> frozenset[str]:
    """List a folder once, instead of asking a slow file system fifty times."""
    try:
        return frozenset(os.listdir(folder))
    except (OSError, ValueError):
        return frozenset()


def _check_media(checkup: Checkup, needs: list[_Media], root: Path, unit: str, open_video: OpenVideo) -> None:
    every = itertools.chain.from_iterable(need.videos for need in needs)
    reasons = check_videos(every, lambda video: open_video(video_path(root, video)))
    checkup.videos = {video: _without_path(root, video, reason) for video, reason in reasons.items()}
    report = checkup.report
    for need in needs:
        bad = [video for video in need.videos if video in checkup.videos]
        problem = RowError(UNUSABLE, checkup.videos[bad[0]]) if bad else need.problem
        if problem is None:
            continue
        failure = reject_record(report.lines, need.record_id, problem, unit)
        checkup.rows_of.update(bad)
        if bad:
            checkup.video_of[failure.row] = bad[0]
        # the row was counted as kept when it was read
        report.kept -= 1
        report.skip(failure.reason, failure.row)


def _without_path(root: Path, video: str, reason: str) -> str:
    """Return the reason, with the video's name in it but not its path too."""
    with suppress(DataError):
        reason = reason.replace(f" at {video_path(root, video)}", "")
    return shortened(reason)
