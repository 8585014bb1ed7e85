"""The videos that rows name: their paths, and the rows that are left out because theirs cannot be used.

A row's `video` is a path relative to `data.root`, a file or a folder of frames. It may not climb out of the root with
`..`; an absolute path is used unchanged.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from rlaif.data.own_rows import id_of
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Conversation, Report, RowError
from rlaif.errors import DataError
from rlaif.io.progress import progress
from rlaif.records import Prompt
from rlaif.video.spec import FrameSpec

Record = TypeVar("Record", Prompt, Conversation, PreferencePair)

UNUSABLE = "video unusable"
"""Reason under which a row is counted whose video cannot be opened, or shows too few frames."""

PROBE_THREADS = 8
"""Most threads that probe videos at once: they wait for the file system more than they compute."""


def video_path(root: str | Path, video: str) -> Path:
    """Return the path of a row's `video`. Raise DataError for a relative path that leaves `root`, and for a bucket's URI.

    Links are not followed, so a root may be made of them.
    """
    is_whole = os.path.isabs(video) or "://" in video
    location = video if is_whole else f"{root}/{video}"
    if "://" in location:
        fix = "copy the videos to a file system that every node sees; data.root is that folder"
        raise DataError("a video at a local path", f"the URI {location}", fix)
    # normpath and not resolve, which would follow links
    inside = os.path.normpath(video)
    if inside == ".." or inside.startswith("../"):
        fix = "move the video into data.root, or give its full path"
        raise DataError(f"a path inside {root}", f"video {video!r}", fix)
    return Path(root) / inside


def videos_of(row: Prompt | Conversation | PreferencePair) -> tuple[str, ...]:
    """Return every video that a stage reads of a row."""
    if isinstance(row, PreferencePair):
        return row.videos
    return (row.video,) if row.video else ()


def check_videos(videos: Iterable[str], spec: Callable[[str], FrameSpec], threads: int | None = None) -> dict[str, str]:
    """Probe each different video with `spec`; return the reasons of those that cannot be used, by `video`. Show progress.

    Cheap (hash, open, first frame), so damage further in is found when a video is decoded.
    """
    unique = list(dict.fromkeys(videos))
    probe = partial(_why_unusable, spec)
    with ThreadPoolExecutor(threads or min(PROBE_THREADS, os.cpu_count() or 1)) as pool:
        reasons = progress(pool.map(probe, unique), "checking videos", len(unique))
        return {video: reason for video, reason in zip(unique, reasons, strict=True) if reason}


def skip_bad_videos(rows: Sequence[Record], bad: dict[str, str], report: Report, strict: bool = False) -> list[Record]:
    """Return the rows whose videos are not in `bad` (from `check_videos`); count the others in `report`.

    Raise DataError as the readers do.
    """
    usable = []
    for row in rows:
        reasons = [bad[video] for video in videos_of(row) if video in bad]
        if reasons:
            report.drop(id_of(row), RowError(UNUSABLE, reasons[0]))
        else:
            usable.append(row)
    report.check(strict)
    return usable


def skip_unusable(
    rows: Sequence[Record], checks: Sequence[Callable[[Record], str | None]], report: Report, strict: bool = False
) -> tuple[list[Record], dict[str, list[str]]]:
    """Return the rows that pass all checks, and the ids of those that a check remarks on, by remark.

    A check raises RowError for a row that can never be used, which is counted in `report`. Raise DataError as the
    readers do.
    """
    usable: list[Record] = []
    ids_by_remark: dict[str, list[str]] = {}
    for row in progress(rows, "checking rows", len(rows)) if checks else rows:
        try:
            # every check runs, although one remark is enough: a later one may still reject the row
            remarks = list(filter(None, [check(row) for check in checks]))
        except RowError as error:
            report.drop(id_of(row), error)
            continue
        usable.append(row)
        if remarks:
            ids_by_remark.setdefault(remarks[0], []).append(id_of(row))
    report.check(strict)
    return usable, ids_by_remark


def decode_videos(
    videos: Iterable[str], decode: Callable[[str], object], seconds: float | None = None, threads: int | None = 1
) -> tuple[dict[str, str], int]:
    """Decode each different video in order; return the reasons of those that fail, by video, and how many were tried.

    seconds: no video is started later than this (None: all are decoded). Show progress.
    """
    unique = list(dict.fromkeys(videos))
    deadline = math.inf if seconds is None else time.monotonic() + seconds

    def attempt(video: str) -> str | None:
        """Return why a video does not decode, "" if it does, None if there was no time to try."""
        if time.monotonic() >= deadline:
            return None
        return _why_unusable(decode, video) or ""

    # all are submitted at once; those that come up after the deadline return at once
    with ThreadPoolExecutor(threads) as pool:
        reasons = list(progress(pool.map(attempt, unique), "decoding videos", len(unique)))
    bad = {video: reason for video, reason in zip(unique, reasons, strict=True) if reason}
    untried = reasons.count(None)
    return bad, len(reasons) - untried


def _why_unusable(use: Callable[[str], object], video: str) -> str | None:
    try:
        use(video)
    except DataError as error:
        return f"{video}: expected {error.expected}, found {error.found}"
    return None
