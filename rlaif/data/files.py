"""Rows of .jsonl, .json (one list), both also .gz, and .parquet files, read and written as a stream."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from rlaif.data import json_list, strict_json
from rlaif.data.meter import Meter
from rlaif.data.rows import Row, RowError, RowFailure, reject
from rlaif.errors import DataError
from rlaif.io.storage import writing_aside

KINDS = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
CUT = "file cut off"
DAMAGED = "file damaged"
ENDED = frozenset((CUT, DAMAGED))
"""Reasons after which nothing more of a file was read."""
FOREIGN = (
    (b"\x1f\x8b", "a gzip file", "let its name end in .gz"),
    (b"PAR1", "a parquet file", "let its name end in .parquet"),
    (b"PK\x03\x04", "a zip file", "unpack it: unzip FILE"),
    (b"BZh", "a bzip2 file", "unpack it: bunzip2 FILE"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "unpack it: unzstd FILE"),
    (b"\xfd7zXZ", "an xz file", "unpack it: unxz FILE"),
    (
        b"ARROW1",
        "an Arrow file",
        "write it as .parquet: pyarrow.parquet.write_table(pyarrow.feather.read_table(FILE), NEW)",
    ),
)
"""(first bytes, what has them, what to do) of files that are no text."""
LEVEL = 6
"""Of gzip."""


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


def read_rows(path: str | Path, meter: Meter | None = None) -> Iterator[Row | RowFailure]:
    """Yield the rows of a file in order; whatever is no JSON object is `RowFailure`, and reading goes on.

    If the file is cut or damaged, the last item is `RowFailure` and says at which byte of the uncompressed file. `meter` shows
    how much of the file has been read. Raises DataError for a file that cannot be opened, or is something else than its
    name says.
    """
    path, ending = Path(path), kind(path)
    if path.exists() and not path.is_file():  # reading a pipe or a device may never return
        raise DataError(f"a regular file of rows at {path}", "a pipe, device or folder", "write the rows to a file")
    if ending == ".parquet":
        from rlaif.data.parquet import read_parquet

        return read_parquet(path, meter)
    return _read_text(path, _line_rows if unit(path) == "line" else _list_rows, meter or Meter(path.name))


def _read_text(
    path: Path, parse: Callable[[BinaryIO, Path], Iterator[Row | RowFailure]], meter: Meter
) -> Iterator[Row | RowFailure]:
    packed = path.name.lower().endswith(".gz")
    try:
        with path.open("rb") as raw:
            if not packed:
                _check_content(raw.peek(8), path)
            size = os.fstat(raw.fileno()).st_size
            with meter, gzip.GzipFile(fileobj=raw) if packed else nullcontext(raw) as file:
                for row in parse(file, path):
                    yield row
                    meter.to(raw.tell(), size)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        raise DataError(f"a file of rows at {path}", str(error), "check the path") from error


def _check_content(start: bytes, path: Path) -> None:
    """Raise DataError for a file that is no UTF-8 text, by its first bytes."""
    for magic, found, change in FOREIGN:
        if start.startswith(magic):
            raise DataError(f"text in {path}", found, change)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in start[:4]:
        change = "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"
        raise DataError(f"UTF-8 text in {path}", "not UTF-8 but UTF-16 or UTF-32", change)


def _list_rows(file: BinaryIO, path: Path) -> Iterator[Row | RowFailure]:
    number = 0
    try:
        for number, value in enumerate(json_list.elements(file, str(path)), start=1):
            yield _row(value, number, "row")
    except json_list.Damaged as error:
        reason = CUT if isinstance(error, json_list.Cut) else DAMAGED
        yield reject(Row(number + 1, {}, "row"), None, RowError(reason, str(error)))


def _line_rows(file: BinaryIO, path: Path) -> Iterator[Row | RowFailure]:
    number = offset = 0
    first = True
    try:
        for number, line in enumerate(file, start=1):
            if line.strip():
                if first:
                    _check_no_list(line, path)
                first = False
                yield _line(line, number, offset)
            offset += len(line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield reject(Row(number + 1, {}), None, RowError(CUT, f"at byte {offset:,}: {error}"))


def _check_no_list(line: bytes, path: Path) -> None:
    """Raise DataError if a first line begins a JSON list of rows, or an object that goes on in the next line.

    A list of anything else is one bad row.
    """
    if line.removeprefix(codecs.BOM_UTF8).strip() == b"{":
        change = "write each object in one line: jq -c . FILE > NEW"
        raise DataError(f"one JSON object per line in {path}", "an object over several lines", change)
    if not line.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return
    try:
        value = strict_json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list) or any(isinstance(item, dict) for item in value):
        ending = ".json.gz" if path.name.lower().endswith(".gz") else ".json"
        raise DataError(f"one JSON object per line in {path}", "one JSON list", f"let its name end in {ending}")


def _line(line: bytes, number: int, offset: int) -> Row | RowFailure:
    try:
        text = line.decode("utf-8-sig")
        value, problem = strict_json.parse(text)
    except (ValueError, RecursionError) as error:
        if not line.endswith(b"\n") and _is_cut(error):
            problem = RowError(CUT, f"at byte {offset + len(line):,}: {error}")
        else:
            problem = RowError("not JSON", f"{error}{_advice(error, line)}")
        return reject(Row(number, {}), None, problem)
    return _row(json_list.Unusable(problem, value) if problem else value, number, "line")


def _is_cut(error: Exception) -> bool:
    """Return whether the text, which is the end of a file, would be JSON with something behind it."""
    if isinstance(error, UnicodeDecodeError):
        return error.end == len(error.object)
    if not isinstance(error, json.JSONDecodeError):
        return False
    rest = error.doc[error.pos :].rstrip()
    in_literal = any(word.startswith(rest) for word in ("true", "false", "null", "-"))
    in_escape = error.msg.startswith("Invalid \\") and len(rest) < len("\\uXXXX")
    return in_literal or in_escape or error.msg.startswith("Unterminated string")


def _advice(error: Exception, line: bytes) -> str:
    if not isinstance(error, json.JSONDecodeError) or not error.msg.startswith("Extra data"):
        return ""
    if b"\r" in line.strip():
        return "; the lines of this file end in a carriage return alone: let them end in a line feed"
    return "; write one object per line"


def _row(value: Any, number: int, unit: str) -> Row | RowFailure:
    if isinstance(value, dict):
        return Row(number, value, unit)
    if isinstance(value, json_list.Unusable):
        return reject(Row(number, {}, unit), _name(value.value), RowError("not JSON", value.found))
    return reject(Row(number, {}, unit), None, RowError("not an object", f"a JSON {type(value).__name__}"))


def _name(value: Any) -> Any:
    """What a row that cannot be used calls itself, whatever its format."""
    names = (value.get(key) for key in ("pair_id", "prompt_id", "id", "uid", "idx")) if isinstance(value, dict) else ()
    return next((name for name in names if name is not None), None)


# -- writing


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]], schema: Any = None) -> int:
    """Write rows as the file's name says, and return how many; the file appears whole at the end, or not at all.

    schema: of a .parquet file (pyarrow.Schema; columns that it lacks are inferred from the first rows).
    """
    path, ending = Path(path), kind(path)
    if path.exists() and not path.is_file():  # reading a pipe or a device may never return
        raise DataError(f"a regular file of rows at {path}", "a pipe, device or folder", "write the rows to a file")
    if ending == ".parquet":
        from rlaif.data.parquet import write_parquet

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
    # no time in the header: same rows, same bytes. Level 9, the default, takes 11 times as long for 2 % fewer bytes
    with gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=raw, mtime=0) as file:
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
