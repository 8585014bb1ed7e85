"""The options as the user wrote them, before they are checked: a YAML file plus `key.sub=value` overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rlaif.config.strict_yaml import load_yaml
from rlaif.errors import ConfigError


def read_yaml(path: Path) -> dict:
    """Return the mapping in a configuration file. Raises ConfigError if there is none."""
    if path.is_dir():
        raise _folder_error(path)
    try:
        raw = load_yaml(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            "a YAML configuration file",
            f"no file at {path}",
            "Correct the path (configs/ has examples), or write a configuration with `rlaif init DIR`.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "bytes that are not text"
        raise ConfigError("a YAML configuration file", f"{path}: {reason}", "Correct the path.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"valid YAML in {path}", _place_of(error), "Correct the line named above.") from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"a mapping of options in {path}",
            _kind(raw),
            "Write `key: value` lines at the top level of the file.",
        )
    return raw


def _kind(value: object) -> str:
    """Return what a file holds that is not a mapping."""
    if value is None:
        return "an empty file"
    return "a list" if isinstance(value, list) else "a single value"


def _folder_error(path: Path) -> ConfigError:
    """Return the error for a folder, which names the configuration inside that the user probably meant."""
    config = path / "config.yaml"
    marks = ("metrics.jsonl", "checkpoints", ".lock")
    if config.is_file() and any((path / mark).exists() for mark in marks):
        fix = f"Give the path {config}, the configuration that this run was started with."
        return ConfigError("a YAML configuration file", f"the run directory {path}", fix)
    files = sorted(file.name for file in path.glob("*.y*ml"))
    fix = f"Give the path {path / files[0]}." if files else "Write a configuration with `rlaif init DIR`."
    return ConfigError("a YAML configuration file", f"the folder {path}", fix)


def _place_of(error: yaml.YAMLError) -> str:
    """Return the problem with its line and column, without the line itself, which may hold a secret."""
    problem = getattr(error, "problem", None) or "no YAML"
    mark = getattr(error, "problem_mark", None)
    return f"{problem} in line {mark.line + 1}, column {mark.column + 1}" if mark else problem


def apply_override(raw: dict, override: str) -> None:
    """Set an option given as `key.sub=value`. Raises ConfigError if the argument is not of that form."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError("overrides as key.sub=value", repr(override), "Write the argument as `key=value`.")
    value = _parse_value(key, text)
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[last] = value


def _parse_value(key: str, text: str) -> Any:
    # YAML would read the brace of a path below the run directory as a mapping.
    if text.startswith("{run}"):
        return text
    if not text:
        return None
    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        fix = "Correct the argument (quote it for the shell)."
        raise ConfigError(f"a YAML value for {key}", _place_of(error), fix) from None
