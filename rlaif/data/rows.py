"""What the files of a run hold, what a row must look like, and what became of the rows (rlaif/data/read.py reads them).

A row's `video` is a path relative to `data.root`, a file or a folder of frames. It may not climb out of the root with
`..`; an absolute path is taken as it stands.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from rlaif.errors import DataError
from rlaif.io.progress import progress
from rlaif.records import Prompt
from rlaif.video.spec import FrameSpec

SHOWN = 10
"""Bad rows that an error or a summary lists in full."""

SHOWN_BRIEFLY = 100
"""Further bad rows that it lists by line and id."""

OVERALL = "overall"
"""What a preference is about where its row does not say."""


@dataclass(frozen=True)
class Conversation:
    """One row of a fine-tuning file: turns that alternate and end with the assistant's."""

    id: str
    video: str
    """As in `Prompt`."""
    messages: tuple[tuple[str, str], ...]
    """(role, content) in order; an optional system turn, then user, assistant, user, ..."""
    captions: tuple[str, ...] = ()
    extra: dict = field(default_factory=dict)
    """Every other field of the row, untouched."""
    turn_fields: tuple[dict, ...] = ()
    """Every other field of each turn, untouched; () if no turn has any."""


@dataclass(frozen=True)
class Pair:
    """One row of a preference file: `chosen` was preferred to `rejected` along `dimension`."""

    pair_id: str
    video: str
    """Where the candidates are the videos, the chosen one."""
    question: str
    captions: tuple[str, ...]
    chosen: str
    rejected: str
    dimension: str = OVERALL
    dimensions: Mapping[str, int] = field(default_factory=dict)
    """1: `chosen` is also preferred in that dimension; -1: `rejected` is."""
    margin: float | None = None
    """How much better `chosen` is along `dimension`."""
    rejected_video: str | None = None
    """The other candidate, where they are videos."""
    prompt_id: str | None = None
    earlier_turns: bool = False
    """The row has turns before the question. They are not read."""

    @property
    def signs(self) -> dict[str, int]:
        """`dimensions` with the row's own among them."""
        return {self.dimension: 1, **self.dimensions}

    @property
    def videos(self) -> tuple[str, ...]:
        """Every video that must be there."""
        return (self.video, self.rejected_video) if self.rejected_video else (self.video,)


Row = TypeVar("Row", Prompt, Conversation, Pair)
ID_FIELD = {Prompt: "prompt_id", Conversation: "id", Pair: "pair_id"}


@dataclass(frozen=True)
class BadRow:
    line: int | None
    """1-based; None where it isn't known."""
    id: str | None
    detail: str
    unit: str = "line"
    """What `line` counts: lines of a file, or its rows where rows are not lines."""

    @property
    def place(self) -> str:
        return f"{self.unit} {self.line}" + (f" {self.id!r}" if self.id is not None else "")

    def __str__(self) -> str:
        return f"{self.unit} {self.line}, id {self.id!r}: {self.detail}"


@dataclass
class Report:
    """What reading one file kept and skipped."""

    path: str
    kept: int = 0
    skipped: dict[str, list[BadRow]] = field(default_factory=dict)
    """By reason."""
    lines: dict[str, int] = field(default_factory=dict)
    """Line of every kept row, by id."""
    unit: str = "line"
    """What these numbers count: see `BadRow`."""

    @property
    def counts(self) -> dict[str, int]:
        """Rows by outcome: `kept`, then each reason."""
        return {"kept": self.kept} | {reason: len(rows) for reason, rows in self.skipped.items()}

    def skip(self, reason: str, row: BadRow) -> None:
        self.skipped.setdefault(reason, []).append(row)

    def summary(self, shown: int | None = SHOWN) -> str:
        """One line of counts, then the bad rows by name: so many of them, or all."""
        total = sum(self.counts.values())
        counts = "".join(f", {count} {reason}" for reason, count in self.counts.items() if reason != "kept")
        return "\n".join([f"{self.path}: {self.kept} of {total} rows kept{counts}", *self._named(shown)])

    def _named(self, shown: int | None) -> list[str]:
        every = [(reason, row) for reason, rows in self.skipped.items() for row in rows]
        named = [f"  {reason}: {row}" for reason, row in every[:shown]]
        rest = every[len(named) :]
        if rest:
            brief = [row.place for _, row in rest[:SHOWN_BRIEFLY]]
            left = len(rest) - len(brief)
            named.append(f"  and {len(rest)} more: {', '.join(brief)}" + (f" and {left} others" if left else ""))
        return named

    def check(self, strict: bool) -> None:
        """Raises DataError when nothing is left, or when `strict` and anything was skipped."""
        if self.kept and not (strict and self.skipped):
            return
        found = self.summary() if self.skipped else "no rows at all"
        wanted = "only good rows, as data.strict asks for," if strict and self.kept else "at least one good row"
        raise DataError(f"{wanted} in {self.path}", found, "correct the rows, or give another file")


