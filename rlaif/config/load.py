"""YAML plus dotted overrides -> a checked Config, or one error that lists every problem."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rlaif.config import strict_yaml
from rlaif.config.checks import problems_of
from rlaif.config.nearest import hint
from rlaif.config.options import sections_of
from rlaif.config.schema import Config
from rlaif.errors import ConfigError
from rlaif.io.rundir import RunDir
from rlaif.io.storage import locate

HIDDEN = "(hidden)"
OPEN_OPTIONS = ("region", "scheme", "endpoint_override", "allow_bucket_creation")
"""Options of a bucket's URI that are no secrets."""


def load_config(path: str | Path, overrides: list[str] = (), stage: str | None = None) -> Config:
    """Read `path`, apply `key.sub=value` overrides, check everything that needs no cluster.

    `{run}` in a string option stands for the run directory <storage>/<name>.
    Raises ConfigError listing all problems: unknown keys (with the nearest known name), wrong types,
    values that do not fit together.
    """
    config, problems = examine(path, overrides, stage)
    if problems or config is None:
        raise ConfigError(
            f"a configuration that can run ({path})", bullets(problems), "Correct the options named above"
        )
    return config


def options_of(stage: str | None) -> str | None:
    """Return the stage as which options are checked; None: all together."""
    return {"demo": None, "eval": "ppo"}.get(stage, stage)


def examine(
    path: str | Path, overrides: Sequence[str] = (), stage: str | None = None
) -> tuple[Config | None, list[str]]:
    """Return the configuration and every problem of its options.

    Options that cannot be read are left at their defaults, so that the others can be checked as well; the configuration
    is None if not even that gives one. Raises ConfigError if there is no file to read, or no YAML in it.
    """
    raw = read_yaml(Path(path))
    for override in overrides:
        _apply(raw, override)
    config, wrong, problems = _validate(raw, stage)
    if config is None:
        return None, problems
    resolved, _, more = _validate(_interpolate(config.model_dump(), config), stage)
    if resolved is None or more:
        return None, problems + more
    root = _absolute(resolved.data.root)
    config = resolved.model_copy(update={"data": resolved.data.model_copy(update={"root": root})})
    # a default that stands in for an unreadable option says nothing about how the user's options fit together
    misfits = [problem for problem in problems_of(config, stage) if not any(_names(problem, path) for path in wrong)]
    return config, problems + misfits + _of_another_run(Path(path), overrides, config)


def _of_another_run(path: Path, overrides: Sequence[str], config: Config) -> list[str]:
    """Return the problem of a `config.yaml` in a moved or copied run directory, which still names the original."""
    folder, names = path.absolute().parent, Path(config.name).parts
    named = any(override.startswith(("storage=", "name=")) for override in overrides)
    if path.name != "config.yaml" or named or not (folder / ".lock").exists():
        return []
    run = RunDir(config.storage, config.name).location
    if run.local is None or run.local.resolve() == folder.resolve():
        return []
    there = folder.parts[-len(names) :] == names
    here = f"storage={folder.parents[len(names) - 1]}" if there else f"storage={folder.parent} name={folder.name}"
    return [f"storage: {path} is in a moved or copied run directory and still names {run}: add {here}"]


def _names(problem: str, path: str) -> bool:
    """Return whether a problem is about an option, by the last part of its path."""
    return bool(re.search(rf"\b{re.escape(path.rpartition('.')[2])}\b", problem))


def shown_config(config: Config) -> str:
    """Return the resolved configuration as YAML to be read by people, without what may be a secret."""
    return yaml.safe_dump(_without_secrets(config.model_dump(mode="json"), ()), sort_keys=False, allow_unicode=True)


def _without_secrets(value: Any, location: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(item, (*location, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item, location) for item in value]
    if value not in (None, {}) and not _shown(location):
        return HIDDEN
    return _uri_without_secrets(value) if isinstance(value, str) and "://" in value else value


def _uri_without_secrets(uri: str) -> str:
    """Hide user, password and every option but a bucket's region and endpoint: keys of buckets are options too."""
    scheme, _, rest = uri.partition("://")
    address, mark, options = rest.partition("?")
    host, slash, path = address.partition("/")
    if "@" in host:
        host = f"{HIDDEN}@{host.rpartition('@')[2]}"
    pairs = [option.partition("=") for option in options.split("&")] if mark else []
    kept = [f"{key}={value if key in OPEN_OPTIONS else HIDDEN}" for key, _, value in pairs]
    return f"{scheme}://{host}{slash}{path}{mark}{'&'.join(kept)}"


def read_yaml(path: Path) -> dict:
    """Return the mapping in a configuration file. Raises ConfigError if there is none."""
    if path.is_dir():
        raise _a_folder(path)
    try:
        raw = strict_yaml.load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            "a YAML configuration file",
            f"no file at {path}",
            "Correct the path (configs/ has examples), or write a configuration with `rlaif init DIR`",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or "bytes that are no text"
        raise ConfigError("a YAML configuration file", f"{path}: {found}", "Correct the path") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"valid YAML in {path}", _problem(error), "Correct the line named above") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"a mapping of options in {path}",
            type(raw).__name__,
            "Write `key: value` lines at the top level of the file",
        )
    return raw


