"""From one file to another, through our records, as a stream."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlaif.data import BadRow, Report
from rlaif.errors import DataError
from rlaif.preferences.files import kind, read_rows, unit, write_rows
from rlaif.preferences.formats.base import Format, Options
from rlaif.preferences.formats.table import detect, named
from rlaif.preferences.listed import exact
from rlaif.preferences.media import Media
from rlaif.preferences.rows import Bad, Row, good

AUTO = "auto"


def source_file(path: Path) -> Path:
    """The file to read: `path`, or the one file of rows in a folder such as SafeSora's."""
    if not path.is_dir():
        return path
    found = sorted(file for file in path.glob("config*.json*"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise DataError(f"a file, or a folder with one config*.json in it, at {path}", names, "name the file")
    return found[0]


def opened(path: Path, name: str, report: Report) -> tuple[Format, Iterator[Row | Bad]]:
    """The rows of a file and their format; where `name` is "auto" the first row says which.

    Raises DataError for an unknown format, and for a file without one row to go by.
    """
    rows = read_rows(path)
    if name != AUTO:
        return named(name), rows
    before = []
    for row in rows:
        before.append(row)
        if isinstance(row, Row):
            return detect(row.fields), itertools.chain(before, rows)
    list(good(before, report))
    report.check(strict=False)
    raise AssertionError("the check raises where nothing was kept")


def convert(
    source: Path,
    target: Path,
    source_format: str,
    target_format: str,
    root: Path | None = None,
    media: Path | None = None,
    video_dir: str | None = None,
    dimension: str | None = None,
) -> Report:
    """Read `source`, write `target`; what was kept, and every row that could not be read or said in the other format.

    root: what paths of our own rows are relative to; None is the folder of the file that holds them. media: where images
    that a file holds as bytes are kept, and links to the frames that a row lists, where its video shows others. video_dir:
    the folder of SafeSora's videos. dimension: which comparison of each pair decides what is chosen.

    Raises DataError where no row is left, or where the two formats hold different things; `target` is then as it was.
    """
    source, report = source_file(source), Report(str(source))
    wanted = named(target_format)
    found, rows = opened(source, source_format, report)
    _check_kinds(found, wanted, dimension)
    options = Options(Media(root or (source if found.own else target).parent, media), video_dir)
    records = found.read(rows, options, report.lines)
    if wanted.own and media is not None:
        records = exact(records, options.media, report.lines, found.key, unit(source))
    if dimension is not None:
        records = _along(records, dimension, report, unit(source))
    written = _checked(good(wanted.write(records, options), report), report)
    write_rows(target, map(wanted.columns, written) if kind(target) == ".parquet" else written, wanted.schema)
    return report


def _check_kinds(found: Format, wanted: Format, dimension: str | None) -> None:
    if found.kind != wanted.kind:
        held = f"{found.name} holds {found.kind}, {wanted.name} {wanted.kind}"
        raise DataError(f"a format of {found.kind} to convert to", held, "change --to")
    if dimension is not None and found.kind != "pairs":
        raise DataError("preference pairs for --dimension", f"{found.name} holds {found.kind}", "leave it out")


def _along(items: Iterable[Any | Bad], dimension: str, report: Report, unit: str) -> Iterator[Any | Bad]:
    for item in items:
        if isinstance(item, Bad):
            yield item
            continue
        try:
            yield item.along(dimension)
        except DataError as error:
            detail = f"{error.found} is no {error.expected}"
            yield Bad("unknown dimension", BadRow(report.lines.get(item.pair_id), item.pair_id, detail, unit))


def _checked(rows: Iterable[dict], report: Report) -> Iterator[dict]:
    """Raises where nothing is left, while the target is not yet in place."""
    yield from rows
    report.check(strict=False)
