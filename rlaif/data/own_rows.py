"""Our own rows as every reader of them sees them: how a record is named, which fields are used, how a table's row is opened.

Nothing here knows a published format, so that a stage that reads our own files alone imports none of those.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import fields as dataclass_fields
from typing import Any

from rlaif.data import strict_json
from rlaif.data.preference import UNWRITTEN, PreferencePair
from rlaif.data.rows import Conversation, RowError, excerpt, without_none
from rlaif.records import Prompt

Fields = dict[str, Any]

ID_FIELD: dict[type, str] = {Prompt: "prompt_id", Conversation: "id", PreferencePair: "pair_id"}
"""The field that names a record, in its row too."""

PAIR_FIELDS = tuple(item.name for item in dataclass_fields(PreferencePair) if item.name not in UNWRITTEN)
PAIR_TEXTS = frozenset(
    [
        "pair_id",
        "question",
        "chosen",
        "rejected",
        "prompt_id",
        "video",
        "modality",
        "dimension",
        "chosen_video",
        "rejected_video",
    ]
)
PAIR_LISTS = frozenset(("frames", "captions"))
NESTED = frozenset(PAIR_FIELDS) - PAIR_TEXTS - PAIR_LISTS - {"margin"}
"""Columns that hold JSON text in a parquet file: their keys differ from row to row."""
STRUCTS = frozenset(("messages", "chosen_spans", "rejected_spans", "dimensions"))
"""Fields whose members are checked one by one; other tools write them as structs with a null for every absent member."""

FOR_CHECKERS = frozenset(["label", "kto_tag", "preference", "preferences", "ranking", "objects", "tools"])
"""Fields of a prompt that a checker or a reward function may read (`Prompt.extra`), whatever they mean elsewhere."""
PROMPT_FIELDS = FOR_CHECKERS | {"prompt_id", "video", "question", "answer", "captions", "frames", "modality", "native"}
CONVERSATION_FIELDS = frozenset(("id", "video", "messages", "captions", "frames", "modality", "native"))

USED_FIELDS: dict[type, frozenset[str]] = {
    Prompt: PROMPT_FIELDS,
    Conversation: CONVERSATION_FIELDS,
    PreferencePair: frozenset(PAIR_FIELDS),
}
"""Fields of a row that are read or kept on purpose: a row with others that hold media or answers is bad."""


def id_of(record: Prompt | Conversation | PreferencePair) -> str:
    """Return the name of a record, which its row has in `ID_FIELD`."""
    return getattr(record, ID_FIELD[type(record)])


def open_pair_row(fields: Fields) -> Fields:
    """Return the JSON row of a pair that a row of a parquet file holds; a JSON row comes back unchanged but for its nulls."""
    row = without_none(without_nan(PAIR_FIELDS, fields))
    for name in NESTED & row.keys():
        if isinstance(row[name], str):
            row[name] = _open_text(name, row[name])
    for name in STRUCTS & row.keys():
        row[name] = _without_nulls(row[name])
    return row


def _open_text(name: str, text: str) -> Any:
    try:
        return strict_json.loads(text)
    except (ValueError, RecursionError) as error:
        detail = f"{name}: {excerpt(text)!r} is a text, and no JSON of what it should hold: {error}"
        raise RowError("wrong type", detail) from error


def without_nan(names: Collection[str], fields: Fields) -> Fields:
    """Return a row without NaN in the fields `names`: some tables have one in every gap."""
    gaps = [name for name in names if isinstance(fields.get(name), float) and math.isnan(fields[name])]
    return {name: value for name, value in fields.items() if name not in gaps}


def _without_nulls(value: Any) -> Any:
    """Return the value without what a table adds: null members of structs, and whole numbers as floats."""
    if isinstance(value, list):
        return list(map(_without_nulls, value))
    if isinstance(value, dict):
        return {name: strict_json.whole(item) for name, item in without_none(value).items()}
    return value
