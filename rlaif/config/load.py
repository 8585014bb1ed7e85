"""YAML plus dotted overrides -> a checked Config, or one error that lists every problem."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

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
    config = Config.model_validate(_interpolate(config.model_dump(), config))
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
        raise ConfigError(f"valid YAML in {path}", str(error), "the line named above") from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"a mapping of options in {path}", type(raw).__name__, "the file's top level to `key: value` lines"
        )
    return raw


def _apply(raw: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError("overrides as key.sub=value", repr(override), "the argument")
    try:
        # a path below the run directory is text, though YAML would read its brace as a mapping
        parsed = value if value.startswith("{run}") else yaml.safe_load(value) if value else None
    except yaml.YAMLError as error:
        raise ConfigError(f"a YAML value for {key}", repr(value), "the argument (quote it for the shell)") from error
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
        raise ConfigError(f"a valid configuration ({source})", _bullets(problems), "the options named above") from None


def _describe(item: dict) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        return f"{where}: {item['msg']} (found {item['input']!r})"
    near = difflib.get_close_matches(str(item["loc"][-1]), _known_keys(item["loc"][:-1]), n=1, cutoff=0.5)
    return f"{where}: no such option" + (f"; nearest is `{near[0]}`" if near else "")


def _known_keys(location: tuple) -> list[str]:
    model: Any = Config
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            continue
        options = [field.annotation, *get_args(field.annotation)]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model)
    return list(model.model_fields)


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
