"""Read and check a file of our own rows: prompts, conversations or preference pairs. A bad row is counted, named and skipped.

Rows are our own (docs/preferences.md), in any kind of file that rlaif/data/files.py reads: .jsonl, .json (one list),
both also .gz, and .parquet. A row's `video` is a path relative to `data.root`, a file or a folder of frames.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rlaif.data.files import read_rows, unit
from rlaif.data.frame_lists import ShownFrames, paths
from rlaif.data.misread import UNUSED, misread
from rlaif.data.own_rows import ID_FIELD, USED_FIELDS, Fields, id_of, open_pair_row
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import (
    Conversation,
    ConversationRow,
    PromptRow,
    Report,
    Row,
    RowError,
    RowFailure,
    build_row,
    reject,
    valid,
)
from rlaif.data.texts import check_marks, check_media_paths
from rlaif.data.videos import video_path, videos_of
from rlaif.errors import DataError
from rlaif.records import Prompt

OwnKind = Literal["prompts", "conversations", "pairs"]
OwnRecord = Prompt | Conversation | PreferencePair


def _prompt(fields: Fields) -> Prompt:
    return build_row(PromptRow, fields)


def _conversation(fields: Fields) -> Conversation:
    return build_row(ConversationRow, fields)


def _pair(fields: Fields) -> PreferencePair:
    return PreferencePair.for_training(open_pair_row(fields))


BUILDERS: Mapping[OwnKind, tuple[type, Callable[[Fields], OwnRecord]]] = {
    "prompts": (Prompt, _prompt),
    "conversations": (Conversation, _conversation),
    "pairs": (PreferencePair, _pair),
}
"""By kind of file: the type of its records, and what builds one from a row."""


def read_records(path: str | Path, root: str | Path, kind: OwnKind, strict: bool = False) -> tuple[list[Any], Report]:
    """Return the records of a file's good rows in file order, and the report of those that were skipped.

    Pairs hold the fields that a reward model is trained on; a published set is converted first (`rlaif data convert`).
    Raise DataError if no row is good or, with `strict`, any is bad.
    """
    record_type, build = BUILDERS[kind]
    reader = _RowReader(root, ID_FIELD[record_type], build)
    report = Report(str(path), unit=unit(path))
    records = list(valid(reader.records(read_rows(path), report.lines), report))
    report.check(strict)
    return records, report


class _RowReader:
    """Turns rows of one file into records, or into failures."""

    def __init__(self, root: str | Path, key: str, build: Callable[[Fields], OwnRecord]):
        self._key, self._build = key, build
        self._shown = ShownFrames(root)
        # rows share videos, and asking a network file system about one is slow
        self._exists = cache(lambda video: os.path.exists(video_path(root, video)))

    def records(self, rows: Iterable[Row | RowFailure], lines: dict[str, int]) -> Iterator[OwnRecord | RowFailure]:
        """Yield the record of each row, or why there is none. `lines` is filled with the number of a record's row, by id."""
        for row in rows:
            if isinstance(row, RowFailure):
                yield row
                continue
            try:
                record = self._checked(row, lines)
            except RowError as error:
                yield reject(row, row.fields.get(self._key), error)
                continue
            lines[id_of(record)] = row.number
            yield record

    def _checked(self, row: Row, lines: Mapping[str, int]) -> OwnRecord:
        record = self._build(row.fields)
        check_read(row.fields, record)
        name = id_of(record)
        if name in lines:
            raise RowError("duplicate id", f"{row.unit} {lines[name]} has it already")
        for video in videos_of(record):
            self._check_video(video)
        # frames that are listed beside two candidate videos are of neither
        if not (isinstance(record, PreferencePair) and record.rejected_video):
            self._shown.check(record.video, paths(row.fields.get("frames")))
        return record

    def _check_video(self, video: str) -> None:
        try:
            exists = self._exists(video)
        except DataError as error:
            raise RowError("video outside root", f"expected {error.expected}, found {error.found}") from error
        if not exists:
            raise RowError("video missing", video)


def check_read(fields: Fields, record: OwnRecord) -> None:
    """Raise RowError if a record does not say what its row says, as `rlaif data check` does."""
    detail = misread(fields, USED_FIELDS[type(record)])
    if detail:
        raise RowError(UNUSED, detail)
    check_marks(record)
    check_media_paths(record)
