"""Read and check the files of a run: prompts, conversations, preference pairs. A bad row is counted, named and skipped, or
fatal where `strict`.

Rows are our own (docs/preferences.md), in any kind of file that rlaif/data/files.py reads: .jsonl, .json (one list),
both also .gz, and .parquet. A row's `video` is a path relative to `data.root`, a file or a folder of frames.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from rlaif.data.bad_rows import Bad, Row, refused
from rlaif.data.files import read_rows, unit
from rlaif.data.formats.base import Fields, Options
from rlaif.data.formats.own import PAIRS, PROMPTS, SFT
from rlaif.data.formats.texts import check_marks, check_media_paths
from rlaif.data.frame_lists import Shown, paths
from rlaif.data.misread import UNUSED, misread
from rlaif.data.rows import (
    ID_FIELD,
    Conversation,
    ConversationRow,
    Pair,
    PairRow,
    PromptRow,
    Report,
    RowError,
    build_row,
    video_path,
    videos_of,
)
from rlaif.errors import DataError
from rlaif.records import Prompt

USES = {Prompt: PROMPTS.uses, Conversation: SFT.uses, Pair: PAIRS.uses}
"""Fields of a row that are read or kept on purpose: a row with others that hold media or answers is bad."""


def check_read(fields: Fields, record: Prompt | Conversation | Pair) -> None:
    """Raise RowError for a row whose record does not say what the row says, as `rlaif data check` does."""
    if detail := misread(fields, USES[type(record)]):
        raise RowError(UNUSED, detail)
    check_marks(record)
    check_media_paths(record)


def read_prompts(path: str | Path, root: str | Path, strict: bool = False) -> tuple[list[Prompt], Report]:
    """Prompts in file order, and what was skipped. Raises DataError when no row is good or, if `strict`, any is bad."""
    return _read(path, root, strict, ID_FIELD[Prompt], lambda fields: build_row(PromptRow, fields))


def read_conversations(path: str | Path, root: str | Path, strict: bool = False) -> tuple[list[Conversation], Report]:
    """Fine-tuning conversations, as `read_prompts` does."""
    return _read(path, root, strict, ID_FIELD[Conversation], lambda fields: build_row(ConversationRow, fields))


def read_pairs(path: str | Path, root: str | Path, strict: bool = False) -> tuple[list[Pair], Report]:
    """Preference pairs, as `read_prompts` does. A published set is converted first: `rlaif data convert`."""
    return _read(path, root, strict, ID_FIELD[Pair], _pair)


def _pair(fields: Fields) -> Pair:
    return build_row(PairRow, PAIRS.prepare(fields, Options()))


def _read(
    path: str | Path, root: str | Path, strict: bool, key: str, build: Callable[[Fields], Any]
) -> tuple[list, Report]:
    report, records, shown = Report(str(path), unit=unit(path)), [], Shown(root)
    exists = cache(lambda video: os.path.exists(video_path(root, video)))  # rows share videos; a network stat is slow
    for row in read_rows(path):
        found = row if isinstance(row, Bad) else _checked(row, key, build, report, exists, shown)
        if isinstance(found, Bad):
            report.skip(found.reason, found.row)
            continue
        records.append(found)
        report.lines[getattr(found, key)] = row.number
        report.kept += 1
    report.check(strict)
    return records, report


def _checked(
    row: Row, key: str, build: Callable[[Fields], Any], report: Report, exists: Callable[[str], bool], shown: Shown
) -> Any | Bad:
    """The record of a row, or why there is none."""
    try:
        record = build(row.fields)
        check_read(row.fields, record)
        if (name := getattr(record, key)) in report.lines:
            raise RowError("duplicate id", f"{row.unit} {report.lines[name]} has it already")
        for video in videos_of(record):
            _check_video(video, exists)
        if not (isinstance(record, Pair) and record.rejected_video):
            shown.check(record.video, paths(row.fields.get("frames")))
        return record
    except RowError as bad:
        return refused(row, row.fields.get(key), bad)


def _check_video(video: str, exists: Callable[[str], bool]) -> None:
    try:
        found = exists(video)
    except DataError as error:
        raise RowError("video outside root", f"expected {error.expected}, found {error.found}") from error
    if not found:
        raise RowError("video missing", video)
