"""YAML plus dotted overrides -> a checked Config, or one error that lists every problem."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from rlaif.config.checks import EVERYTHING, Scope, problems_of
from rlaif.config.location import may_be_shown, path_of
from rlaif.config.nearest import hint
from rlaif.config.schema import Config
from rlaif.config.source import apply_override, read_yaml
from rlaif.errors import ConfigError
from rlaif.io.rundir import RunDir
from rlaif.io.storage import locate


def load_config(path: str | Path, overrides: Sequence[str] = (), scope: Scope = EVERYTHING) -> Config:
    """Read `path`, apply `key.sub=value` overrides, and check everything that needs no cluster.

    `{run}` in a string option stands for the run directory <storage>/<name>. Raises ConfigError listing all problems:
    unknown keys (with the nearest known name), wrong types, values that do not fit together.
    """
    config, problems, _ = examine(path, overrides, scope)
    if problems or config is None:
        raise ConfigError(
            f"a configuration that can run ({path})", bullets(problems), "Correct the options named above."
        )
    return config


class Examination(NamedTuple):
    """The result of reading a configuration."""

    config: Config | None
    """None if not even defaults in place of unreadable options give one."""
    problems: list[str]
    unreadable: list[str]
    """Paths of the options whose defaults `config` has, because what the user wrote cannot be read."""


def examine(path: str | Path, overrides: Sequence[str] = (), scope: Scope = EVERYTHING) -> Examination:
    """Return the configuration and every problem of its options.

    Options that cannot be read keep their defaults, so that the others can be checked as well. Raises ConfigError if
    there is no file to read, or no YAML in it.
    """
    raw = read_yaml(Path(path))
    for override in overrides:
        apply_override(raw, override)
    config, unreadable, problems = _validate(raw, scope)
    if config is None:
        return Examination(None, problems, unreadable)
    # `{run}` depends on `storage` and `name`, hence the second pass over options that are valid so far.
    resolved, _, resolved_problems = _validate(_interpolate(config.model_dump(), config), scope)
    if resolved is None or resolved_problems:
        return Examination(None, problems + resolved_problems, unreadable)
    # Actors have working directories of their own.
    root = str(locate(resolved.data.root))
    config = resolved.model_copy(update={"data": resolved.data.model_copy(update={"root": root})})
    problems += _misfits(config, scope, unreadable)
    problems += _problems_of_another_run(Path(path), overrides, config)
    return Examination(config, problems, unreadable)


def _misfits(config: Config, scope: Scope, unreadable: Sequence[str]) -> list[str]:
    """Return the problems of options that do not fit together, except those about an unreadable option."""
    misfits = []
    for problem in problems_of(config, scope):
        # The default in place of an unreadable option says nothing about how the user's options fit together.
        if not any(_mentions(problem, path) for path in unreadable):
            misfits.append(problem)
    return misfits


def _mentions(problem: str, path: str) -> bool:
    """Return whether a problem is about an option, by the last part of the option's path."""
    name = path.rpartition(".")[2]
    return bool(re.search(rf"\b{re.escape(name)}\b", problem))


def _problems_of_another_run(path: Path, overrides: Sequence[str], config: Config) -> list[str]:
    """Return the problem of a `config.yaml` in a moved or copied run directory, which still names the original."""
    folder = path.absolute().parent
    overridden = any(override.startswith(("storage=", "name=")) for override in overrides)
    if path.name != "config.yaml" or overridden or not (folder / ".lock").exists():
        return []
    run = RunDir(config.storage, config.name).location
    if run.local is None or run.local.resolve() == folder.resolve():
        return []
    names = Path(config.name).parts
    if folder.parts[-len(names) :] == names:
        fix = f"storage={folder.parents[len(names) - 1]}"
    else:
        fix = f"storage={folder.parent} name={folder.name}"
    return [f"storage: {path} is in a moved or copied run directory and still names {run}: add {fix}"]


