"""Rows of .jsonl, .json (one list), both also .gz, and .parquet files, read and written as a stream."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rlaif.data import RowError
from rlaif.errors import DataError
from rlaif.preferences import json_list
from rlaif.preferences.rows import Bad, Row, refused
from rlaif.storage import writing_aside

KINDS = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
CUT = "file cut off"
DAMAGED = "file damaged"


def kind(path: str | Path) -> str:
    """The ending of a file's name that says how it is read. Raises DataError for any other."""
    name = Path(path).name.lower()
    for ending in KINDS:
        if name.endswith(ending):
            return ending
    raise DataError(f"a file that ends in {', '.join(KINDS)}", str(path), "rename or convert the file")


def unit(path: str | Path) -> str:
    """What the number of a row of this file counts."""
    return "line" if kind(path).startswith(".jsonl") else "row"


def read_rows(path: str | Path) -> Iterator[Row | Bad]:
    """The rows of a file, in order; whatever is no JSON object is `Bad`, and reading goes on.

    Where a file stops making sense (cut in the middle, damaged), the last item is `Bad` and says at which byte of the
    uncompressed file. Raises DataError for a file that cannot be opened or is no list.
    """
    path, ending = Path(path), kind(path)
    if ending == ".parquet":
        from rlaif.preferences.parquet import read_parquet

        return read_parquet(path)
    return _read_text(path, _line_rows if unit(path) == "line" else _list_rows)


def _read_text(path: Path, parse) -> Iterator[Row | Bad]:
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            yield from parse(file, path)
    except OSError as error:
        raise DataError(f"a file of rows at {path}", str(error), "check the path") from error


def _list_rows(file: BinaryIO, path: Path) -> Iterator[Row | Bad]:
    number = 0
    try:
        for number, value in enumerate(json_list.elements(file, str(path)), start=1):
            yield _row(value, number, "row")
    except json_list.Damaged as error:
        reason = CUT if isinstance(error, json_list.Cut) else DAMAGED
        yield refused(Row(number + 1, {}, "row"), None, RowError(reason, str(error)))


def _line_rows(file: BinaryIO, path: Path) -> Iterator[Row | Bad]:
    number = offset = 0
    try:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _line(line, number, offset)
            offset += len(line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield refused(Row(number + 1, {}), None, RowError(CUT, f"at byte {offset:,}: {error}"))


def _line(line: bytes, number: int, offset: int) -> Row | Bad:
    try:
        return _row(json.loads(line.decode("utf-8-sig"), parse_constant=_no_constant), number, "line")
    except (ValueError, RecursionError) as error:
        whole = line.endswith(b"\n")
        problem = (
            RowError("not JSON", str(error)) if whole else RowError(CUT, f"at byte {offset + len(line):,}: {error}")
        )
        return refused(Row(number, {}), None, problem)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _row(value: Any, number: int, unit: str) -> Row | Bad:
    if isinstance(value, dict):
        return Row(number, value, unit)
    if isinstance(value, json_list.Unusable):
        return refused(Row(number, {}, unit), None, RowError("not JSON", value.found))
    return refused(Row(number, {}, unit), None, RowError("not an object", f"a JSON {type(value).__name__}"))


# -- writing


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]], schema: Any = None) -> int:
    """Write rows as the file's name says, and return how many; the file appears whole at the end, or not at all.

    schema: of a .parquet file (pyarrow.Schema; columns that it lacks are inferred from the first rows).
    """
    path, ending = Path(path), kind(path)
    if ending == ".parquet":
        from rlaif.preferences.parquet import write_parquet

        return write_parquet(path, rows, schema)
    with writing_aside(path) as raw, _compressed(raw, ending) as file:
        if ending.startswith(".jsonl"):
            return _write_lines(file, rows)
        return _write_list(file, rows)


@contextmanager
def _compressed(raw: BinaryIO, ending: str) -> Iterator[BinaryIO]:
    if not ending.endswith(".gz"):
        yield raw
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:  # same rows, same bytes
        yield file


def _write_lines(file: BinaryIO, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    for row in rows:
        file.write(_json(row) + b"\n")
        count += 1
    return count


def _write_list(file: BinaryIO, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    for row in rows:
        file.write((b",\n" if count else b"[\n") + _json(row))
        count += 1
    file.write(b"\n]\n" if count else b"[]\n")
    return count


def _json(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError("rows that JSON can hold", str(error), "write them to a .parquet file") from error
