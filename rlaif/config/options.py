"""Every option of the configuration as text: its path, type, default and description."""

from __future__ import annotations

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
            return "\n".join([f"[{self.path}]", *_wrapped(self.text, "")])
        head = textwrap.wrap(
            f"{self.path}  ({self.kind}; default {self.default})", WIDTH, subsequent_indent="      ", **_KEEP
        )
        return "\n".join([*head, *_wrapped(self.text, "    ")])


_KEEP: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": True}


def all_options() -> list[Option]:
    """Return every option and every section's heading, in the order of the classes that define them."""
    return list(_walk(Config, None, ""))


def listing(section: str = "") -> str | None:
    """Return the options of a section (or one option) as text; None if there is no such section."""
    inside = [o for o in all_options() if not section or o.path == section or o.path.startswith(f"{section}.")]
    return "\n\n".join(option.lines() for option in inside) if inside else None


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the groups of options that a field of this type may hold."""
    kinds = [annotation, *get_args(annotation)]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _walk(section: type[BaseModel], defaults: BaseModel | None, prefix: str) -> Iterator[Option]:
    """Yield the options of a section. `defaults` is an instance whose values are the defaults: the same class may have
    others elsewhere (`cluster.learner.actors` is 2, `cluster.reward.actors` 1)."""
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        default = _default(field, defaults, name)
        groups = sections_of(field.annotation)
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
        return "none, must be set"
    if isinstance(default, BaseModel):
        return "the options below"
    value = list(default) if isinstance(default, tuple) else default
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).strip()
    return text.removesuffix("...").strip()


def _type(annotation: Any, limits: list[Any]) -> str:
    """Return a type as a reader of YAML would say it, with the bounds of its values."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0], list(args[1:]))
    if origin is Literal:
        return " | ".join(_shown(value) for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(arg, [] if arg is type(None) else limits) for arg in args)
    if origin is tuple:
        several = len(args) == 2 and args[1] is Ellipsis
        inside = _type(args[0], []) if several else ", ".join(_type(arg, []) for arg in args)
        return f"list of {inside}" + _bounds(limits) if several else f"list [{inside}]"
    if origin is dict:
        return f"mapping of {_type(args[0], [])} to {_type(args[1], [])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"mapping {{{', '.join(annotation.model_fields)}}}" if len(annotation.model_fields) < 3 else "mapping"
    return _PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation))) + _bounds(limits)


def _bounds(limits: list[Any]) -> str:
    """Return the bounds in pydantic's metadata, which nests them by how they were written down."""
    found = []
    for limit in limits:
        for inner in getattr(limit, "metadata", None) or [limit]:
            found += [f"{sign} {getattr(inner, name)}" for name, sign in _SIGNS.items() if hasattr(inner, name)]
    return "".join(f" {bound}" if i == 0 else f" and {bound}" for i, bound in enumerate(found))


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
