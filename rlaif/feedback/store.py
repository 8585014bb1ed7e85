"""Keyed rows in a JSONL file that only grows: captions, candidates and labels survive a kill and are never made twice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlaif.errors import ConfigError, ContractError, DataError
from rlaif.io.rundir import dumps
from rlaif.io.storage import Location, flush, locate

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
Row = dict[str, Any]


class Store(Generic[K]):
    """Rows by `key(row)`. One process at a time writes to it.

    Opening it reads what is there and changes nothing. A last line that a kill cut short is counted in `torn` and cut
    off before the next append. Raises DataError, naming the line, for any other line that is not a row of its own key,
    and ConfigError for a bucket: objects there cannot be appended to, and a run's folder always has a local side
    (`RunDir.path`) that can hold the store.
    """

    def __init__(
        self,
        location: str | Path | Location,
        key: Callable[[Row], K],
        unfinished: Callable[[Row], bool] = lambda row: False,
    ):
        """`unfinished`: rows that count as `missing` all the same; a later row of the key takes such a row's place."""
        place = locate(location)
        if not place.local:
            change = (
                "Give a path on a file system, such as below RunDir.path; copy the file to the bucket when it is done"
            )
            raise ConfigError("a store that can be appended to", str(place), change)
        self.path, self.torn = place.local, 0
        self._key, self._unfinished = key, unfinished
        self._rows, self._lines = {}, {}
        self._size = self._load()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: K) -> bool:
        return key in self._rows

    def __getitem__(self, key: K) -> Row:
        """KeyError where there is none."""
        return self._rows[key]

    def rows(self) -> list[Row]:
        """Every row, sorted by key: the same whatever the order they were made in."""
        return [self._rows[key] for key in sorted(self._rows)]

    def newest_last(self) -> list[Row]:
        """Every row in the order in which the file has them."""
        return list(self._rows.values())

    def missing(self, keys: Iterable[K]) -> list[K]:
        """Those that have no row yet, or an unfinished one, each once, in the order given."""
        return [key for key in dict.fromkeys(keys) if self._wanted(key)]

    def _wanted(self, key: K) -> bool:
        return key not in self._rows or self._unfinished(self._rows[key])

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows to the end of the file and flush them to disk; all or, where anything is wrong with one, none.

        They are kept as they will be read: tuples become lists, NaN and infinities null. Raises ContractError for a key
        that is there already or comes twice, and when another process has changed the file.
        """
        texts = [dumps(row) for row in rows]
        added: dict[K, Row] = {}
        for text in texts:
            row = json.loads(text)
            key = self._key(row)
            if not self._wanted(key) or key in added:
                raise ContractError(f"each key once in {self.path}", f"{key!r} again", "append only what is `missing`")
            added[key] = row
        if added:
            self._write("".join(text + "\n" for text in texts).encode())
            for key, row in added.items():
                self._keep(key, row)

    def _write(self, data: bytes) -> None:
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            self._check_unchanged(file.seek(0, os.SEEK_END))
            file.truncate(self._size)  # the torn line
            data = self._joint + data
            try:
                _write_all(file, data)
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(self._size)
                self._found = self._size
                raise
        if new:
            flush(self.path.parent)
        self._size += len(data)
        self._found, self._joint = self._size, b""

    def _check_unchanged(self, size: int) -> None:
        if size != self._found:
            found = f"{size} bytes, not the {self._found} of before"
            raise ContractError(
                f"nobody else writing to {self.path}",
                found,
                "Open a store in one process at a time, and open it again after another has written",
            )

    def _load(self) -> int:
        """Read the file; returns how many of its bytes are whole rows."""
        data = self.path.read_bytes() if self.path.exists() else b""
        self._found, self._joint = len(data), b""
        whole, rest = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
        lines = whole.splitlines() if whole else []
        for number, line in enumerate(lines, start=1):
            if line.strip():
                self._take(number, self._parse(number, line))
        if not rest.strip():
            return len(whole)
        if (row := _object(rest)) is not None:  # part of an object is never an object: only the line's end is missing
            self._take(len(lines) + 1, row)
            self._joint = b"\n"
            return len(data)
        self.torn = 1
        log.warning("%s: the last line was cut short and is dropped", self.path)
        return len(whole)

    def _parse(self, number: int, line: bytes) -> Row:
        row = _object(line)
        if row is None:
            found = repr(line[:60].decode(errors="replace"))
            raise DataError(f"a JSON object in line {number} of {self.path}", found, "remove or correct the line")
        return row

    def _take(self, number: int, row: Row) -> None:
        try:
            key = self._key(row)
        except (KeyError, TypeError, IndexError) as error:
            change = "remove the line, or use another file"
            raise DataError(
                f"a key in line {number} of {self.path}", f"{type(error).__name__}: {error}", change
            ) from error
        if not self._wanted(key):
            found = f"line {number} repeats {key!r} of line {self._lines[key]}"
            raise DataError(f"each key once in {self.path}", found, "remove one of the lines")
        self._keep(key, row)
        self._lines[key] = number

    def _keep(self, key: K, row: Row) -> None:
        """Behind all others, in the place of an unfinished one."""
        self._rows.pop(key, None)
        self._rows[key] = row


def caption_key(video_sha256: str, frames_hash: str, captioner: str, prompt_version: str, question: str = "") -> str:
    """32 hex digits that name one caption.

    From the video's bytes, the FrameSpec's hash, the captioner's fingerprint, `narrative.version` of the options, and the
    question where captions are conditioned on it. Raises ContractError for an empty part, which would mix up captions.
    """
    parts = {"video": video_sha256, "frames": frames_hash, "captioner": captioner, "prompt": prompt_version}
    if empty := [name for name, part in parts.items() if not part]:
        raise ContractError("a caption key without empty parts", f"no {', '.join(empty)}", "Give every part of the key")
    return hashlib.sha256(json.dumps([*parts.values(), question]).encode()).hexdigest()[:32]


def _object(line: bytes) -> Row | None:
    try:
        row = json.loads(line.decode())
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _write_all(file: Any, data: bytes) -> None:
    left = memoryview(data)
    while left:  # an unbuffered write may take only a part
        left = left[file.write(left) :]
