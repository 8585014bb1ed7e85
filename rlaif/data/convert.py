"""From one file to another, through our records, as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.data.files import ENDED, kind, unit, write_rows
from rlaif.data.formats import table
from rlaif.data.formats.base import Format, Notes, Options
from rlaif.data.frame_lists import ShownFrames, listed, match
from rlaif.data.media import Media
from rlaif.data.places import check_folder, check_local, check_target
from rlaif.data.published import open_rows, source_file
from rlaif.data.rows import SHOWN, Report, RowError, RowFailure, excerpt, reject_record, valid
from rlaif.errors import DataError, named


@dataclass
class Conversion:
    """What became of the rows of a file."""

    report: Report
    notes: Notes
    target: str
    """Name of the format that was written."""
    beside_source: bool = False
    """The missing media are where `source` is, which is not what paths were taken to be relative to."""
    apart: int = 0
    """Rows of ours that list frames which no video shows."""

    def text(self) -> str:
        """Return the counts, the bad rows, and everything that the written file does not hold."""
        lines = [self.report.summary(), *noted(self.notes)]
        if self.notes.lost:
            lines.append(f"{self.target} does not hold {_counts(self.notes.lost)}")
        if missing := self.notes.missing:
            shown = named([excerpt(path) for path in missing])
            hint = "; the first is beside IN: add --root with the folder of IN" if self.beside_source else ""
            lines.append(f"{sum(missing.values()):,} media that rows name are not there: {shown}{hint}")
        if self.apart:
            lines.append(
                f"{self.apart:,} rows list frames that no video shows: they are left out when the file is read, "
                "unless it is made with --media DIR"
            )
        return "\n".join(lines)


def noted(notes: Notes) -> list[str]:
    """Return the line about values that were left behind when rows were read."""
    return [f"not carried along (no JSON value): {_counts(notes.uncarried)}"] if notes.uncarried else []


def _counts(counter: dict[str, int]) -> str:
    shown = [f"{excerpt(name, 40)} ({count:,} rows)" for name, count in list(counter.items())[: 2 * SHOWN]]
    return ", ".join(shown) + (f" and {len(counter) - len(shown)} more" if len(counter) > len(shown) else "")


def convert(
    source: Path,
    target: Path,
    source_format: str,
    target_format: str,
    root: Path | None = None,
    media: Path | None = None,
    video_dir: str | None = None,
    dimension: str | None = None,
    allow_cut: bool = False,
) -> Conversion:
    """Read `source`, write `target`; what was kept, and every row that could not be read or said in the other format.

    root: what paths of rows are relative to; None is the folder of the file with our own rows, or of `source` if neither
    has any. media: where images that a file holds as bytes are kept, and links to the frames that a row lists if its
    video shows others. video_dir: the folder of SafeSora's videos. dimension: which comparison of each pair decides what
    is chosen. allow_cut: write the rows before the place where `source` is cut or damaged.

    Raises DataError if no row is left, if the two formats hold different things, if `source` is cut, and if something
    cannot be written; `target` is then as it was.
    """
    check_local(IN=source, OUT=target, root=root, media=media, video_dir=video_dir)
    check_folder("root", root, exists=True)
    check_folder("media", media, exists=False)
    source, wanted = source_file(source), table.named(target_format)
    check_target(target)
    onto_itself = target.exists() and target.samefile(source)
    report = Report(str(source))
    found, rows = open_rows(source, source_format, report)
    _check_kinds(found, wanted, dimension)
    ours = target if wanted.own and not found.own else source
    options = Options(Media(root or ours.parent, media), video_dir)
    conversion = Conversion(report, options.notes, wanted.name)
    records = found.read(rows, options, report.lines)
    if wanted.own:
        if media is not None:
            records = match(records, options.media, report.lines, found.key, unit(source))
        else:
            records = _counted_apart(records, conversion, ShownFrames(options.media.root))
    if dimension is not None:
        records = _along(records, dimension, report, unit(source))
    _write(target, wanted, _refuse_bad(wanted.write(records, options), target, onto_itself), conversion, allow_cut)
    missing = next(iter(options.notes.missing), None)
    conversion.beside_source = missing is not None and root is None and Media(source.parent, None).there(missing)
    return conversion


def _write(
    target: Path, wanted: Format, rows: Iterable[dict | RowFailure], conversion: Conversion, allow_cut: bool
) -> None:
    schema = wanted.schema
    if kind(target) == ".parquet":
        from rlaif.data.parquet import fitting

        columns = (row if isinstance(row, RowFailure) else wanted.columns(row) for row in rows)
        schema, rows = fitting(columns, schema, target, conversion.notes.lost)
    try:
        # of a link, the file that it leads to is replaced
        write_rows(target.resolve(), _checked(valid(rows, conversion.report), conversion.report, allow_cut), schema)
    except OSError as error:
        raise DataError(
            "a file that can be written as OUT", f"{target}: {error}", "give another path as OUT"
        ) from error


def _refuse_bad(rows: Iterable[dict | RowFailure], target: Path, onto_itself: bool) -> Iterator[dict | RowFailure]:
    """Yield the rows; raise DataError for a bad one if the file that holds it would be replaced."""
    for row in rows:
        if onto_itself and isinstance(row, RowFailure):
            found = f"{row.reason}: {row.row}, which would be gone"
            raise DataError(f"only good rows in {target}, which is IN and OUT", found, "name another file as OUT")
        yield row


def _check_kinds(found: Format, wanted: Format, dimension: str | None) -> None:
    if found.kind != wanted.kind:
        held = f"{found.name} holds {found.kind}, {wanted.name} {wanted.kind}"
        raise DataError(f"a format of {found.kind} to convert to", held, "change --to")
    if dimension is not None and found.kind != "pairs":
        raise DataError("preference pairs for --dimension", f"{found.name} holds {found.kind}", "leave it out")


def _counted_apart(
    items: Iterable[Any | RowFailure], conversion: Conversion, shown: ShownFrames
) -> Iterator[Any | RowFailure]:
    """The records as they are; those whose video shows other frames than they list are counted."""
    for item in items:
        frames = () if isinstance(item, RowFailure) else listed(item)
        if frames:
            try:
                shown.check(item.video, frames)
            except RowError:
                conversion.apart += 1
        yield item


def _along(items: Iterable[Any | RowFailure], dimension: str, report: Report, unit: str) -> Iterator[Any | RowFailure]:
    for item in items:
        if isinstance(item, RowFailure):
            yield item
            continue
        try:
            yield item.along(dimension)
        except DataError as error:
            problem = RowError("unknown dimension", f"{error.found}, expected {error.expected}")
            yield reject_record(report.lines, item.pair_id, problem, unit)


def _checked(rows: Iterable[dict], report: Report, allow_cut: bool) -> Iterator[dict]:
    """Yield the rows; raise DataError if nothing is left or the file was cut, while the target is not yet in place."""
    yield from rows
    report.check(strict=False)
    ended = [bad for reason in ENDED for bad in report.skipped.get(reason, ())]
    if ended and not allow_cut:
        found = f"{report.kept:,} rows before the place where it ends: {ended[0]}"
        change = "give the whole file, or add --allow-cut to write the rows before that place"
        raise DataError(f"a whole file at {report.path}", found, change)
