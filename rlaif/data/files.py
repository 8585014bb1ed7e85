"""Rows of .jsonl, .json (one list), both also .gz, and .parquet files, read and written as a stream."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO

from rlaif.data import json_list, strict_json
from rlaif.data.meter import Meter
from rlaif.data.rows import Row, RowError, RowFailure, reject
from rlaif.errors import DataError
from rlaif.io.storage import writing_aside

KINDS = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
Rows = Iterator[Row | RowFailure]
CUT = "file cut off"
DAMAGED = "file damaged"
ENDED = frozenset((CUT, DAMAGED))
"""Reasons after which nothing more of a file was read."""
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""Byte order marks of UTF-16, and of UTF-32 whose mark begins with the first of them."""
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
"""Compression of gzip: level 9, Python's default, takes 11 times as long for 2 % fewer bytes."""
IDS = ("pair_id", "prompt_id", "id", "uid", "idx")
"""Fields that name a row, whatever its format."""


def kind(path: str | Path) -> str:
    """Return the ending of a file's name that says how it is read. Raise DataError for any other."""
    name = Path(path).name.lower()
    for ending in KINDS:
        if name.endswith(ending):
            return ending
    raise DataError(f"a file that ends in {', '.join(KINDS)}", str(path), "Rename or convert the file.")


def unit(path: str | Path) -> str:
    """Return what the number of a row of this file counts."""
    return "line" if kind(path).startswith(".jsonl") else "row"


def read_rows(path: str | Path, meter: Meter | None = None) -> Rows:
    """Yield the rows of a file in order; whatever is no JSON object is a `RowFailure`, and reading goes on.

    If the file is cut or damaged, the last item is a `RowFailure` and says at which byte of the uncompressed file.
    `meter` shows how much of the file has been read. Raise DataError for a file that cannot be opened, or is something
    else than its name says.
    """
    path = Path(path)
    ending = kind(path)
    _check_regular(path)
    if ending == ".parquet":
        # pyarrow takes a while to import, and most files need none
        from rlaif.data.parquet import read_parquet

        return read_parquet(path, meter)
    parse = _line_rows if unit(path) == "line" else _list_rows
    return _read_text(path, parse, meter or Meter(path.name))


def _check_regular(path: Path) -> None:
    """Raise DataError for a pipe, a device or a folder: reading one may never return."""
    if path.exists() and not path.is_file():
        raise DataError(f"a regular file of rows at {path}", "a pipe, device or folder", "Write the rows to a file.")


def _read_text(path: Path, parse: Callable[[BufferedIOBase, Path], Rows], meter: Meter) -> Rows:
    is_packed = path.name.lower().endswith(".gz")
    try:
        with path.open("rb") as raw, meter:
            # gzip itself refuses what is not packed
            if not is_packed:
                _check_content(raw.peek(8), path)
            size = os.fstat(raw.fileno()).st_size
            file: BufferedIOBase = gzip.GzipFile(fileobj=raw) if is_packed else raw
            for row in parse(file, path):
                yield row
                meter.to(raw.tell(), size)
    # ValueError: a path with a NUL character
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"a file of rows at {path}", reason, "Check the path.") from error


def _check_content(start: bytes, path: Path) -> None:
    """Raise DataError for a file that is no UTF-8 text, by its first bytes."""
    for magic, content, fix in FOREIGN:
        if start.startswith(magic):
            raise DataError(f"text in {path}", content, fix)
    if start.startswith(UTF_16) or b"\x00" in start[:4]:
        fix = "Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW."
        raise DataError(f"UTF-8 text in {path}", "not UTF-8 but UTF-16 or UTF-32", fix)


def _list_rows(file: BufferedIOBase, path: Path) -> Rows:
    number = 0
    try:
        for number, value in enumerate(json_list.elements(file, str(path)), start=1):
            yield _row(value, number, "row")
    except json_list.DamagedError as error:
        reason = CUT if isinstance(error, json_list.CutError) else DAMAGED
        yield reject(Row(number + 1, {}, "row"), None, RowError(reason, str(error)))


