"""Our own rows: preference pairs, prompts and fine-tuning conversations."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import fields as dataclass_fields
from functools import partial
from typing import Any

import pyarrow as pa

from rlaif.data import strict_json
from rlaif.data.bad_rows import excerpt
from rlaif.data.formats.base import Fields, Format, Options
from rlaif.data.preference import Preference
from rlaif.data.rows import Conversation, ConversationRow, PromptRow, RowError, build_row
from rlaif.records import Prompt

TEXTS = {"pair_id", "question", "chosen", "rejected", "prompt_id", "video", "modality", "dimension"}
TEXTS |= {"chosen_video", "rejected_video"}
LISTS = {"frames", "captions"}
NAMES = tuple(item.name for item in dataclass_fields(Preference))
NESTED = frozenset(NAMES) - TEXTS - LISTS - {"margin"}
"""Columns that hold JSON text in a parquet file: their keys differ from row to row."""
STRUCTS = frozenset(("messages", "chosen_spans", "rejected_spans", "dimensions"))
"""Fields whose members are checked one by one; other tools write them as structs with a null for every absent member."""


def _column(name: str) -> pa.DataType:
    if name == "margin":
        return pa.float64()
    return pa.list_(pa.string()) if name in LISTS else pa.string()


SCHEMA = pa.schema([(name, _column(name)) for name in NAMES])


def _open(fields: Fields, options: Options) -> Fields:
    """Columns of a parquet file to the JSON row; a JSON row as it is."""
    row = _without_nan(NAMES, fields, options)
    row = {name: value for name, value in row.items() if value is not None}
    for name in NESTED & row.keys():
        if isinstance(row[name], str):
            try:
                row[name] = strict_json.loads(row[name])
            except (ValueError, RecursionError) as error:
                found = f"{name}: {excerpt(row[name])!r} is a text, and no JSON of what it should hold: {error}"
                raise RowError("wrong type", found) from error
    for name in STRUCTS & row.keys():
        row[name] = _without_nulls(row[name])
    return row


def _without_nan(names: Collection[str], fields: Fields, options: Options) -> Fields:
    """Return a row without NaN in the fields `names`: some tables have one in every gap."""
    gaps = [name for name in names if isinstance(fields.get(name), float) and math.isnan(fields[name])]
    return {name: value for name, value in fields.items() if name not in gaps}


def _without_nulls(value: Any) -> Any:
    """The value without what a table adds: null members of structs, and whole numbers as floats."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {name: strict_json.whole(item) for name, item in value.items() if item is not None}
    return value


def _columns(row: Fields) -> Fields:
    """A JSON row of ours to a row of `SCHEMA`; fields that we don't know have no column and go into `native`."""
    extra = {name: value for name, value in row.items() if name not in NAMES}
    row = {name: value for name, value in row.items() if name in NAMES}
    if extra:
        row["native"] = row.get("native", {}) | {"rlaif": extra}
    return {name: json.dumps(value) if name in NESTED else value for name, value in row.items()}


def _pair(record: Preference, place: int) -> Fields:
    row = record.to_row()
    native = dict(row.pop("native", {}))
    extra = native.pop("rlaif", {})
    # what an edited file may have there never replaces what the record says
    extra = {name: value for name, value in extra.items() if name not in NAMES}
    return row | ({"native": native} if native else {}) | extra


def _conversation(fields: Fields) -> Conversation:
    return build_row(ConversationRow, fields)


def _conversation_row(record: Conversation, place: int) -> Fields:
    fields = record.turn_fields or [{}] * len(record.messages)
    messages = [
        {"role": role, "content": content, **more}
        for (role, content), more in zip(record.messages, fields, strict=True)
    ]
    # a conversation about text alone names no video: our own readers refuse an empty one
    row: dict[str, Any] = {"id": record.id} | ({"video": record.video} if record.video else {}) | {"messages": messages}
    return row | ({"captions": list(record.captions)} if record.captions else {}) | record.extra


def _prompt(fields: Fields) -> Prompt:
    return build_row(PromptRow, fields)


def _prompt_row(record: Prompt, place: int) -> Fields:
    row: dict[str, Any] = {"prompt_id": record.prompt_id, "video": record.video, "question": record.question}
    if record.answer is not None:
        row["answer"] = record.answer
    return row | ({"captions": list(record.captions)} if record.captions else {}) | record.extra


FOR_CHECKERS = frozenset(["label", "kto_tag", "preference", "preferences", "ranking", "objects", "tools"])
"""Fields of a prompt that a checker or a reward function may read (`Prompt.extra`), whatever they mean elsewhere."""
OF_PROMPTS = FOR_CHECKERS | {"prompt_id", "video", "question", "answer", "captions", "frames", "modality", "native"}
OF_CONVERSATIONS = frozenset(("id", "video", "messages", "captions", "frames", "modality", "native"))

PAIRS = Format(
    name="rlaif",
    kind="pairs",
    about="our preference pairs",
    recognise=lambda row: {"pair_id", "question"} <= row.keys(),
    build=Preference.from_row,
    bare=_pair,
    key="pair_id",
    uses=frozenset(NAMES),
    own=True,
    prepare=_open,
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
    uses=OF_PROMPTS,
    own=True,
    prepare=partial(_without_nan, OF_PROMPTS),
)
SFT = Format(
    name="sft",
    kind="conversations",
    about="our fine-tuning conversations",
    recognise=lambda row: {"id", "messages"} <= row.keys(),
    build=_conversation,
    bare=_conversation_row,
    key="id",
    uses=OF_CONVERSATIONS,
    own=True,
    prepare=partial(_without_nan, OF_CONVERSATIONS),
)
