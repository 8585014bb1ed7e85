"""Rows of parquet files, a batch at a time."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlaif.data.meter import Meter
from rlaif.data.rows import Row, RowError, RowFailure, Unreadable, excerpt, reject
from rlaif.errors import DataError
from rlaif.io.storage import writing_aside

Fields = dict[str, Any]
BATCH = 256
"""Rows in memory at once, images included."""
MISFIT = "does not fit its column"


def read_parquet(path: Path, meter: Meter | None = None) -> Iterator[Row | RowFailure]:
    """Yield the rows of a file; if it cannot be read on, the last item is a `RowFailure`. Raise DataError without a file."""
    meter = meter or Meter(path.name)
    number = 0
    try:
        # without pre_buffer a row group is not in memory as a whole: images make it large
        with pq.ParquetFile(path, pre_buffer=False) as file, meter:
            _check_names(file.schema_arrow.names, path)
            for batch in file.iter_batches(BATCH):
                for fields in _rows(batch):
                    number += 1
                    yield Row(number, fields, "row")
                meter.to(number, file.metadata.num_rows)
    except (pa.ArrowException, OSError, ValueError) as error:
        if not _is_file(path):
            raise DataError(f"a parquet file at {path}", str(error), "check the path") from error
        # the index of a parquet file is at its end: nothing of a cut file can be read
        detail = f"{path.stat().st_size:,} bytes: {str(error).splitlines()[0]}"
        yield reject(Row(number + 1, {}, "row"), None, RowError("file damaged", detail))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except ValueError:  # a NUL character
        return False


def _check_names(names: list[str], path: Path) -> None:
    """Raise DataError for two columns of one name: a row could hold one of them only."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"columns of different names in {path}", f"{excerpt(repeated[0])} twice", "rename one of them")


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):  # one value that Python cannot hold, such as year 12,000
        # value by value, so that only this one is lost
        return [_row(batch.slice(place, 1)) for place in range(batch.num_rows)]


def _row(batch: pa.RecordBatch) -> dict[str, Any]:
    return {name: _value(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _value(column: pa.Array) -> Any:
    try:
        return column[0].as_py()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        return Unreadable(f"a {column.type}: {error}")


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema | None) -> int:
    """Write rows under `schema` and return how many; further columns are inferred from the first batch."""
    batches = _batches(rows)
    first = next(batches, [])
    schema = widened(schema, first, path)
    count = 0
    with writing_aside(path) as file, pq.ParquetWriter(file, schema) as writer:
        for batch in itertools.chain([first], batches):
            writer.write_table(_table(batch, schema, path))
            count += len(batch)
    return count


def fitting(
    rows: Iterable[Fields | RowFailure], schema: pa.Schema | None, path: Path, lost: Counter
) -> tuple[pa.Schema, Iterator[Fields | RowFailure]]:
    """Return the columns of a file and the rows that fit them; the others become `RowFailure`.

    Columns beyond `schema` are inferred from the first rows. A value that does not fit one of those is left out and
    counted in `lost` by its column's name.
    """
    items = iter(rows)
    first = list(itertools.islice(items, BATCH))
    own = list(schema.names) if schema is not None else []
    schema = widened(schema, [{}], path)
    first_rows = [row for row in first if not isinstance(row, RowFailure)]
    # a column has one type for the whole file, so it must be known before the first row is written
    for name in _new_names(first_rows, own):
        try:
            values = [row.get(name) for row in first_rows]
            schema = schema.append(pa.field(name, pa.infer_type(values)))
        except (pa.ArrowException, OverflowError):
            # of several types: left out of every row
            continue
    return schema, _fit_rows(itertools.chain(first, items), schema, own, lost)


def _new_names(rows: Iterable[Fields], known: Collection[str]) -> list[str]:
    """Return the keys of the rows that are not `known`, each once, in order."""
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(row)
    return [name for name in names if name not in known]


def _fit_rows(
    rows: Iterable[Fields | RowFailure], schema: pa.Schema, own: list[str], lost: Counter
) -> Iterator[Fields | RowFailure]:
    for number, row in enumerate(rows, 1):
        yield row if isinstance(row, RowFailure) else _fit(row, schema, own, number, lost)


def _fit(row: Fields, schema: pa.Schema, own: list[str], number: int, lost: Counter) -> Fields | RowFailure:
    fit: Fields = {}
    for name, value in row.items():
        problem = _misfit(name, value, schema)
        if problem is None:
            fit[name] = value
        elif name in own:
            row_id = row.get("pair_id") or row.get("idx")
            return reject(Row(number, {}, "record"), row_id, RowError(MISFIT, problem))
        else:
            lost[name] += 1
    return fit


def _misfit(name: str, value: Any, schema: pa.Schema) -> str | None:
    """Return why a value cannot be in a column, or None."""
    if name not in schema.names:
        return f"{name}: no column"
    try:
        pa.array([value], schema.field(name).type)
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        return f"{name}: {str(error).splitlines()[0]}"
    return None


def _batches(rows: Iterable[Fields]) -> Iterator[list[Fields]]:
    items = iter(rows)
    while batch := list(itertools.islice(items, BATCH)):
        yield batch


def widened(schema: pa.Schema | None, rows: list[Fields], path: Path) -> pa.Schema:
    """Return the schema with a column for every further key of the rows."""
    if schema is None:
        raise DataError("a format with columns", f"{path.name} for nested rows", "name the file .json or .jsonl")
    for name in _new_names(rows, schema.names):
        try:
            values = [row.get(name) for row in rows]
            schema = schema.append(pa.field(name, pa.infer_type(values)))
        except pa.ArrowException as error:
            raise DataError(f"one type in column {name!r} of {path}", str(error), "write .jsonl instead") from error
    return schema


def _table(rows: list[Fields], schema: pa.Schema, path: Path) -> pa.Table:
    new = sorted(_new_names(rows, schema.names))
    try:
        # pyarrow would drop them without a word
        if new:
            raise pa.ArrowInvalid(f"columns {new} that the first rows do not have")
        return pa.Table.from_pylist(rows, schema)
    except (pa.ArrowException, UnicodeError) as error:
        raise DataError(f"rows that fit the columns of {path}", str(error), "write .jsonl instead") from error
