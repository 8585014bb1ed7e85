"""Rows of parquet files, a batch at a time."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlaif.data.meter import Meter
from rlaif.data.rows import Row, RowError, RowFailure, Unreadable, excerpt, reject
from rlaif.errors import DataError
from rlaif.io.storage import writing_aside

BATCH = 256
"""Rows in memory at once, images included."""
MISFIT = "does not fit its column"


def read_parquet(path: Path, meter: Meter | None = None) -> Iterator[Row | RowFailure]:
    """Yield the rows of a file; if it cannot be read on, the last item is `RowFailure`. Raises DataError if it isn't there."""
    number, meter = 0, meter or Meter(path.name)
    try:
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
        # the index of a parquet file is its end: nothing of a cut file can be read
        detail = f"{path.stat().st_size:,} bytes: {str(error).splitlines()[0]}"
        yield reject(Row(number + 1, {}, "row"), None, RowError("file damaged", detail))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except ValueError:  # a NUL character
        return False


def _check_names(names: list[str], path: Path) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"columns of different names in {path}", f"{excerpt(twice[0])} twice", "rename one of them")


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):  # one value that Python cannot hold, such as year 12,000
        return [_row(batch.slice(place, 1)) for place in range(batch.num_rows)]


def _row(batch: pa.RecordBatch) -> dict[str, Any]:
    return {name: _value(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _value(column: pa.Array) -> Any:
    try:
        return column[0].as_py()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        return Unreadable(f"a {column.type}: {error}")


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema | None) -> int:
    """Write rows under `schema`; further columns are inferred from the first batch."""
    batches = iter(_batches(rows))
    first = next(batches, [])
    schema, count = widened(schema, first, path), 0
    with writing_aside(path) as file, pq.ParquetWriter(file, schema) as writer:
        for batch in itertools.chain([first], batches):
            writer.write_table(_table(batch, schema, path))
            count += len(batch)
    return count


def fitting(
    rows: Iterable[dict[str, Any] | RowFailure], schema: pa.Schema | None, path: Path, lost: Counter
) -> tuple[pa.Schema, Iterator[dict[str, Any] | RowFailure]]:
    """Return the columns of a file and the rows that fit them; the others become `RowFailure`.

    Columns beyond `schema` are inferred from the first rows. A value that does not fit one of those is left out and
    counted in `lost` by its column's name.
    """
    rows = iter(rows)
    first = list(itertools.islice(rows, BATCH))
    own = list(schema.names) if schema is not None else []
    schema = widened(schema, [{}], path)
    for name in dict.fromkeys(key for row in first if isinstance(row, dict) for key in row if key not in own):
        try:
            values = [row.get(name) for row in first if isinstance(row, dict)]
            schema = schema.append(pa.field(name, pa.infer_type(values)))
        except (pa.ArrowException, OverflowError):
            continue  # of several types: left out of every row
    return schema, (_fit(row, schema, own, number, lost) for number, row in enumerate(itertools.chain(first, rows), 1))


def _fit(
    row: dict[str, Any] | RowFailure, schema: pa.Schema, own: list[str], number: int, lost: Counter
) -> dict | RowFailure:
    if isinstance(row, RowFailure):
        return row
    fit = {}
    for name, value in row.items():
        problem = _misfit(name, value, schema)
        if problem is None:
            fit[name] = value
        elif name in own:
            return reject(Row(number, {}, "record"), row.get("pair_id") or row.get("idx"), RowError(MISFIT, problem))
        else:
            lost[name] += 1
    return fit


def _misfit(name: str, value: Any, schema: pa.Schema) -> str | None:
    if name not in schema.names:
        return f"{name}: no column"
    try:
        pa.array([value], schema.field(name).type)
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        return f"{name}: {str(error).splitlines()[0]}"
    return None


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch


def widened(schema: pa.Schema | None, rows: list[dict[str, Any]], path: Path) -> pa.Schema:
    """Return the schema with a column for every further key of the rows."""
    if schema is None:
        raise DataError("a format with columns", f"{path.name} for nested rows", "name the file .json or .jsonl")
    for name in dict.fromkeys(key for row in rows for key in row if key not in schema.names):
        try:
            schema = schema.append(pa.field(name, pa.infer_type([row.get(name) for row in rows])))
        except pa.ArrowException as error:
            raise DataError(f"one type in column {name!r} of {path}", str(error), "write .jsonl instead") from error
    return schema


def _table(rows: list[dict[str, Any]], schema: pa.Schema, path: Path) -> pa.Table:
    new = {key for row in rows for key in row} - set(schema.names)
    try:
        if new:
            raise pa.ArrowInvalid(f"columns {sorted(new)} that the first rows do not have")
        return pa.Table.from_pylist(rows, schema)
    except (pa.ArrowException, UnicodeError) as error:
        raise DataError(f"rows that fit the columns of {path}", str(error), "write .jsonl instead") from error
