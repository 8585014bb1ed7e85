"""Datasets of a stage, checked before anything expensive starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rlaif.config.schema import Config
from rlaif.data import (
    Conversation,
    Pair,
    Report,
    check_videos,
    read_conversations,
    read_pairs,
    read_prompts,
    skip_bad_videos,
    videos_of,
)
from rlaif.errors import DataError
from rlaif.feedback.store import Store
from rlaif.records import Prompt
from rlaif.stages.run import Run

log = logging.getLogger(__name__)

Row = TypeVar("Row", Prompt, Conversation, Pair)


def prompts(run: Run, file: str) -> list[Prompt]:
    """With the captions of `data.captions`, where that is set and there."""
    return _load(run, file, read_prompts)


def prompts_of(run: Run, files: Sequence[str]) -> list[Prompt]:
    """The prompts of several files, each once. Raises DataError for an id that stands for two different prompts."""
    found: dict[str, Prompt] = {}
    for file in files:
        for prompt in prompts(run, file):
            known = found.setdefault(prompt.prompt_id, prompt)
            if (known.video, known.question) != (prompt.video, prompt.question):
                change = f"its id in {file}, or which files are read"
                two = f"{known.video!r}, {known.question!r} and {prompt.video!r}, {prompt.question!r}"
                raise DataError(f"one video and question for prompt {prompt.prompt_id!r}", two, change)
    return list(found.values())


def conversations(run: Run, file: str) -> list[Conversation]:
    return _load(run, file, read_conversations)


def pairs(run: Run, file: str) -> list[Pair]:
    return _load(run, file, read_pairs)


def data_path(config: Config, file: str) -> Path:
    """A dataset file: relative to `data.root`, or absolute."""
    return Path(config.data.root) / file


def _load(run: Run, file: str, read: Callable[..., tuple[list[Row], Report]]) -> list[Row]:
    """Good rows of a file whose videos can be opened; the others are counted and named (fatal with `data.strict`).

    The frame store probes the videos, so that no other role and no later stage has to do it again.
    """
    root, strict = run.config.data.root, run.config.data.strict
    rows, report = read(data_path(run.config, file), root, strict)
    rows = captioned(run.config, rows)
    videos = sorted({video for row in rows for video in videos_of(row)})
    bad = check_videos(videos, run.topology.client().spec)
    rows = skip_bad_videos(rows, bad, report, strict)
    if report.skipped:
        log.warning("%s", report.summary())
    return rows


def captioned(config: Config, rows: list[Row]) -> list[Row]:
    """With the context of `data.captions`, where that is set and has been made; rows without any are counted."""
    if config.data.captions is None or not data_path(config, config.data.captions).is_file():
        return rows
    known = captions_by_video(data_path(config, config.data.captions))
    found = [replace(row, captions=stored(known, row)) if _reads_captions(row) else row for row in rows]
    if without := sum(_reads_captions(row) and not row.captions for row in found):
        log.warning("%d of %d rows have no captions in %s", without, len(rows), config.data.captions)
    return found


def _reads_captions(row: Row) -> bool:
    """Not where two videos are compared: one context beside both would tell which of them it is about."""
    return not isinstance(row, Conversation) and not (isinstance(row, Pair) and row.rejected_video)


def stored(known: dict[tuple[str, str], tuple[str, ...]], row: Prompt | Pair) -> tuple[str, ...]:
    """The captions of a row, out of `captions_by_video`."""
    return known.get((row.video, "")) or known.get((row.video, row.question), ())


def open_captions(path: Path) -> Store[tuple[str, str]]:
    """What `rlaif caption` writes; a video whose captions failed counts as missing."""
    return Store(path, lambda row: (row["key"], row["video"]), lambda row: "masked" in row)


def captions_by_video(path: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """The context of each (video, question; empty where captions do not depend on it) that `rlaif caption` wrote.

    Of several rows of a video (its file or its size has changed) the last one counts. Raises DataError where a file holds
    captions of more than one kind, so that which are read would be chance.
    """
    rows = open_captions(path).newest_last()
    kinds = sorted({(row["model"], row.get("captioner", ""), row["version"]) for row in rows})
    if len(kinds) > 1:
        found = "; ".join(f"{model} (weights {print_}) with prompt version {asked}" for model, print_, asked in kinds)
        raise DataError(f"captions by one model and prompt in {path}", found, "another file for each: data.captions")
    return {(row["video"], row.get("question", "")): tuple(row["context"]) for row in rows if "masked" not in row}
