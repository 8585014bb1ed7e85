"""Keep what a source row says and our record does not beside the record, so that exporting gives the row again.

A format turns a record into a row (the *bare* row) that says the same as the source row, perhaps spelled otherwise.
`difference` records how the source spelled it. `restore` applies that to the bare row of a later export, each part only
while the record still says what it said at import: an answer that was edited since is never undone.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rlaif.data.rows import RowError, excerpt

Patch = dict[str, dict]
"""By key: {"is": value} for a key that the bare row lacks, {"is": value, "was": digest of the bare value} for another
value, {"was": digest} for a key that the source lacks, {"in": patch} for an object, {"at": patch, "of": length} for a
list of the same length."""

SPELLED = "spelled:"
"""Before a column's name: its JSON text as the source wrote it."""


def difference(row: dict[str, Any], bare: dict[str, Any]) -> Patch:
    """Return the patch that makes `row` of `bare`. Raise RowError for a value that JSON cannot hold."""
    patch: Patch = {}
    for key in dict.fromkeys([*row, *bare]):
        if key not in bare:
            _text(row[key], key)
            patch[key] = {"is": row[key]}
        elif key not in row:
            patch[key] = {"was": _digest(bare[key], key)}
        else:
            change = _change(row[key], bare[key], key)
            if change:
                patch[key] = change
    return patch


def unholdable(row: dict[str, Any]) -> list[str]:
    """Return the keys whose values JSON cannot hold: NaN, bytes, times."""
    names = []
    for key, value in row.items():
        try:
            _text(value, key)
        except RowError:
            names.append(key)
    return names


def restore(bare: dict[str, Any], patch: Any) -> dict[str, Any]:
    """Return `bare` as the source spelled it, if it still says the same. What is no patch (an edited file) does nothing."""
    row = dict(bare)
    if not isinstance(patch, dict):
        return row
    for key, change in patch.items():
        if not isinstance(change, dict):
            continue
        if "in" in change or "at" in change:
            if key in row:
                row[key] = _inner(row[key], change)
        elif key not in row:
            if "is" in change and "was" not in change:
                row[key] = change["is"]
        # the record still says what it said at import, so this field was not edited
        elif "was" in change and _digest(row[key], key) == change["was"]:
            if "is" in change:
                row[key] = change["is"]
            else:
                del row[key]
    return row


def _change(value: Any, bare: Any, key: str) -> dict | None:
    if _text(value, key) == _text(bare, key):
        return None
    if isinstance(value, dict) and isinstance(bare, dict):
        return {"in": difference(value, bare)}
    # of lists of different lengths it is unknown which item became which
    if isinstance(value, list) and isinstance(bare, list) and len(value) == len(bare):
        return {"at": difference(_numbered(value), _numbered(bare)), "of": len(value)}
    return {"is": value, "was": _digest(bare, key)}


def _inner(value: Any, change: dict) -> Any:
    if "in" in change:
        return restore(value, change["in"]) if isinstance(value, dict) else value
    if isinstance(value, list) and len(value) == change.get("of"):
        return list(restore(_numbered(value), change["at"]).values())
    return value


def _numbered(items: list) -> dict[str, Any]:
    return {str(place): item for place, item in enumerate(items)}


def _digest(value: Any, key: str) -> str:
    return hashlib.sha256(_text(value, key).encode()).hexdigest()[:12]


def _text(value: Any, key: str) -> str:
    """Return canonical JSON: 1, 1.0 and true differ in it, although they are equal in Python."""
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError("wrong type", f"{excerpt(key)}: {error}") from error
