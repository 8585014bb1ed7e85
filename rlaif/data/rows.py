"""Rows of our own files: what they must look like, why one is rejected, and the report of what reading a file kept.

A row's `video` is a path relative to `data.root`: a file or a folder of frames (rlaif/data/videos.py). rlaif/data/read.py
reads whole files; the row of a preference pair has its own module, rlaif/data/preference.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlaif.errors import DataError
from rlaif.records import Prompt

Item = TypeVar("Item")

SHOWN = 10
"""Bad rows that an error or a summary lists in full."""

SHOWN_BRIEFLY = 100
"""Further bad rows that it lists by line and id."""

MESSAGE = 500
"""Characters of the longest message about a row; a longer one is cut to `EXCERPT` characters."""

EXCERPT = 200

OVERALL = "overall"
"""The dimension of a preference whose row names none."""

_UNBROKEN = re.compile(r"\S{161,}")
"""A run of characters without white space that is too long to repeat in a message."""


@dataclass(frozen=True)
class Row:
    """One JSON object of a file, as the file has it."""

    number: int
    """1-based."""
    fields: dict[str, Any]
    unit: str = "line"
    """What `number` counts: lines of a file, or its rows."""


@dataclass(frozen=True)
class Unreadable:
    """Stands for a value that the file holds and Python cannot."""

    problem: str


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


# -- rows that cannot be used


class RowError(Exception):
    """Why one row is skipped; the reader of the file catches it and counts it by `reason`."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class BadRow:
    """The place of a row that was skipped, and what is wrong with it."""

    line: int | None
    """1-based; None if it isn't known."""
    id: str | None
    detail: str
    unit: str = "line"
    """What `line` counts: lines of a file, or its rows if rows are not lines."""

    @property
    def place(self) -> str:
        """Return the row's place for a list of places."""
        place = f"{self.unit} {self.line}"
        return place if self.id is None else f"{place} {self.id!r}"

    def __str__(self) -> str:
        place = f"{self.unit} {self.line}"
        return f"{place}: {self.detail}" if self.id is None else f"{place}, id {self.id!r}: {self.detail}"


@dataclass(frozen=True)
class RowFailure:
    """Travels in the place of a row or record that cannot be used."""

    reason: str
    row: BadRow


def reject(row: Row, name: object, error: RowError) -> RowFailure:
    """Return the failure of a row whose id is `name`."""
    return _failure(row.number, name, error, row.unit)


def reject_record(lines: Mapping[str, int], name: str, error: RowError, unit: str) -> RowFailure:
    """Return the failure of the record called `name`; `lines` holds the number of every record's row."""
    return _failure(lines.get(name), name, error, unit)


def _failure(number: int | None, name: object, error: RowError, unit: str) -> RowFailure:
    shown_name = None if name is None else excerpt(name)
    bad_row = BadRow(number, shown_name, shortened(error.detail), unit)
    return RowFailure(error.reason, bad_row)


def valid(items: Iterable[Item | RowFailure], report: Report) -> Iterator[Item]:
    """Yield the items that are no failures, and count both kinds in `report`."""
    for item in items:
        if isinstance(item, RowFailure):
            report.skip(item.reason, item.row)
        else:
            report.kept += 1
            yield item


def without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are not null: tables have a null in every gap."""
    return {name: value for name, value in fields.items() if value is not None}


def excerpt(value: object, most: int = 80) -> str:
    """Return the text of a value for a message, cut to `most` characters."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def shortened(message: str) -> str:
    """Return a message that repeats no long value: a row may hold megabytes."""
    message = _UNBROKEN.sub(lambda match: excerpt(match.group()), message)
    return message if len(message) <= MESSAGE else excerpt(message, EXCERPT)


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
        """Return the number of rows by outcome: `kept`, then each reason."""
        counts = {"kept": self.kept}
        for reason, rows in self.skipped.items():
            counts[reason] = len(rows)
        return counts

    def skip(self, reason: str, row: BadRow) -> None:
        """Count a row that was skipped when it was read."""
        self.skipped.setdefault(reason, []).append(row)

    def drop(self, name: str, error: RowError) -> BadRow:
        """Count the row of the record called `name`, which was kept until now, as skipped; return its place."""
        row = BadRow(self.lines.get(name), name, error.detail, self.unit)
        self.kept -= 1
        self.skip(error.reason, row)
        return row

    def summary(self, shown: int | None = SHOWN) -> str:
        """Return one line of counts, then the bad rows by name: `shown` of them in full, or all (None)."""
        total = self.kept + sum(map(len, self.skipped.values()))
        counts = ""
        for reason, count in self.counts.items():
            if reason != "kept":
                counts += f", {count} {reason}"
        return "\n".join([f"{self.path}: {self.kept} of {total} rows kept{counts}", *self._named(shown)])

    def _named(self, shown: int | None) -> list[str]:
        places: list[str] = []
        lines: list[str] = []
        for reason, rows in self.skipped.items():
            for row in rows:
                places.append(row.place)
                lines.append(f"  {reason}: {row}")
        named, others = lines[:shown], places[len(lines[:shown]) :]
        if others:
            brief = ", ".join(others[:SHOWN_BRIEFLY])
            uncounted = len(others) - SHOWN_BRIEFLY
            more = f" and {uncounted} others" if uncounted > 0 else ""
            named.append(f"  and {len(others)} more: {brief}{more}")
        return named

    def check(self, strict: bool, is_export: bool = False) -> None:
        """Raise DataError if no row is left, or if `strict` and any was skipped.

        Args:
            is_export: the rows go to another format, so they may be right although that format cannot hold them.
        """
        if self.kept and not (strict and self.skipped):
            return
        summary = self.summary() if self.skipped else "no rows at all"
        expected = "only good rows, as data.strict asks for," if strict and self.kept else "at least one good row"
        fix = "Correct the rows, or give another file."
        if is_export:
            fix = "Correct the rows, or choose another format as --to."
        raise DataError(f"{expected} in {self.path}", summary, fix)


