"""What travels between a file and a format: a row as it is in the file, or the reason why it cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from rlaif.data.rows import BadRow, Report, RowError

T = TypeVar("T")
MESSAGE = 500
"""Characters of the longest message about a row; of a longer one `EXCERPT` are kept."""
EXCERPT = 200
_UNBROKEN = re.compile(r"\S{161,}")


@dataclass(frozen=True)
class Row:
    number: int
    """1-based."""
    fields: dict[str, Any]
    unit: str = "line"
    """What `number` counts: lines of a file, or its rows."""


@dataclass(frozen=True)
class Bad:
    reason: str
    row: BadRow


@dataclass(frozen=True)
class Unreadable:
    """Stands for a value that the file holds and Python cannot."""

    found: str


def refused(row: Row, name: object, error: RowError) -> Bad:
    """Return the `Bad` of a row whose id is `name`."""
    return _bad(row.number, name, error, row.unit)


def refused_record(lines: Mapping[str, int], name: str, error: RowError, unit: str) -> Bad:
    """Return the `Bad` of the record called `name`; `lines` holds the number of every record's row."""
    return _bad(lines.get(name), name, error, unit)


def _bad(number: int | None, name: object, error: RowError, unit: str) -> Bad:
    name = None if name is None else excerpt(name)
    return Bad(error.reason, BadRow(number, name, shortened(error.detail), unit))


def excerpt(value: object, most: int = 80) -> str:
    """Return the text of a value for a message, cut where it is long."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def shortened(message: str) -> str:
    """Return a message that repeats no long value: a row may hold megabytes."""
    message = _UNBROKEN.sub(lambda found: excerpt(found.group()), message)
    return message if len(message) <= MESSAGE else excerpt(message, EXCERPT)


def good(items: Iterable[T | Bad], report: Report) -> Iterator[T]:
    """Yield the items that are not `Bad`, and count both kinds in `report`."""
    for item in items:
        if isinstance(item, Bad):
            report.skip(item.reason, item.row)
        else:
            report.kept += 1
            yield item
