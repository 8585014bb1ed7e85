"""Open files of any known format, our own and the published ones, as streams of records.

Importing this module imports every format: stages that read our own rows alone use rlaif/data/read.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlaif.data.files import read_rows
from rlaif.data.formats import table
from rlaif.data.formats.base import Fields, Format, Options
from rlaif.data.formats.own import PAIRS
from rlaif.data.frame_lists import match
from rlaif.data.media import Media
from rlaif.data.meter import Meter
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Report, Row, RowFailure, valid
from rlaif.errors import DataError

AUTO = "auto"
DETECTED_BY = 100
"""Rows by which the format of a file is detected."""


def source_file(path: Path) -> Path:
    """Return the file to read: `path`, or the one file of rows in a folder such as SafeSora's."""
    if not path.is_dir():
        return path
    files = sorted(path.glob("config*.json*"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(f"a file, or a folder with one config*.json in it, at {path}", names, "name the file")
    return files[0]


def open_rows(path: Path, name: str, report: Report) -> tuple[Format, Iterator[Row | RowFailure]]:
    """Return the format and the rows of a file; the format "auto" is the one that most of the first rows look like.

    Raise DataError for an unknown format, and for a file without one row to go by.
    """
    rows = read_rows(path, Meter(path.name))
    if name != AUTO:
        return table.named(name), rows
    first: list[Row | RowFailure] = []
    fields: list[Fields] = []
    for row in rows:
        first.append(row)
        if isinstance(row, Row):
            fields.append(row.fields)
        # rows that are no JSON objects do not count: they say nothing about the format
        if len(fields) == DETECTED_BY:
            break
    if fields:
        return table.detect(fields), itertools.chain(first, rows)
    # every row is a failure, which `valid` counts
    for _ in valid(first, report):
        pass
    report.check(strict=False)
    raise AssertionError("the check raises if nothing was kept")


def open_pairs(path: Path, media: Media, report: Report, expected: str, fix: str) -> Iterator[PreferencePair]:
    """Return the valid records of a file of preference pairs in any known format; failures are counted in `report`.

    Images inside the file, and links to listed frames, are put below `media.folder`. Raise DataError, with `expected`
    and `fix`, for a file that holds something else.
    """
    form, rows = open_rows(path, AUTO, report)
    if form.kind != "pairs":
        raise DataError(expected, f"{form.kind} ({form.name})", fix)
    return _matched_records(form, rows, media, report)


def open_own_pairs(path: Path, media: Media, report: Report) -> Iterator[PreferencePair]:
    """Return the valid records of a file of our pairs, whole, as a stream; failures are counted in `report`.

    Those that list other frames than their video shows are among the failures if `media` has no folder.
    """
    return _matched_records(PAIRS, read_rows(path), media, report)


def _matched_records(form: Format, rows: Any, media: Media, report: Report) -> Iterator[Any]:
    records = form.read(rows, Options(media), report.lines)
    return valid(match(records, media, report.lines, form.key, report.unit), report)
