"""Convert one file to another, through our records, as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.data.files import ENDED, kind, unit, write_rows
from rlaif.data.formats import table
from rlaif.data.formats.base import Fields, Format, Notes, Options
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
    is_beside_source: bool = False
    """The missing media are in the folder of `source`, which is not what paths were relative to."""
    unshown: int = 0
    """Rows of ours that list frames which no video shows."""

    def text(self) -> str:
        """Return the counts, the bad rows, and everything that the written file does not hold."""
        lines = [self.report.summary(), *uncarried_lines(self.notes)]
        if self.notes.lost:
            lines.append(f"{self.target} does not hold {_counts(self.notes.lost)}")
        missing = self.notes.missing
        if missing:
            paths = named(list(map(excerpt, missing)))
            hint = "; the first is beside IN: add --root with the folder of IN" if self.is_beside_source else ""
            lines.append(f"{sum(missing.values()):,} media that rows name are not there: {paths}{hint}")
        if self.unshown:
            lines.append(
                f"{self.unshown:,} rows list frames that no video shows: they are left out when the file is read, "
                "unless it is made with --media DIR"
            )
        return "\n".join(lines)


def uncarried_lines(notes: Notes) -> list[str]:
    """Return the line about values that were left behind when rows were read, if there are any."""
    return [f"not carried along (no JSON value): {_counts(notes.uncarried)}"] if notes.uncarried else []


def _counts(counter: Mapping[str, int]) -> str:
    most = 2 * SHOWN
    texts = [f"{excerpt(name, 40)} ({count:,} rows)" for name, count in counter.items()]
    text = ", ".join(texts[:most])
    others = len(counter) - most
    return f"{text} and {others} more" if others > 0 else text


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
    """Read `source` and write `target`; return what was kept, and every row that the other format cannot hold.

    root: what paths of rows are relative to; None is the folder of the file with our own rows, or of `source` if neither
    has any. media: folder for the images that a file holds as bytes, and for links to the frames that a row lists if its
    video shows others. video_dir: the folder of SafeSora's videos. dimension: which comparison of each pair decides what
    is chosen. allow_cut: write the rows before the place at which `source` is cut or damaged.

    Raise DataError if no row is left, if the two formats hold different things, if `source` is cut, and if something
    cannot be written; `target` is then as it was.
    """
    check_local(IN=source, OUT=target, root=root, media=media, video_dir=video_dir)
    check_folder("root", root, exists=True)
    check_folder("media", media, exists=False)
    source, written = source_file(source), table.named(target_format)
    check_target(target)
    # a link, or another spelling of the path, may name the same file
    is_onto_itself = target.exists() and target.samefile(source)
    report = Report(str(source))
    form, rows = open_rows(source, source_format, report)
    _check_kinds(form, written, dimension)
    # paths in our rows are relative to the folder of the file that holds them
    with_our_rows = target if written.own and not form.own else source
    options = Options(Media(root or with_our_rows.parent, media), video_dir)
    conversion = Conversion(report, options.notes, written.name)
    records = form.read(rows, options, report.lines)
    if written.own and media is not None:
        records = match(records, options.media, report.lines, form.key, unit(source))
    elif written.own:
        records = _count_unshown(records, conversion, ShownFrames(options.media.root))
    if dimension is not None:
        records = _along(records, dimension, report, unit(source))
    new_rows = written.write(records, options)
    if is_onto_itself:
        new_rows = _refuse_bad(new_rows, target)
    _write(target, written, new_rows, conversion, allow_cut)
    if root is None:
        conversion.is_beside_source = _first_missing_is_in(source.parent, options.notes)
    return conversion


def _first_missing_is_in(folder: Path, notes: Notes) -> bool:
    """Return whether the first of the media that are not there would be, with paths relative to `folder`."""
    missing = next(iter(notes.missing), None)
    return missing is not None and Media(folder, None).there(missing)


def _write(
    target: Path, written: Format, rows: Iterator[Fields | RowFailure], conversion: Conversion, allow_cut: bool
) -> None:
    schema = written.schema
    if kind(target) == ".parquet":
        # pyarrow takes a while to import, and most files need none
        from rlaif.data.parquet import fitting

        schema, rows = fitting(_columns(written, rows), schema, target, conversion.notes.lost)
    try:
        # of a link, the file that it leads to is replaced
        write_rows(target.resolve(), _checked_at_end(rows, conversion.report, allow_cut), schema)
    except OSError as error:
        expected, fix = "a file that can be written as OUT", "Give another path as OUT."
        raise DataError(expected, f"{target}: {error}", fix) from error


def _columns(written: Format, rows: Iterable[Fields | RowFailure]) -> Iterator[Fields | RowFailure]:
    for row in rows:
        yield row if isinstance(row, RowFailure) else written.columns(row)


def _refuse_bad(rows: Iterable[Fields | RowFailure], target: Path) -> Iterator[Fields | RowFailure]:
    """Yield the rows of a file that will be replaced; raise DataError for a bad one, which would be gone."""
    for row in rows:
        if isinstance(row, RowFailure):
            problem = f"{row.reason}: {row.row}, which would be gone"
            raise DataError(f"only good rows in {target}, which is IN and OUT", problem, "Name another file as OUT.")
        yield row


def _check_kinds(form: Format, written: Format, dimension: str | None) -> None:
    if form.kind != written.kind:
        kinds = f"{form.name} holds {form.kind}, {written.name} {written.kind}"
        raise DataError(f"a format of {form.kind} to convert to", kinds, "Change --to.")
    if dimension is not None and form.kind != "pairs":
        raise DataError("preference pairs for --dimension", f"{form.name} holds {form.kind}", "Leave it out.")


def _count_unshown(
    items: Iterable[Any | RowFailure], conversion: Conversion, shown: ShownFrames
) -> Iterator[Any | RowFailure]:
    """Yield the records unchanged; count those whose video shows other frames than they list."""
    for item in items:
        if not isinstance(item, RowFailure):
            frames = listed(item)
            try:
                shown.check(item.video if frames else None, frames)
            except RowError:
                conversion.unshown += 1
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


def _checked_at_end(rows: Iterable[Fields | RowFailure], report: Report, allow_cut: bool) -> Iterator[Fields]:
    """Yield the valid rows; raise DataError if nothing is left or the file was cut.

    It is raised inside of `write_rows`, so the target is not yet in place.
    """
    yield from valid(rows, report)
    report.check(strict=False, is_export=True)
    if allow_cut:
        return
    for reason in ENDED:
        for bad_row in report.skipped.get(reason, ()):
            place = f"{report.kept:,} rows before the place where it ends: {bad_row}"
            fix = "Give the whole file, or add --allow-cut to write the rows before that place."
            raise DataError(f"a whole file at {report.path}", place, fix)
