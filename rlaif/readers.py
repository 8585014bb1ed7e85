"""Read and check the files of a run: prompts, conversations, preference pairs. A bad row is counted, named and skipped, or
fatal where `strict`.

Rows are our own (docs/preferences.md), in any kind of file that rlaif/preferences/files.py reads: .jsonl, .json (one list),
both also .gz, and .parquet. A row's `video` is a path relative to `data.root`, a file or a folder of frames.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rlaif.data import (
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
from rlaif.preferences.files import read_rows, unit
from rlaif.preferences.formats.base import Fields, Options
from rlaif.preferences.formats.own import NAMES, PAIRS
from rlaif.preferences.listed import Shown, paths
from rlaif.preferences.misread import MARKED, SHOWN, UNUSED, media_marks, misread
from rlaif.preferences.rows import Bad, Row, refused
from rlaif.records import Prompt

FOR_CHECKERS = frozenset("label kto_tag preference preferences ranking objects tools".split())
"""Fields of a prompt that a checker or a reward function may read (`Prompt.extra`), whatever they mean elsewhere."""

USED = {
    Prompt: frozenset(PromptRow.model_fields) | FOR_CHECKERS | {"frames"},
    Conversation: frozenset(ConversationRow.model_fields) | {"frames"},
    Pair: frozenset(PairRow.model_fields) | frozenset(NAMES),
}
"""Fields of a row that are read, or kept on purpose. Others are refused if leaving them out would change what it says."""


def check_read(fields: Fields, record: Prompt | Conversation | Pair) -> None:
    """Raise RowError for a row whose record does not say what the row says.

    Either a field that holds media, answers, labels or turns has another name than ours, or a text holds a media mark,
    for which there is no medium.
    """
    if detail := misread(fields, USED[type(record)]):
        raise RowError(UNUSED, detail)
    for name, text in _texts(record):
        if marks := media_marks(text):
            raise RowError(MARKED, f"{name}: {marks[0][:SHOWN]!r} in a text stands for no medium: remove it")


def _texts(record: Prompt | Conversation | Pair) -> Iterator[tuple[str, str]]:
    """(where, text) of everything in a record that a model may read."""
    if isinstance(record, Conversation):
        yield from ((f"messages[{place}] ({role})", text) for place, (role, text) in enumerate(record.messages))
    else:
        yield "question", record.question
    if isinstance(record, Pair):
        yield from (("chosen", record.chosen), ("rejected", record.rejected))
    yield from ((f"captions[{place}]", text) for place, text in enumerate(record.captions))


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
