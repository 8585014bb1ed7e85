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

log = logging.getLogger(__name__)

Row = TypeVar("Row", Prompt, Conversation, Pair)


def prompts(config: Config, file: str) -> list[Prompt]:
    return _load(config, file, read_prompts)


def conversations(config: Config, file: str) -> list[Conversation]:
    return _load(config, file, read_conversations)


def pairs(config: Config, file: str) -> list[Pair]:
    return _load(config, file, read_pairs)


def data_path(config: Config, file: str) -> Path:
    """A dataset file: relative to `data.root`, or absolute."""
    return Path(config.data.root) / file


def _load(config: Config, file: str, read: Callable[..., tuple[list[Row], Report]]) -> list[Row]:
    """Good rows of a file whose videos can be opened; the others are counted and named (fatal with `data.strict`)."""
    rows, report = read(data_path(config, file), config.data.root, config.data.strict)
    videos = sorted({row.video for row in rows})
    rows = skip_bad_videos(
        rows, check_videos(config.data.root, videos, config.video.num_frames), report, config.data.strict
    )
    if report.skipped:
        log.warning("%s", report.summary())
    return rows
