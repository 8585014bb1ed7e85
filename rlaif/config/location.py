"""Locations of options as pydantic reports them: tuples of keys, of indices in lists, and of names of alternatives."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlaif.config.options import sections_of
from rlaif.config.schema import Config

Sections = list[type[BaseModel]]
"""The groups of options that may be at one place: more than one if an option has alternatives (a server or a function)."""


def path_of(location: Sequence) -> list[str]:
    """Return the keys that lead to an option in the file.

    Leaves out what pydantic's location has besides: the name of the alternative that it tried, and indices in a list.
    """
    path: list[str] = []
    sections: Sections = [Config]
    for number, part in enumerate(location):
        fields = _fields(sections, part)
        if fields:
            sections = _sections_below(fields)
        elif _is_alternative(part, sections) or number < len(location) - 1 or not sections:
            continue
        path.append(str(part))
    return path


def may_be_shown(location: Sequence) -> bool:
    """Return whether errors may show the value at a location: not if an option on the way to it has `repr=False`."""
    sections: Sections = [Config]
    for part in location:
        fields = _fields(sections, part)
        # Parts that are no options, such as the name of an alternative, do not lead further down.
        if fields:
            sections = _sections_below(fields)
        if not all(field.repr for field in fields):
            return False
    return True


def _fields(sections: Sections, name: object) -> list[FieldInfo]:
    fields = []
    for section in sections:
        if isinstance(name, str) and name in section.model_fields:
            fields.append(section.model_fields[name])
    return fields


def _sections_below(fields: list[FieldInfo]) -> Sections:
    below: Sections = []
    for field in fields:
        below += sections_of(field.annotation)
    return below


def _is_alternative(part: object, sections: Sections) -> bool:
    return part in {section.__name__ for section in sections}
