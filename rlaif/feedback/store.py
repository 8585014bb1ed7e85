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

    Opening it reads the file and changes nothing. A last line that a kill cut short is counted in `torn` and removed
    before the next append. Raises DataError, naming the line, for any other line that is not a row of its own key,
    and ConfigError for a bucket: objects there cannot be appended to, and a run's folder always has a local side
    (`RunDir.path`) that can hold the store.
    """

    def __init__(
        self,
        location: str | Path | Location,
        key: Callable[[Row], K],
        unfinished: Callable[[Row], bool] = lambda row: False,
    ):
        """Open the file. `unfinished`: rows that count as `missing` all the same; a later row of the key replaces one."""
        place = locate(location)
        if not place.local:
            raise ConfigError(
                "a store that can be appended to",
                str(place),
                "Give a path on a file system, such as below RunDir.path; copy the file to the bucket when it is done.",
            )
        self.path, self.torn = place.local, 0
        self._key, self._unfinished = key, unfinished
        self._rows: dict[K, Row] = {}
        self._lines: dict[K, int] = {}
        self._whole_size = self._load()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: K) -> bool:
        return key in self._rows

    def __getitem__(self, key: K) -> Row:
        """Return the row of a key. Raises KeyError if there is none."""
        return self._rows[key]

    def rows(self) -> list[Row]:
        """Return every row, sorted by key: the same whatever the order in which they were written."""
        return [self._rows[key] for key in sorted(self._rows)]

    def newest_last(self) -> list[Row]:
        """Return every row in the order of the file."""
        return list(self._rows.values())

    def missing(self, keys: Iterable[K]) -> list[K]:
        """Return the keys without a row or with an unfinished one, each once, in the given order."""
        return [key for key in dict.fromkeys(keys) if self._accepts(key)]

    def _accepts(self, key: K) -> bool:
        return key not in self._rows or self._unfinished(self._rows[key])

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows to the end of the file and flush them to disk: all, or none if anything is wrong with one.

        Rows are stored as they will be read: tuples become lists, NaN and infinities null. Raises ContractError for a key
        that has a row already or comes twice, and if another process has changed the file.
        """
        # Everything is checked before the first byte is written, and keys are read from what will be read back.
        texts = [dumps(row) for row in rows]
        added: dict[K, Row] = {}
        for text in texts:
            row = json.loads(text)
            key = self._key(row)
            if not self._accepts(key) or key in added:
                raise ContractError(
                    f"each key once in {self.path}",
                    f"{key!r} again",
                    "Append only the rows of keys that are `missing`.",
                )
            added[key] = row
        if added:
            self._write("".join(text + "\n" for text in texts).encode())
            for key, row in added.items():
                self._put(key, row)

    def _write(self, data: bytes) -> None:
        is_new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            self._check_unchanged(file.seek(0, os.SEEK_END))
            file.truncate(self._whole_size)  # removes a torn line
            data = self._joint + data
            try:
                _write_all(file, data)
                os.fsync(file.fileno())
            except BaseException:
                # Also after a KeyboardInterrupt: the file holds all of the rows, or none.
                file.truncate(self._whole_size)
                self._file_size = self._whole_size
                raise
        if is_new:
            # A new file survives a crash only if its folder's entry is on disk too.
            flush(self.path.parent)
        self._whole_size += len(data)
        self._file_size, self._joint = self._whole_size, b""

    def _check_unchanged(self, size: int) -> None:
        if size != self._file_size:
            raise ContractError(
                f"no other process that writes to {self.path}",
                f"{size} bytes, not the {self._file_size} of before",
                "Open a store in one process at a time, and open it again after another has written.",
            )

    def _load(self) -> int:
        """Read the file. Returns how many of its bytes are whole rows."""
        data = self.path.read_bytes() if self.path.exists() else b""
        self._file_size, self._joint = len(data), b""
        end = data.rfind(b"\n") + 1
        whole, rest = data[:end], data[end:]
        lines = whole.splitlines()
        for number, line in enumerate(lines, start=1):
            if line.strip():
                self._take(number, self._parse(number, line))
        if not rest.strip():
            return len(whole)
        row = _object(rest)
        if row is not None:
            # A part of an object is never an object itself: the row is whole and only its line break is missing.
            self._take(len(lines) + 1, row)
            self._joint = b"\n"
            return len(data)
        self.torn = 1
        log.warning("%s: the last line was cut short and is dropped", self.path)
        return len(whole)

    def _parse(self, number: int, line: bytes) -> Row:
        row = _object(line)
        if row is None:
            start = repr(line[:60].decode(errors="replace"))
            raise DataError(f"a JSON object in line {number} of {self.path}", start, "Remove or correct the line.")
        return row

    def _take(self, number: int, row: Row) -> None:
        """Enter a row of the file. Raises DataError if it has no key, or the key of an earlier line."""
        try:
            key = self._key(row)
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"a key in line {number} of {self.path}",
                f"{type(error).__name__}: {error}",
                "Remove the line, or use another file.",
            ) from error
        if not self._accepts(key):
            repeat = f"line {number} repeats {key!r} of line {self._lines[key]}"
            raise DataError(f"each key once in {self.path}", repeat, "Remove one of the lines.")
        self._put(key, row)
        self._lines[key] = number

    def _put(self, key: K, row: Row) -> None:
        """Append the row; it replaces an earlier unfinished one."""
        # A dict keeps the place of a key that it has already: without this the newest row would not be last.
        self._rows.pop(key, None)
        self._rows[key] = row


def caption_key(video_sha256: str, frames_hash: str, captioner: str, prompt_version: str, question: str = "") -> str:
    """Return 32 hex digits that name one caption.

    They cover the video's bytes, the FrameSpec's hash, the captioner's fingerprint, `narrative.prompt_version` of the
    options, and the question if captions are conditioned on it. Raises ContractError for an empty part, with which
    captions would be mixed up.
    """
    parts = {"video": video_sha256, "frames": frames_hash, "captioner": captioner, "prompt": prompt_version}
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise ContractError(
            "a caption key without empty parts", f"no {', '.join(empty)}", "Give every part of the key."
        )
    # A JSON list, not joined text: parts cannot run into each other.
    content = json.dumps([*parts.values(), question])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _object(line: bytes) -> Row | None:
    """Return a JSON object, or None for any other bytes."""
    try:
        row = json.loads(line.decode())
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _write_all(file: Any, data: bytes) -> None:
    rest = memoryview(data)
    # An unbuffered write may take only a part of the data.
    while rest:
        rest = rest[file.write(rest) :]