# -- what a row must look like

Text = Annotated[str, Field(min_length=1)]


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    video: Text
    native: dict[str, dict] = {}
    """By format: what the row said there (rlaif/data/formats/roundtrip.py)."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: dict) -> dict:
        """Take a null in a field of the form for an absent field: tables have one in every gap."""
        return {name: value for name, value in fields.items() if value is not None or name not in cls.model_fields}

    @property
    def others(self) -> dict:
        """Every field of the row that its form does not name, and `native`."""
        return self.model_extra | ({"native": self.native} if self.native else {})


class PromptRow(_Row):
    prompt_id: Text
    question: Text
    answer: str | None = None
    captions: list[str] = []

    def build(self) -> Prompt:
        return Prompt(self.prompt_id, self.video, self.question, self.answer, tuple(self.captions), self.others)


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "user", "assistant"]
    content: Text


class ConversationRow(_Row):
    video: Text | None = None  # some conversations are about none
    id: Text
    messages: list[_Message]
    captions: list[str] = []

    def build(self) -> Conversation:
        messages = tuple((message.role, message.content) for message in self.messages)
        check_turns(messages, last="assistant")
        more = tuple(message.model_extra for message in self.messages)
        turn_fields = more if any(more) else ()
        return Conversation(self.id, self.video or "", messages, tuple(self.captions), self.others, turn_fields)


class PairRow(_Row):
    video: Text | None = None
    pair_id: Text
    question: Text
    captions: list[str] = []
    chosen: Text | None = None
    rejected: str | None = None  # a policy may well answer nothing, and lose
    chosen_video: Text | None = None
    rejected_video: Text | None = None
    prompt_id: str | None = None
    dimension: Text = OVERALL
    dimensions: dict[Text, int] = {}
    margin: FiniteFloat | None = None
    messages: list = []

    def build(self) -> Pair:
        of_videos = bool(self.chosen_video or self.rejected_video)
        needed = ("chosen_video", "rejected_video") if of_videos else ("video", "chosen", "rejected")
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise RowError("missing field", f"{missing[0]}: Field required")
        chosen, rejected = (getattr(self, name) for name in needed[-2:])
        if chosen == rejected:
            raise RowError("chosen equals rejected", repr(chosen[:60]))
        check_signs(self.dimension, self.dimensions)
        return Pair(
            self.pair_id,
            self.chosen_video or self.video,
            self.question,
            tuple(self.captions),
            self.chosen or "",
            self.rejected or "",
            self.dimension,
            self.dimensions,
            self.margin,
            self.rejected_video,
            self.prompt_id,
            len(self.messages) > 1,
        )


class RowError(Exception):
    """Why one row is skipped; whoever reads the file catches it and counts it by `reason`."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def check_signs(dimension: str, dimensions: Mapping[str, int]) -> None:
    """Raises RowError unless `dimensions` holds 1 and -1 only, and 1 for the row's own `dimension`."""
    for name, sign in dimensions.items():
        if sign not in (1, -1):
            raise RowError("wrong type", f"dimensions.{name}: {sign} is neither 1 nor -1")
    if dimensions.get(dimension, 1) != 1:
        raise RowError("dimensions contradict", f"{dimension!r} is the row's own dimension, and -1 in its list")


def check_turns(messages: Sequence[tuple[str, str]], last: Literal["user", "assistant"]) -> None:
    """Raises RowError unless (role, content) turns alternate from the user to `last`, after at most one system turn."""
    turns = [role for role, _ in messages if role != "system"]
    wanted = (["user", "assistant"] * len(turns))[: len(turns)]
    if not turns or turns != wanted or turns[-1] != last or "system" in [role for role, _ in messages[1:]]:
        raise RowError("turns out of order", f"roles are {[role for role, _ in messages]}")


# -- videos


def video_path(root: str | Path, video: str) -> Path:
    """Where a row's `video` is. Raises DataError for a relative path that leaves `root`, and for one in a bucket.

    Links are not followed, so a root may be made of them.
    """
    if "://" in (whole := video if os.path.isabs(video) or "://" in video else f"{root}/{video}"):
        change = "copy the videos to a file system that every node sees; data.root is that folder"
        raise DataError("a video at a local path", f"the URI {whole}", change)
    inside = os.path.normpath(video)
    if inside == ".." or inside.startswith("../"):
        raise DataError(
            f"a path inside {root}", f"video {video!r}", "move the video into data.root, or give its full path"
        )
    return Path(root) / inside


