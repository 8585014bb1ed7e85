"""Our own rows: preference pairs, prompts and fine-tuning conversations."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from rlaif.data.formats.base import Format, Options
from rlaif.data.own_rows import (
    CONVERSATION_FIELDS,
    NESTED,
    PAIR_FIELDS,
    PAIR_LISTS,
    PROMPT_FIELDS,
    Fields,
    open_pair_row,
    without_nan,
)
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Conversation, ConversationRow, PromptRow, build_row
from rlaif.records import Prompt


def _column(name: str) -> pa.DataType:
    if name == "margin":
        return pa.float64()
    return pa.list_(pa.string()) if name in PAIR_LISTS else pa.string()


SCHEMA = pa.schema([(name, _column(name)) for name in PAIR_FIELDS])


def _columns(row: Fields) -> Fields:
    """Turn a JSON row of ours into a row of `SCHEMA`; fields that we don't know have no column and go into `native`."""
    extra = {name: value for name, value in row.items() if name not in PAIR_FIELDS}
    columns = {name: value for name, value in row.items() if name in PAIR_FIELDS}
    if extra:
        columns["native"] = columns.get("native", {}) | {"rlaif": extra}
    for name in NESTED & columns.keys():
        columns[name] = json.dumps(columns[name])
    return columns


def _pair(record: PreferencePair, place: int) -> Fields:
    row = record.to_row()
    native = dict(row.pop("native", {}))
    extra = native.pop("rlaif", {})
    # what an edited file may have there never replaces what the record says
    extra = {name: value for name, value in extra.items() if name not in PAIR_FIELDS}
    if native:
        row["native"] = native
    return row | extra


def _conversation(fields: Fields) -> Conversation:
    return build_row(ConversationRow, fields)


def _conversation_row(record: Conversation, place: int) -> Fields:
    turn_fields = record.turn_fields or ({},) * len(record.messages)
    messages = []
    for (role, content), others in zip(record.messages, turn_fields, strict=True):
        messages.append({"role": role, "content": content, **others})
    row: dict[str, Any] = {"id": record.id}
    # a conversation about text alone names no video: our own readers refuse an empty one
    if record.video:
        row["video"] = record.video
    row["messages"] = messages
    if record.captions:
        row["captions"] = list(record.captions)
    return row | record.extra


def _prompt(fields: Fields) -> Prompt:
    return build_row(PromptRow, fields)


def _prompt_row(record: Prompt, place: int) -> Fields:
    row: dict[str, Any] = {"prompt_id": record.prompt_id, "video": record.video, "question": record.question}
    if record.answer is not None:
        row["answer"] = record.answer
    if record.captions:
        row["captions"] = list(record.captions)
    return row | record.extra


def _open_pair(fields: Fields, options: Options) -> Fields:
    return open_pair_row(fields)


def _open_prompt(fields: Fields, options: Options) -> Fields:
    return without_nan(PROMPT_FIELDS, fields)


def _open_conversation(fields: Fields, options: Options) -> Fields:
    return without_nan(CONVERSATION_FIELDS, fields)


PAIRS = Format(
    name="rlaif",
    kind="pairs",
    about="our preference pairs",
    recognise=lambda row: {"pair_id", "question"} <= row.keys(),
    build=PreferencePair.from_row,
    bare=_pair,
    key="pair_id",
    uses=frozenset(PAIR_FIELDS),
    own=True,
    prepare=_open_pair,
    schema=SCHEMA,
    columns=_columns,
)
PROMPTS = Format(
    name="prompts",
    kind="prompts",
    about="our prompts",
    recognise=lambda row: {"prompt_id", "question"} <= row.keys() and "pair_id" not in row,
    build=_prompt,
    bare=_prompt_row,
    key="prompt_id",
    uses=PROMPT_FIELDS,
    own=True,
    prepare=_open_prompt,
)
SFT = Format(
    name="sft",
    kind="conversations",
    about="our fine-tuning conversations",
    recognise=lambda row: {"id", "messages"} <= row.keys(),
    build=_conversation,
    bare=_conversation_row,
    key="id",
    uses=CONVERSATION_FIELDS,
    own=True,
    prepare=_open_conversation,
)
