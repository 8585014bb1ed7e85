"""YAML plus dotted overrides -> a checked Config, or one error that lists every problem."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlaif.config.checks import problems_of
from rlaif.config.location import may_be_shown, path_of
from rlaif.config.nearest import hint
from rlaif.config.schema import Config
from rlaif.config.source import apply_override, read_yaml
from rlaif.errors import ConfigError
from rlaif.io.rundir import RunDir
from rlaif.io.storage import locate


def load_config(path: str | Path, overrides: Sequence[str] = (), stage: str | None = None) -> Config:
    """Read `path`, apply `key.sub=value` overrides, and check everything that needs no cluster.

    `{run}` in a string option stands for the run directory <storage>/<name>. Raises ConfigError listing all problems:
    unknown keys (with the nearest known name), wrong types, values that do not fit together.
    """
    config, problems = examine(path, overrides, stage)
    if problems or config is None:
        raise ConfigError(
            f"a configuration that can run ({path})", bullets(problems), "Correct the options named above"
        )
    return config


def checked_stage(command: str | None) -> str | None:
    """Return the stage whose options a command checks; None: the options of all stages together."""
    if command == "demo":
        return None
    return "ppo" if command == "eval" else command


def examine(
    path: str | Path, overrides: Sequence[str] = (), stage: str | None = None
) -> tuple[Config | None, list[str]]:
    """Return the configuration and every problem of its options.

    Options that cannot be read keep their defaults, so that the others can be checked as well; the configuration is None
    if not even that gives one. Raises ConfigError if there is no file to read, or no YAML in it.
    """
    raw = read_yaml(Path(path))
    for override in overrides:
        apply_override(raw, override)
    config, unreadable, problems = _validate(raw, stage)
    if config is None:
        return None, problems
    # `{run}` depends on `storage` and `name`, hence the second pass over options that are valid so far.
    resolved, _, resolved_problems = _validate(_interpolate(config.model_dump(), config), stage)
    if resolved is None or resolved_problems:
        return None, problems + resolved_problems
    # Actors have working directories of their own.
    root = str(locate(resolved.data.root))
    config = resolved.model_copy(update={"data": resolved.data.model_copy(update={"root": root})})
    misfits = _misfits(config, stage, unreadable)
    return config, problems + misfits + _problems_of_another_run(Path(path), overrides, config)


def _misfits(config: Config, stage: str | None, unreadable: Sequence[str]) -> list[str]:
    """Return the problems of options that do not fit together, except those about an unreadable option."""
    misfits = []
    for problem in problems_of(config, stage):
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


def _validate(raw: dict, stage: str | None) -> tuple[Config | None, list[str], list[str]]:
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
            problems = [_describe(item, stage) for item in errors]
            unreadable = [".".join(path) for path in paths]
        # A list, not a generator: every unreadable option must go before the next pass.
        dropped = [_drop(raw, path) for path in paths]
        if not any(dropped):
            return None, unreadable, problems


def _drop(raw: dict, path: list[str]) -> bool:
    """Remove an option, or the section that lacks it; return whether that changed anything."""
    if path == ["name"] and "name" not in raw:
        raw["name"] = "unnamed"
        return True
    for length in range(len(path), 0, -1):
        *parents, last = path[:length]
        node: Any = raw
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node:
            del node[last]
            return True
    return False


def _describe(item: Mapping[str, Any], stage: str | None) -> str:
    """Return one of pydantic's errors as a problem: option, message, value, and a hint."""
    path = ".".join(path_of(item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"{path}: no such option{hint(path, stage)}"
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
