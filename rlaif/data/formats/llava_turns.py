"""Conversations of the LLaVA kind: [{"from": "human" | "gpt", "value": text}], with placeholders for the media."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rlaif.data.formats.visual import check_placeholders, without_placeholders
from rlaif.data.rows import RowError, build_row, check_turns

PLACEHOLDER = "<image>"
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
SPEAKERS = {role: speaker for speaker, role in ROLES.items()}
Messages = tuple[tuple[str, str], ...]


class _Turn(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    speaker: Literal["human", "gpt", "system"] = Field(alias="from")
    value: str

    def build(self) -> tuple[str, str]:
        """Return the turn as (role, content)."""
        # the media come first in a prompt, whatever the place of its mark in the row
        text = without_placeholders(self.value) if self.speaker == "human" else self.value
        return ROLES[self.speaker], text


def read_turns(
    fields: dict[str, Any], name: str, last: Literal["user", "assistant"], media: dict[str, Any]
) -> Messages:
    """Return (role, content) of each turn, without the placeholders of `media` (from `read_media`).

    Raise RowError for turns that are wrong or out of order, and for a placeholder that stands for nothing.
    """
    turns = fields.get(name)
    if turns is None:
        raise RowError("missing field", f"{name}: Field required")
    if not isinstance(turns, list):
        raise RowError("wrong type", f"{name}: a {type(turns).__name__} instead of a list")
    for turn in turns:
        if not isinstance(turn, dict):
            raise RowError("wrong type", f"{name}: a turn that is a {type(turn).__name__}")
    messages = tuple(build_row(_Turn, turn, f"{name}.{place}.") for place, turn in enumerate(turns))
    questions = [turn["value"] for turn in turns if turn["from"] == "human"]
    # in the turns as they are in the row: `messages` has no placeholders any more
    check_placeholders(questions, media)
    check_turns(messages, last)
    for role, text in messages:
        if role == "user" and not text.strip():
            raise RowError("empty field", f"{name}: a human turn without text")
    return messages


def write_turns(messages: Sequence[tuple[str, str]], mark: str) -> list[dict[str, str]]:
    """Return turns whose first human one begins with `mark` ("<image>" and a separator, or nothing)."""
    turns = []
    for role, text in messages:
        if role == "user":
            text, mark = mark + text, ""
        turns.append({"from": SPEAKERS[role], "value": text})
    return turns


def question_fields(messages: Messages) -> dict[str, Any]:
    """Return the fields of a pairs row for its turns: `question`, and `messages` if there is more than one turn."""
    turns = as_messages(messages) if len(messages) > 1 else []
    return {"question": messages[-1][1], "messages": turns}


def as_messages(messages: Messages) -> list[dict[str, str]]:
    """Return turns as a row of ours has them."""
    return [{"role": role, "content": text} for role, text in messages]


def turns_before_answer(question: str, messages: Messages) -> Messages:
    """Return the turns of a record: its `messages`, or the one turn that its `question` is."""
    return messages or (("user", question),)
