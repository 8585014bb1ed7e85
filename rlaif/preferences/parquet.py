"""Rows of parquet files, a batch at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlaif.data import RowError
from rlaif.errors import DataError
from rlaif.preferences.rows import Bad, Row, refused
from rlaif.storage import writing_aside

BATCH = 256
"""Rows in memory at once, images included."""


def read_parquet(path: Path) -> Iterator[Row | Bad]:
    """The rows of a file; where it cannot be read on, the last item is `Bad`. Raises DataError if it isn't there."""
    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(number, fields, "row")
    except (pa.ArrowInvalid, OSError) as error:
        if not path.is_file():
            raise DataError(f"a parquet file at {path}", str(error), "check the path") from error
        # the index of a parquet file is its end: nothing of a cut file can be read
        detail = f"{path.stat().st_size:,} bytes: {str(error).splitlines()[0]}"
        yield refused(Row(number + 1, {}, "row"), None, RowError("file damaged", detail))


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema | None) -> int:
    """Write rows under `schema`; further columns are inferred from the first batch."""
    if schema is None:
        raise DataError("a format with columns", f"{path.name} for nested rows", "name the file .json or .jsonl")
    batches = iter(_batches(rows))
    first = next(batches, [])
    schema, count = _widen(schema, first, path), 0
    with writing_aside(path) as file, pq.ParquetWriter(file, schema) as writer:
        for batch in itertools.chain([first], batches):
            writer.write_table(_table(batch, schema, path))
            count += len(batch)
    return count


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch


def _widen(schema: pa.Schema, rows: list[dict[str, Any]], path: Path) -> pa.Schema:
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
