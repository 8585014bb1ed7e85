"""Datasets of a stage, checked before anything expensive starts."""

from __future__ import annotations

import logging
from collections.abc import Callable
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
)
from rlaif.records import Prompt
from rlaif.stages.run import Run

log = logging.getLogger(__name__)

Row = TypeVar("Row", Prompt, Conversation, Pair)


def prompts(run: Run, file: str) -> list[Prompt]:
    return _load(run, file, read_prompts)


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
    bad = check_videos(sorted({row.video for row in rows}), run.topology.client().spec)
    rows = skip_bad_videos(rows, bad, report, strict)
    if report.skipped:
        log.warning("%s", report.summary())
    return rows
