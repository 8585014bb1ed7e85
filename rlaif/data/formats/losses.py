"""Name the fields of a record that are gone after it was written in another format and read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from rlaif.data.formats.roundtrip import SPELLED
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import OVERALL

ADDED = ("video_sha256", "modality")
"""Fields of a record that no row says."""


def lost_fields(record: Any, again: Any, name: str) -> list[str]:
    """Return the names of the fields of `record` that `again`, read back from a row of the format `name`, does not hold."""
    return list(_lost(record, again, name))


def _lost(record: Any, again: Any, name: str) -> Iterator[str]:
    if isinstance(record, PreferencePair) and record.dimension in again.signs:
        again = again.along(record.dimension)
    # the folder of listed frames may be one of links; the list says what the row is about
    about_frames = bool(_frames(record)) and _frames(record) == _frames(again)
    for item in fields(record):
        mine = getattr(record, item.name)
        if item.name == "native":
            yield from _native(mine, name)
        elif item.name == "extra":
            yield from _extra(mine, again.extra, name)
        elif item.name in ADDED or (item.name == "video" and about_frames):
            continue
        elif (item.name, mine) != ("dimension", OVERALL) and not _holds(getattr(again, item.name), mine):
            yield item.name


def _frames(record: Any) -> list:
    frames = getattr(record, "extra", {}).get("frames") or getattr(record, "frames", ())
    return list(frames) if isinstance(frames, list | tuple) else []


def _extra(mine: Mapping[str, Any], again: Mapping[str, Any], name: str) -> Iterator[str]:
    for key, value in mine.items():
        if key == "native":
            yield from _native(value, name)
        elif key != "modality" and not _holds(again.get(key), value):
            yield key


def _native(native: Any, name: str) -> Iterator[str]:
    """Yield the fields of rows of other formats, our own among them, that go with the record (see roundtrip.py)."""
    if not isinstance(native, Mapping):
        return
    for other, patch in native.items():
        if other == name or not isinstance(patch, Mapping):
            continue
        for key, change in patch.items():
            # a patch that adds a field; one that only spells a field otherwise loses nothing
            adds = isinstance(change, Mapping) and "is" in change and "was" not in change
            if other == "rlaif" or adds:
                yield key.removeprefix(SPELLED)


def _holds(again: Any, mine: Any) -> bool:
    """Return whether everything in `mine` is in `again` too; null and empty values are nothing."""
    if mine in (None, "", (), [], {}):
        return True
    if isinstance(mine, Mapping):
        if not isinstance(again, Mapping):
            return False
        return all(_holds(again.get(key), value) for key, value in mine.items())
    if isinstance(mine, list | tuple):
        if not isinstance(again, list | tuple) or len(again) != len(mine):
            return False
        return all(map(_holds, again, mine))
    return mine == again or (isinstance(mine, str | int) and str(mine) == str(again))  # "4" in a column of numbers
