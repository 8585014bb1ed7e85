"""What a format of rows is: two functions between its rows and our records, and how a row of it is recognised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rlaif.data import RowError
from rlaif.errors import DataError
from rlaif.preferences.leftover import difference, restore
from rlaif.preferences.media import Media
from rlaif.preferences.rows import Bad, Row, refused

Fields = dict[str, Any]
Kind = Literal["pairs", "prompts", "conversations", "videos", "texts"]


@dataclass(frozen=True)
class Options:
    """What a format may need besides the rows."""

    media: Media = field(default_factory=lambda: Media(Path(), None))
    video_dir: str | None = None
    """Replaces the folder of every SafeSora video."""


def unchanged(fields: Fields, options: Options) -> Fields:
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
    """A row to a record (`Preference`, `Prompt`, ...); raises RowError."""
    bare: Callable[[Any, int], Fields]
    """A record and its place in the file to the row that says the same; raises RowError where rows cannot say it."""
    key: str
    """Field of a record that names it."""
    source_key: str | None = None
    """Field of a row that names it in messages; None: the same name."""
    own: bool = False
    """Our own rows: nothing is left over, and an id that comes twice is an error instead of being numbered."""
    prepare: Callable[[Fields, Options], Fields] = unchanged
    """Before `build`: what reads or writes other files, or opens JSON inside a text."""
    finish: Callable[[Fields, Options], Fields] = unchanged
    """The inverse of `prepare`, after the row is complete."""
    schema: Any = None
    """pyarrow.Schema of its parquet files; None: rows are nested, no parquet."""
    columns: Callable[[Fields], Fields] = lambda row: row
    """A row to a row of `schema`."""

    def read(
        self, rows: Iterable[Row | Bad], options: Options | None = None, seen: dict[str, int] | None = None
    ) -> Iterator[Any | Bad]:
        """Records of good rows in order; bad ones, and those that were bad before, as `Bad`.

        seen: filled with the number of every record's row, by id.
        """
        options, seen = options or Options(), {} if seen is None else seen
        for row in rows:
            if isinstance(row, Bad):
                yield row
                continue
            try:
                yield self._record(row, options, seen)
            except RowError as error:
                yield refused(row, row.fields.get(self.source_key or self.key), error)

    def write(self, records: Iterable[Any | Bad], options: Options | None = None) -> Iterator[Fields | Bad]:
        """The rows of records; those that this format cannot say come as `Bad`."""
        options = options or Options()
        for number, record in enumerate(records, start=1):
            if isinstance(record, Bad):
                yield record
                continue
            try:
                row = self.bare(record, number - 1)
                yield self.finish(row if self.own else restore(row, _native(record).get(self.name)), options)
            except RowError as error:
                yield refused(Row(number, {}, "record"), getattr(record, self.key), error)

    def _record(self, row: Row, options: Options, seen: dict[str, int]) -> Any:
        fields = self.prepare(row.fields, options)
        record = self.build(fields)
        name = getattr(record, self.key)
        if name in seen:
            if self.own:
                raise RowError("duplicate id", f"{row.unit} {seen[name]} has it already")
            name = next(other for n in range(2, row.number + 2) if (other := f"{name}#{n}") not in seen)
            record = replace(record, **{self.key: name})
        seen[name] = row.number
        return record if self.own else self._with_leftover(record, fields, row.number)

    def _with_leftover(self, record: Any, fields: Fields, number: int) -> Any:
        patch = difference(fields, self.bare(record, number - 1))
        if not patch:
            return record
        native = _native(record) | {self.name: patch}
        if hasattr(record, "native"):
            return replace(record, native=native)
        return replace(record, extra=record.extra | {"native": native})


def _native(record: Any) -> dict[str, Any]:
    return record.native if hasattr(record, "native") else record.extra.get("native", {})


def find(formats: Iterable[Format], fields: Fields) -> Format:
    """The first format that recognises a row. Raises DataError that lists those there are."""
    formats = list(formats)
    for item in formats:
        if item.recognise(fields):
            return item
    known = "\n".join(f"             {item.name:16} {item.about}" for item in formats)
    keys = ", ".join(list(fields)[:12])
    raise DataError(f"rows of one of these formats:\n{known}", f"a row with the fields {keys}", "name its format")
