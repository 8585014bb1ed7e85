"""Names of rows: texts of ours, and whole numbers in formats whose trainers need them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from rlaif.data.rows import RowError
from rlaif.data.strict_json import whole

LARGEST = 2**63 - 1
"""The largest integer that parquet columns and tensors hold."""


def identity(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """Return a row's name as text. Raise RowError if it is missing (without a `default`), or neither text nor number."""
    value = whole(fields.get(name))
    if value in (None, "") and default is not None:
        return default
    if value is None:
        raise RowError("missing field", f"{name}: Field required")
    if value == "":
        raise RowError("empty field", f"{name}: empty")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError("wrong type", f"{name}: a {type(value).__name__} instead of a text or whole number")
    return str(value)


def whole_id(name: Any) -> int:
    """Return the whole number that a name is, else one made from its text: the same in every file, whatever its place."""
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name <= LARGEST:
        return name
    text = str(name)
    # 19 digits may be more than LARGEST; "007" and "7" must not become one
    if text.isascii() and text.isdigit() and len(text) < 19 and str(int(text)) == text:
        return int(text)
    # 48 bits: an integer that a float holds exactly, too
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
