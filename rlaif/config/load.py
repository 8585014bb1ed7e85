"""YAML plus dotted overrides -> a checked Config, or one error that lists every problem."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rlaif.config.checks import problems_of
from rlaif.config.schema import Config
from rlaif.errors import ConfigError
from rlaif.rundir import RunDir
from rlaif.storage import locate


def load_config(path: str | Path, overrides: list[str] = (), stage: str | None = None) -> Config:
    """Read `path`, apply `key.sub=value` overrides, check everything that needs no cluster.

    `{run}` in a string option stands for the run directory <storage>/<name>.
    Raises ConfigError listing all problems: unknown keys (with the nearest known name), wrong types,
    values that do not fit together.
    """
    raw = _read_yaml(Path(path))
    for override in overrides:
        _apply(raw, override)
    config = _validate(raw, str(path))
    config = _validate(_interpolate(config.model_dump(), config), str(path))
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": _absolute(config.data.root)})})
    problems = problems_of(config, stage)
    if problems:
        raise ConfigError(f"a configuration that can run ({path})", _bullets(problems), "the options named above")
    return config


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise ConfigError("a YAML configuration file", f"no file at {path}", "the path (see configs/ for examples)")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"valid YAML in {path}", _problem(error), "the line named above") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"a mapping of options in {path}", type(raw).__name__, "the file's top level to `key: value` lines"
        )
    return raw


def _problem(error: yaml.YAMLError) -> str:
    """Without the line itself, which may hold a secret."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "no YAML"
    return f"{problem} in line {mark.line + 1}, column {mark.column + 1}" if mark else problem


def _apply(raw: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError("overrides as key.sub=value", repr(override), "the argument")
    try:
        # a path below the run directory is text, though YAML would read its brace as a mapping
        parsed = value if value.startswith("{run}") else yaml.safe_load(value) if value else None
    except yaml.YAMLError as error:
        raise ConfigError(f"a YAML value for {key}", _problem(error), "the argument (quote it for the shell)") from None
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[last] = parsed


def _validate(raw: dict, source: str) -> Config:
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = [_describe(item) for item in error.errors()]
    # outside of the handler: pydantic's error holds all that it was given, and nothing here shall hold that
    raise ConfigError(f"a valid configuration ({source})", _bullets(problems), "the options named above")


def _describe(item: dict) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        return f"{where}: {item['msg'].removeprefix('Value error, ')}{_found(item)}"
    sections, _ = _walk(item["loc"][:-1])
    known = [name for section in sections for name in section.model_fields]
    near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
    return f"{where}: no such option" + (f"; nearest is `{near[0]}`" if near else "")


def _found(item: dict) -> str:
    """The value that was found, unless it may be a secret or hold one."""
    value = item["input"]
    if item["type"] == "missing" or not _shown(item["loc"]):
        return ""
    parts = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(part, dict | list | tuple) for part in parts):
        return f" (found a {'mapping' if isinstance(value, dict) else 'list'})"
    return f" (found {value!r})"


def _shown(location: Sequence) -> bool:
    """Whether errors may show the value: not where an option on the way has `repr=False`."""
    return all(field.repr for field in _walk(location)[1])


def _walk(location: Sequence) -> tuple[list[type[BaseModel]], list[FieldInfo]]:
    """The sections that may stand at a location, and the options on the way there. Parts that are no options, such as
    the name of an alternative, are passed over."""
    sections: list[type[BaseModel]] = [Config]
    passed: list[FieldInfo] = []
    for part in location:
        if fields := [section.model_fields[part] for section in sections if part in section.model_fields]:
            kinds = [kind for field in fields for kind in (field.annotation, *get_args(field.annotation))]
            sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
            passed += fields
    return sections, passed


def _interpolate(value: Any, config: Config) -> Any:
    if isinstance(value, dict):
        return {key: _interpolate(item, config) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_interpolate(item, config) for item in value]
    if not isinstance(value, str) or "{run}" not in value:
        return value
    return RunDir(config.storage, config.name).resolve(value)


def _absolute(path: str) -> str:
    """Actors have working directories of their own."""
    return str(locate(path))


def _bullets(problems: list[str]) -> str:
    return f"{len(problems)} problem(s)" + "".join(f"\n    - {problem}" for problem in problems)
