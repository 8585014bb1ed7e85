"""Every option of the configuration as text: its path, type, default and description.

`python -m rlaif.config.options > docs/options.md` writes the reference page.
"""

from __future__ import annotations

import sys
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlaif.config.schema import Config

WIDTH = 100
"""Columns of a listing."""

_PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "anything", type(None): "null"}
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "at least", "max_length": "at most"}
_SHORT_MAPPING = 3
"""A mapping with fewer fields is shown with their names."""


@dataclass(frozen=True)
class Option:
    """One option, or the heading of a section (`kind` is then empty)."""

    path: str
    kind: str
    default: str
    text: str

    def lines(self) -> str:
        """Return the option as it is listed: a line with type and default, then the description."""
        if not self.kind:
            return "\n".join([f"[{self.path}]", *_wrap(self.text, "")])
        title = f"{self.path}  ({self.kind}; default {self.default})"
        # Paths and defaults have hyphens, at which a reader does not expect a line to end.
        head = textwrap.wrap(title, WIDTH, subsequent_indent="      ", break_on_hyphens=False)
        return "\n".join([*head, *_wrap(self.text, "    ")])

    def markdown(self) -> str:
        """Return the option as an entry of the reference page: a heading for a section, else an item of a list."""
        text = " ".join(self.text.split())
        depth = self.path.count(".")
        if not self.kind and not depth:
            return f"\n## {self.path}\n\n{text}\n"
        indent = "  " * max(depth - 1, 0)
        if not self.kind:
            return f"{indent}- **`{self.path}`**: {text}"
        default = self.default if self.default in (_NO_DEFAULT, _GROUP) else f"`{self.default}`"
        return f"{indent}- **`{self.path}`** ({self.kind}; default {default}): {text}"


_NO_DEFAULT = "none, must be set"
_GROUP = "the options below"

_INTRODUCTION = """\
# Options

Every option of a configuration, with its type, default and meaning. Set an option in the YAML file, or on the command line
as `section.option=value`. `{run}` in a text stands for the run directory, `<storage>/<name>`. Times are in seconds.
`rlaif options SECTION` prints a section of this page.

This page is generated from `rlaif/config/`. Change the text there and run `python -m rlaif.config.options > docs/options.md`.

## Top level
"""


def options_page() -> str:
    """Return the reference page of all options in Markdown."""
    entries = [option.markdown() for option in all_options()]
    # One entry is one line: a line that began with a minus sign of its text would be a list item in Markdown.
    return "\n".join([_INTRODUCTION, *entries]) + "\n"


def all_options() -> list[Option]:
    """Return every option and every section's heading, in the order of the classes that define them."""
    return list(_walk(Config, None, ""))


def listing(section: str = "") -> str | None:
    """Return the options of a section (or one option) as text; None if there is no such section."""
    options = [option for option in all_options() if _is_inside(option.path, section)]
    return "\n\n".join(option.lines() for option in options) if options else None


def _is_inside(path: str, section: str) -> bool:
    return not section or path == section or path.startswith(f"{section}.")


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the groups of options that a field of this type may hold."""
    kinds = [annotation, *get_args(annotation)]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _walk(section: type[BaseModel], defaults: BaseModel | None, prefix: str) -> Iterator[Option]:
    """Yield the options of a section.

    `defaults` is an instance whose values are the defaults: the same class may have others elsewhere
    (`cluster.learner.actors` is 2, `cluster.reward.actors` 1).
    """
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        default = _default(field, defaults, name)
        groups = sections_of(field.annotation)
        # A field that is a group is a heading; one that may also be something else (null, a text) is an option as well.
        if field.annotation in groups:
            yield Option(path, "", "", field.description or (groups[0].__doc__ or "").strip())
        else:
            yield Option(path, _type(field.annotation, field.metadata), _shown(default), field.description or "")
        for group in groups:
            yield from _walk(group, default if isinstance(default, group) else None, f"{path}.")


def _default(field: FieldInfo, defaults: BaseModel | None, name: str) -> Any:
    if defaults is not None:
        return getattr(defaults, name)
    return field.get_default(call_default_factory=True)


def _shown(default: Any) -> str:
    if default is PydanticUndefined:
        return _NO_DEFAULT
    if isinstance(default, BaseModel):
        return _GROUP
    value = list(default) if isinstance(default, tuple) else default
    # Only double quotes show the end of a line as \n; PyYAML's own choice would write it as an empty line.
    quotes = '"' if isinstance(value, str) and "\n" in value else None
    text = yaml.safe_dump(value, default_style=quotes, default_flow_style=True, width=10**6, allow_unicode=True).strip()
    # PyYAML ends a document that is a bare scalar with a line of three dots.
    return text.removesuffix("...").strip()


def _type(annotation: Any, limits: list[Any]) -> str:
    """Return a type in the words of a reader of YAML, with the bounds of its values."""
    origin = get_origin(annotation)
    args = get_args(annotation)
    if origin is Annotated:
        return _type(args[0], list(args[1:]))
    if origin is Literal:
        return " | ".join(_shown(value) for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(arg, [] if arg is type(None) else limits) for arg in args)
    if origin is tuple:
        return _tuple_type(args, limits)
    if origin is dict:
        return f"mapping of {_type(args[0], [])} to {_type(args[1], [])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        return f"mapping {{{', '.join(fields)}}}" if len(fields) < _SHORT_MAPPING else "mapping"
    return _PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation))) + _bounds(limits)


def _tuple_type(args: tuple[Any, ...], limits: list[Any]) -> str:
    if len(args) == 2 and args[1] is Ellipsis:
        bounds = _bounds(limits)
        return f"list of {_type(args[0], [])}" + (f",{bounds}" if bounds else "")
    return f"list [{', '.join(_type(arg, []) for arg in args)}]"


def _bounds(limits: list[Any]) -> str:
    """Return the bounds in pydantic's metadata as text, such as " >= 0 and < 1"."""
    bounds = []
    for limit in limits:
        # pydantic nests some constraints in a `metadata` list, depending on how they were written down.
        for constraint in getattr(limit, "metadata", None) or [limit]:
            for name, sign in _SIGNS.items():
                if hasattr(constraint, name):
                    bounds.append(f" {sign} {getattr(constraint, name)}")
    return " and".join(bounds)


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


if __name__ == "__main__":
    sys.stdout.write(options_page())