def _validate(raw: dict, scope: Scope) -> tuple[Config | None, list[str], list[str]]:
    """Return the configuration without its unreadable options, the paths of these, and what is wrong with them."""
    unreadable: list[str] = []
    problems: list[str] = []
    raw = copy.deepcopy(raw)
    while True:
        try:
            return Config.model_validate(raw), unreadable, problems
        except ValidationError as error:
            errors = error.errors()
        # This is outside of the handler because pydantic's error holds its whole input, secrets included, and an
        # exception raised inside the handler would keep it as its context.
        paths = [path_of(item["loc"]) for item in errors]
        # Errors of a later pass are consequences: an option may be wrong because another one was dropped.
        if not problems:
            problems = [_describe(item, scope) for item in _without_other_kinds(errors, paths)]
            unreadable = [".".join(path) for path in paths]
        if not _drop_all(raw, paths):
            return None, unreadable, problems


def _without_other_kinds(errors: Sequence[Any], paths: Sequence[list[str]]) -> list[Any]:
    """Return the errors without "should be a text" about a mapping that has errors of its own.

    An option that is a text or a section gives an error for each, although the braces say which one was meant.
    """
    parents = Counter(tuple(path[:-1]) for path in paths)
    relevant = []
    for item, path in zip(errors, paths, strict=True):
        # pydantic ends the location with the kind that it tried: `ppo.reward.str`, beside `ppo.reward.path`.
        is_other_kind = path[-1:] == ["str"] and item["type"] == "string_type" and isinstance(item["input"], dict)
        if not is_other_kind or parents[tuple(path[:-1])] == 1:
            relevant.append(item)
    return relevant


def _drop_all(raw: dict, paths: Sequence[list[str]]) -> bool:
    """Remove every option, or the section that lacks it; return whether that changed anything."""
    dropped: list[list[str]] = []
    for path in paths:
        # A section may have several errors: once it is gone, the section that holds it must stay.
        if any(path[: len(gone)] == gone for gone in dropped):
            continue
        gone = _drop(raw, path)
        if gone is not None:
            dropped.append(gone)
    return bool(dropped)


def _drop(raw: dict, path: list[str]) -> list[str] | None:
    """Remove an option, or the section that lacks it; return the path of what was removed, None if there is nothing."""
    if path == ["name"] and "name" not in raw:
        raw["name"] = "unnamed"
        return path
    for length in range(len(path), 0, -1):
        *parents, last = path[:length]
        node: Any = raw
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node:
            del node[last]
            return path[:length]
    return None


def _describe(item: Mapping[str, Any], scope: Scope) -> str:
    """Return one of pydantic's errors as a problem: option, message, value, and a hint."""
    path = ".".join(path_of(item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"{path}: no such option{hint(path, scope.section)}"
    place = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    return f"{place}: {message}{_shown_value(item)}{_quoting_hint(item, path)}"


def _quoting_hint(item: Mapping[str, Any], path: str) -> str:
    """Return the hint for a text that YAML takes for something else: a function in braces, a bare number or `off`."""
    value = item["input"]
    if item["type"] != "string_type" or value is None:
        return ""
    if isinstance(value, dict):
        return f"; write {path}={value['path']}, without braces" if list(value) == ["path"] else ""
    if isinstance(value, list):
        return ""
    quoted = f'{path.rpartition(".")[2]}: "..."'
    kind = "truth value" if isinstance(value, bool) else "number"
    return f"; YAML reads that as a {kind}: quote it ({quoted} in a file, '{path}=\"...\"' in a shell)"


def _shown_value(item: Mapping[str, Any]) -> str:
    """Return the value in an error, unless it may be a secret or hold one."""
    value = item["input"]
    if item["type"] == "missing" or not may_be_shown(item["loc"]):
        return ""
    parts = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(part, dict | list | tuple) for part in parts):
        return f" (found a {'mapping' if isinstance(value, dict) else 'list'})"
    return f" (found {value!r})"


def _interpolate(value: Any, config: Config) -> Any:
    """Return nested options with `{run}` replaced by the run's directory."""
    if isinstance(value, dict):
        return {key: _interpolate(item, config) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_interpolate(item, config) for item in value]
    if not isinstance(value, str) or "{run}" not in value:
        return value
    return RunDir(config.storage, config.name).resolve(value)


def bullets(problems: Sequence[str]) -> str:
    """Return the number of problems, followed by each on a line of its own."""
    lines = [f"\n    - {problem}" for problem in problems]
    return f"{len(problems)} problem(s){''.join(lines)}"
