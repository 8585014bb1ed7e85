"""What travels between a file and a format: a row as it stood there, or the reason why it cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from rlaif.data import BadRow, Report, RowError

T = TypeVar("T")


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


def refused(row: Row, name: object, error: RowError) -> Bad:
    return Bad(error.reason, BadRow(row.number, None if name is None else str(name), error.detail, row.unit))


def good(items: Iterable[T | Bad], report: Report) -> Iterator[T]:
    """The items that are not `Bad`; both kinds are counted in `report`."""
    for item in items:
        if isinstance(item, Bad):
            report.skip(item.reason, item.row)
        else:
            report.kept += 1
            yield item