def check_videos(videos: Iterable[str], spec: Callable[[str], FrameSpec], threads: int | None = None) -> dict[str, str]:
    """Probe each different video with `spec`; the reasons of those that cannot be used, by `video`. Shows progress.

    Cheap (hash, open, first frame), so damage further in is found when a video is decoded.
    """
    unique = list(dict.fromkeys(videos))
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        reasons = progress(pool.map(partial(_why_unusable, spec), unique), "checking videos", len(unique))
        return {video: reason for video, reason in zip(unique, reasons, strict=True) if reason}


def skip_bad_videos(rows: list[Row], bad: dict[str, str], report: Report, strict: bool = False) -> list[Row]:
    """The rows whose video is not in `bad` (from `check_videos`); the others go into `report`. Raises as readers do."""
    kept = []
    for row in rows:
        reason = next((bad[video] for video in videos_of(row) if video in bad), None)
        if reason is None:
            kept.append(row)
            continue
        name = getattr(row, ID_FIELD[type(row)])
        report.kept -= 1
        report.skip("video unusable", BadRow(report.lines.get(name), name, reason, report.unit))
    report.check(strict)
    return kept


def skip_unusable(
    rows: Sequence[Row], checks: Sequence[Callable[[Row], str | None]], report: Report, strict: bool = False
) -> tuple[list[Row], dict[str, list[str]]]:
    """Return the rows that pass all checks, and the ids of those that a check remarks on, by remark.

    A check raises RowError for a row that can never be used, which goes into `report`. Raises DataError as readers do.
    """
    kept, remarks = [], {}
    for row in progress(rows, "checking rows", len(rows)) if checks else rows:
        name = getattr(row, ID_FIELD[type(row)])
        try:
            said = [remark for check in checks if (remark := check(row))]
        except RowError as error:
            report.kept -= 1
            report.skip(error.reason, BadRow(report.lines.get(name), name, error.detail, report.unit))
            continue
        kept.append(row)
        for remark in said[:1]:
            remarks.setdefault(remark, []).append(name)
    report.check(strict)
    return kept, remarks


def decode_videos(
    videos: Iterable[str], decode: Callable[[str], object], seconds: float | None = None, threads: int | None = 1
) -> tuple[dict[str, str], int]:
    """Decode each different video in order; return the reasons of those that fail, by video, and how many were tried.

    seconds: none is begun later than this (None: all are decoded). Shows progress.
    """
    unique = list(dict.fromkeys(videos))
    deadline = math.inf if seconds is None else time.monotonic() + seconds

    def tried(video: str) -> str | None:
        return _why_unusable(decode, video) or "" if time.monotonic() < deadline else None

    with ThreadPoolExecutor(threads) as pool:
        reasons = list(progress(pool.map(tried, unique), "decoding videos", len(unique)))
    bad = {video: reason for video, reason in zip(unique, reasons, strict=True) if reason}
    return bad, sum(reason is not None for reason in reasons)


def videos_of(row: Row) -> tuple[str, ...]:
    """Every video that a row needs."""
    videos = row.videos if isinstance(row, Pair) else (row.video,)
    return tuple(video for video in videos if video)


def _why_unusable(use: Callable[[str], object], video: str) -> str | None:
    try:
        use(video)
    except DataError as error:
        return f"{video}: expected {error.expected}, found {error.found}"
    return None


def build_row(form: type[BaseModel], fields: dict, within: str = ""):
    """Return what a row form builds from `fields`, which are a part of the row called `within` in messages.

    Raises RowError that names every problem and counts by the first.
    """
    try:
        return form.model_validate(fields).build()
    except ValidationError as error:
        problems = error.errors(include_url=False)
        reasons = {"missing": "missing field", "string_too_short": "empty field"}
        detail = "; ".join(dict.fromkeys(f"{within}{_found(problem)}" for problem in problems))
        raise RowError(reasons.get(problems[0]["type"], "wrong type"), detail) from error


def _found(problem: dict) -> str:
    """Return the place and the kind of a problem that pydantic reports; one for both members of `str | int`."""
    place = [str(part) for part in problem["loc"]]
    if len(place) > 1 and place[-1] in ("str", "int"):
        return f"{'.'.join(place[:-1])}: Input should be a text or a whole number"
    return f"{'.'.join(place)}: {problem['msg']}"