def _line_rows(file: BufferedIOBase, path: Path) -> Rows:
    number = offset = 0
    is_first = True
    try:
        for number, line in enumerate(file, start=1):
            if line.strip():
                if is_first:
                    _check_no_list(line, path)
                is_first = False
                yield _line(line, number, offset)
            offset += len(line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield reject(Row(number + 1, {}), None, RowError(CUT, f"at byte {offset:,}: {error}"))


def _check_no_list(line: bytes, path: Path) -> None:
    """Raise DataError if a first line begins a JSON list of rows, or an object that goes on in the next line.

    A list of anything else is one bad row.
    """
    text = line.removeprefix(codecs.BOM_UTF8)
    if text.strip() == b"{":
        fix = "Write each object in one line: jq -c . FILE > NEW."
        raise DataError(f"one JSON object per line in {path}", "an object over several lines", fix)
    if not text.lstrip().startswith(b"["):
        return
    try:
        value = strict_json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        # the list goes on in the next line
        value = None
    if not isinstance(value, list) or any(isinstance(item, dict) for item in value):
        ending = ".json.gz" if path.name.lower().endswith(".gz") else ".json"
        raise DataError(f"one JSON object per line in {path}", "one JSON list", f"Let its name end in {ending}.")


def _line(line: bytes, number: int, offset: int) -> Row | RowFailure:
    try:
        # the mark of byte order that some editors write before the first line
        text = line.decode("utf-8-sig")
        value, problem = strict_json.parse(text)
    except (ValueError, RecursionError) as error:
        # only the last line of a file can lack its end: a broken one before it is one bad row
        if not line.endswith(b"\n") and _is_cut(error):
            row_error = RowError(CUT, f"at byte {offset + len(line):,}: {error}")
        else:
            row_error = RowError("not JSON", f"{error}{_advice(error, line)}")
        return reject(Row(number, {}), None, row_error)
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
    empty = Row(number, {}, unit)
    if isinstance(value, json_list.Unusable):
        return reject(empty, _id_of(value.value), RowError("not JSON", value.problem))
    return reject(empty, None, RowError("not an object", f"a JSON {type(value).__name__}"))


def _id_of(value: Any) -> Any:
    """Return what a row that cannot be used calls itself, whatever its format."""
    if not isinstance(value, dict):
        return None
    for name in IDS:
        if value.get(name) is not None:
            return value[name]
    return None


# -- writing


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]], schema: Any = None) -> int:
    """Write rows as the file's name says, and return how many; the file appears whole at the end, or not at all.

    schema: of a .parquet file (pyarrow.Schema; columns that it lacks are inferred from the first rows).
    """
    path = Path(path)
    ending = kind(path)
    _check_regular(path)
    if ending == ".parquet":
        from rlaif.data.parquet import write_parquet

        return write_parquet(path, rows, schema)
    write = _write_lines if ending.startswith(".jsonl") else _write_list
    with writing_aside(path) as raw, _compressed(raw, ending) as file:
        return write(file, rows)


@contextmanager
def _compressed(raw: BinaryIO, ending: str) -> Iterator[BinaryIO | gzip.GzipFile]:
    if not ending.endswith(".gz"):
        yield raw
        return
    # without a name and a time in the header the same rows are the same bytes
    with gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=raw, mtime=0) as file:
        yield file


def _write_lines(file: BinaryIO | gzip.GzipFile, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    for row in rows:
        file.write(_json(row) + b"\n")
        count += 1
    return count


def _write_list(file: BinaryIO | gzip.GzipFile, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    for row in rows:
        file.write(b",\n" if count else b"[\n")
        file.write(_json(row))
        count += 1
    file.write(b"\n]\n" if count else b"[]\n")
    return count


def _json(row: dict[str, Any]) -> bytes:
    try:
        # json would write NaN, which is no JSON and which our own reader refuses
        return json.dumps(row, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError("rows that JSON can hold", str(error), "Write them to a .parquet file.") from error