# -- what a row must look like

Text = Annotated[str, Field(min_length=1)]


class _RowForm(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    native: dict[str, dict] = {}
    """By format: what the row said there (rlaif/data/formats/roundtrip.py)."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: dict) -> dict:
        """Take a null in a field of the form for an absent field: tables have one in every gap."""
        return {name: value for name, value in fields.items() if value is not None or name not in cls.model_fields}

    @property
    def others(self) -> dict:
        """Return every field of the row that its form does not name, and `native`."""
        others = dict(self.model_extra or {})
        if self.native:
            others["native"] = self.native
        return others


class PromptRow(_RowForm):
    """The row of a prompts file."""

    video: Text
    prompt_id: Text
    question: Text
    answer: str | None = None
    captions: list[str] = []

    def build(self) -> Prompt:
        """Return the row's record."""
        return Prompt(self.prompt_id, self.video, self.question, self.answer, tuple(self.captions), self.others)


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "user", "assistant"]
    content: Text


class ConversationRow(_RowForm):
    """The row of a fine-tuning file."""

    # some conversations are about none
    video: Text | None = None
    id: Text
    messages: list[_Message]
    captions: list[str] = []

    def build(self) -> Conversation:
        """Return the row's record. Raise RowError if its turns are out of order."""
        messages = tuple((message.role, message.content) for message in self.messages)
        check_turns(messages, last="assistant")
        more = tuple(message.model_extra or {} for message in self.messages)
        turn_fields = more if any(more) else ()
        return Conversation(self.id, self.video or "", messages, tuple(self.captions), self.others, turn_fields)


def check_turns(messages: Sequence[tuple[str, str]], last: Literal["user", "assistant"]) -> None:
    """Raise RowError unless (role, content) turns alternate from the user to `last`, after at most one system turn."""
    roles = [role for role, _ in messages]
    # a system turn that is not the first is refused below, so all of them may be passed over here
    turns = [role for role in roles if role != "system"]
    alternating = (["user", "assistant"] * len(turns))[: len(turns)]
    if not turns or turns != alternating or turns[-1] != last or "system" in roles[1:]:
        raise RowError("turns out of order", f"roles are {roles}")


def build_row(form: type[BaseModel], fields: Mapping[str, Any], within: str = "") -> Any:
    """Return what a row form builds from `fields`, which are a part of the row called `within` in messages.

    Raise RowError that names every problem and counts by the first.
    """
    # `build` runs inside of the try, too: it may raise RowError, which passes through
    try:
        return form.model_validate(fields).build()  # type: ignore[attr-defined]  # every row form has `build`
    except ValidationError as error:
        problems = error.errors(include_url=False)
        reasons = {"missing": "missing field", "string_too_short": "empty field"}
        texts = [f"{within}{_problem_text(problem)}" for problem in problems]
        detail = "; ".join(dict.fromkeys(texts))
        raise RowError(reasons.get(problems[0]["type"], "wrong type"), detail) from error


def _problem_text(problem: Mapping[str, Any]) -> str:
    """Return the place and the kind of a problem that pydantic reports; one for both members of `str | int`."""
    place = [str(part) for part in problem["loc"]]
    if len(place) > 1 and place[-1] in ("str", "int"):
        return f"{'.'.join(place[:-1])}: Input should be a text or a whole number"
    return f"{'.'.join(place)}: {problem['msg']}"