def _a_folder(path: Path) -> ConfigError:
    """Return the error for a folder, with the configuration inside that was probably meant."""
    inside = sorted(file.name for file in path.glob("*.y*ml"))
    is_run = (path / "config.yaml").is_file() and (
        (path / "metrics.jsonl").exists() or (path / "checkpoints").exists() or (path / ".lock").exists()
    )
    found = f"the run directory {path}" if is_run else f"the folder {path}"
    if is_run:
        change = f"Give the path {path / 'config.yaml'}, the configuration that this run was started with"
    else:
        change = f"Give the path {path / inside[0]}" if inside else "Write a configuration with `rlaif init DIR`"
    return ConfigError("a YAML configuration file", found, change)


def _problem(error: yaml.YAMLError) -> str:
    """Without the line itself, which may hold a secret."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "no YAML"
    return f"{problem} in line {mark.line + 1}, column {mark.column + 1}" if mark else problem


def _apply(raw: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError("overrides as key.sub=value", repr(override), "Write the argument as key=value")
    try:
        # a path below the run directory is text, though YAML would read its brace as a mapping
        parsed = value if value.startswith("{run}") else strict_yaml.load(value) if value else None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"a YAML value for {key}", _problem(error), "Correct the argument (quote it for the shell)"
        ) from None
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[last] = parsed


def _validate(raw: dict, stage: str | None) -> tuple[Config | None, list[str], list[str]]:
    """Return the configuration without the options that cannot be read, the paths of these, and what is wrong with them."""
    wrong: list[str] = []
    problems: list[str] = []
    raw = copy.deepcopy(raw)
    while True:
        try:
            return Config.model_validate(raw), wrong, problems
        except ValidationError as error:
            errors = error.errors()
        # outside of the handler: pydantic's error holds all that it was given, and nothing here shall hold that
        paths = [_path(item["loc"]) for item in errors]
        if not problems:  # what is wrong after an option was dropped is wrong because it was
            problems = [_describe(item, stage) for item in errors]
            wrong = [".".join(path) for path in paths]
        dropped = [_drop(raw, path) for path in paths]
        if not any(dropped):
            return None, wrong, problems


def _path(location: Sequence) -> list[str]:
    """Return where an option stands in the file. pydantic's location also names the alternative that was tried, and
    indices in a list."""
    path: list[str] = []
    sections: list[type[BaseModel]] = [Config]
    for number, part in enumerate(location):
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        if fields:
            sections = [kind for field in fields for kind in sections_of(field.annotation)]
        elif part in {section.__name__ for section in sections} or number < len(location) - 1 or not sections:
            continue
        path.append(str(part))
    return path


def _drop(raw: dict, path: list[str]) -> bool:
    """Remove an option, or the section that lacks it; returns whether that changed anything."""
    if path == ["name"] and "name" not in raw:
        raw["name"] = "unnamed"
        return True
    for length in range(len(path), 0, -1):
        node: Any = raw
        for part in path[: length - 1]:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and path[length - 1] in node:
            del node[path[length - 1]]
            return True
    return False


def _describe(item: dict, stage: str | None) -> str:
    path = ".".join(_path(item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"{path}: no such option{hint(path, stage)}"
    where = ".".join(str(part) for part in item["loc"])
    return f"{where}: {item['msg'].removeprefix('Value error, ')}{_found(item)}{_meant_as_text(item, path)}"


def _meant_as_text(item: dict, path: str) -> str:
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
            sections = [kind for field in fields for kind in sections_of(field.annotation)]
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


def bullets(problems: list[str]) -> str:
    """Return how many problems there are, and each on a line of its own."""
    return f"{len(problems)} problem(s)" + "".join(f"\n    - {problem}" for problem in problems)
