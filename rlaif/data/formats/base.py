"""The description of a format of rows: two functions between its rows and our records, and how its rows are recognised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rlaif.data.formats.losses import lost_fields
from rlaif.data.formats.roundtrip import difference, restore, unholdable
from rlaif.data.formats.visual import LONE
from rlaif.data.media import Media
from rlaif.data.misread import UNUSED, misread
from rlaif.data.rows import Row, RowError, RowFailure, excerpt, reject, reject_record
from rlaif.data.statistics import media
from rlaif.data.texts import check_marks, check_media_paths, frames_of

Fields = dict[str, Any]
Kind = Literal["pairs", "prompts", "conversations", "videos", "texts"]


@dataclass
class Notes:
    """What a conversion leaves behind, counted by row."""

    uncarried: Counter = field(default_factory=Counter)
    """By field of the source: values that JSON cannot hold (NaN, bytes, times) and that no record needs."""
    lost: Counter = field(default_factory=Counter)
    """By field of a record: what the other format cannot hold."""
    missing: Counter = field(default_factory=Counter)
    """By path: media that are not there."""


@dataclass(frozen=True)
class Options:
    """What a format may need besides the rows."""

    media: Media = field(default_factory=lambda: Media(Path(), None))
    video_dir: str | None = None
    """Replaces the folder of every SafeSora video."""
    notes: Notes = field(default_factory=Notes)
    """Filled while rows are read and written."""


def unchanged(fields: Fields, options: Options) -> Fields:
    """Return the fields: most formats read and write no other files."""
    return fields


@dataclass(frozen=True)
class Format:
    """Rows of one published (or our own) kind.

    `read` and `write` are inverses on good rows: what no field of a record says goes with it in `native`.
    """

    name: str
    kind: Kind
    about: str
    recognise: Callable[[Fields], bool]
    build: Callable[[Fields], Any]
    """Turns a row into a record (`PreferencePair`, `Prompt`, ...); raises RowError."""
    bare: Callable[[Any, int], Fields]
    """Turns a record and its place in the file into the row that says the same; raises RowError if rows cannot say it."""
    key: str
    """Field of a record that names it."""
    uses: frozenset[str]
    """Fields of a row that `build` reads: a row with others that hold media or answers is bad (see misread.py)."""
    source_key: str | None = None
    """Field of a row that names it in messages; None: the same name."""
    own: bool = False
    """Our own rows: nothing is left over, and an id that comes twice is an error instead of being numbered."""
    prepare: Callable[[Fields, Options], Fields] = unchanged
    """Runs before `build`: reads or writes other files, or opens JSON inside a text."""
    tidy: Callable[[Fields], Fields] = lambda row: row
    """Settles what a complete row says twice, before it is read back."""
    finish: Callable[[Fields, Options], Fields] = unchanged
    """The inverse of `prepare`, after the row is complete."""
    schema: Any = None
    """pyarrow.Schema of its parquet files; None: rows are nested, no parquet."""
    columns: Callable[[Fields], Fields] = lambda row: row
    """Turns a row into a row of `schema`."""

    def read(
        self, rows: Iterable[Row | RowFailure], options: Options | None = None, lines: dict[str, int] | None = None
    ) -> Iterator[Any | RowFailure]:
        """Yield the records of good rows in order; bad ones, and those that were bad before, as `RowFailure`.

        lines: filled with the number of every record's row, by id.
        """
        options = options or Options()
        lines = {} if lines is None else lines  # the caller's own, even if it is empty
        copies: Counter = Counter()
        for row in rows:
            if isinstance(row, RowFailure):
                yield row
                continue
            try:
                record = self._record(row, options, lines, copies)
                lines[getattr(record, self.key)] = row.number
                yield record
            except RowError as error:
                yield reject(row, row.fields.get(self.source_key or self.key), error)

    def write(
        self, records: Iterable[Any | RowFailure], options: Options | None = None
    ) -> Iterator[Fields | RowFailure]:
        """Yield the rows of records; those that this format cannot say come as `RowFailure`.

        A row of another tool is read back before it is yielded: what its own reader would refuse is not written, and
        what it would lose is counted in the notes.
        """
        options = options or Options()
        for number, record in enumerate(records, start=1):
            if isinstance(record, RowFailure):
                yield record
                continue
            try:
                yield self._row(record, number - 1, options)
            except RowError as error:
                name = getattr(record, self.key)
                yield reject_record({name: number}, name, error, "record")

    def _record(self, row: Row, options: Options, lines: dict[str, int], copies: Counter) -> Any:
        fields = self.prepare(row.fields, options)
        if self.own:
            fields = self._without_unholdable(fields, options)
        # the id is settled before the difference is taken, which then has the source's own id
        record = self._unique(self._checked(fields), row, lines, copies)
        return record if self.own else self._with_native(record, fields, row.number, options)

    def _without_unholdable(self, fields: Fields, options: Options) -> Fields:
        """Return our row without values that JSON cannot hold. Raise RowError if a field that is used has one."""
        bad = unholdable(fields)
        for name in bad:
            if name in self.uses:
                raise RowError("wrong type", f"{name}: a value that JSON cannot hold: {excerpt(fields[name])}")
        options.notes.uncarried.update(bad)
        return {name: value for name, value in fields.items() if name not in bad}

    def _checked(self, fields: Fields) -> Any:
        """Return the record of a row. Raise RowError if it does not say all that the row says."""
        lost = misread(fields, self.uses)
        try:
            record = self.build(fields)
        except RowError as error:
            if lost and error.reason == LONE:  # the media are in a field of another name: more to the point
                raise RowError(UNUSED, lost) from error
            raise
        # after `build`, whose error about a field that is used says more
        if lost:
            raise RowError(UNUSED, lost)
        check_marks(record)
        check_media_paths(record)
        return record

    def _unique(self, record: Any, row: Row, lines: dict[str, int], copies: Counter) -> Any:
        """Return the record under a name that no other has. `copies`: how often each name was numbered already."""
        name = getattr(record, self.key)
        if name not in lines:
            return record
        if self.own:
            raise RowError("duplicate id", f"{row.unit} {lines[name]} has it already")
        other = name
        # the count is remembered: with many copies of one name, trying every number again would take time by their square
        while other in lines:
            copies[name] += 1
            other = f"{name}#{copies[name] + 1}"
        return replace(record, **{self.key: other})

    def _with_native(self, record: Any, fields: Fields, number: int, options: Options) -> Any:
        """Return the record with everything in `native` that its bare row does not say."""
        bare = self.bare(record, number - 1)
        try:
            patch = difference(fields, bare)
        except RowError:
            bad = unholdable(fields)
            options.notes.uncarried.update(bad)
            # a value that JSON cannot hold is kept as the record says it, or left out if no record needs it
            holdable = {}
            for name, value in fields.items():
                if name not in bad:
                    holdable[name] = value
                elif name in bare:
                    holdable[name] = bare[name]
            patch = difference(holdable, bare)
        if not patch:
            return record
        native = native_of(record)
        native |= {self.name: native.get(self.name, {}) | patch}
        if hasattr(record, "native"):
            return replace(record, native=native)
        return replace(record, extra=record.extra | {"native": native})

    def _row(self, record: Any, place: int, options: Options) -> Fields:
        row = self.bare(record, place)
        notes = options.notes
        missing = [path for path in paths_of(record) if not options.media.there(path)]
        if self.own:
            notes.missing.update(missing)
            return row
        row = self.tidy(restore(row, native_of(record).get(self.name)))
        # read back before `finish`, which reads image files
        lost = lost_fields(record, self._checked(row), self.name)
        row = self.finish(row, options)
        # counted last: what cannot be written loses nothing
        notes.lost.update(lost)
        notes.missing.update(missing)
        return row


def native_of(record: Any) -> dict[str, Any]:
    """Return what the source row says beyond the record's fields, by format."""
    return dict(record.native if hasattr(record, "native") else record.extra.get("native", {}))


def paths_of(record: Any) -> tuple[str, ...]:
    """Return the media of a record, or the first of the frames that it lists."""
    frames = frames_of(record)
    if frames:
        return (frames[0],)
    return tuple(media(record))
